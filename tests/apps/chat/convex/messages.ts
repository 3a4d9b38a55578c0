import { paginationOptsValidator } from "convex/server";
import { v } from "convex/values";
import { internalMutation, mutation, query } from "./_generated/server";
import { shorten } from "./lib/text";

export const send = mutation({
  args: { room: v.id("rooms"), author: v.id("users"), body: v.string() },
  returns: v.id("messages"),
  handler: async (ctx, { room, author, body }) => {
    if ((await ctx.db.get(room)) === null) {
      throw new Error("no such room");
    }
    console.log("sending", shorten(body, 10), { length: body.length });
    return await ctx.db.insert("messages", { room, author, body, kind: "text" });
  },
});

export const list = query({
  args: { room: v.id("rooms") },
  handler: async (ctx, { room }) => {
    const found = await ctx.db
      .query("messages")
      .withIndex("by_room", (q) => q.eq("room", room))
      .order("desc")
      .take(50);
    return found.map(({ _id, body, kind }) => ({ _id, body, kind }));
  },
});

export const page = query({
  args: { room: v.id("rooms"), paginationOpts: paginationOptsValidator },
  handler: async (ctx, { room, paginationOpts }) => {
    return await ctx.db
      .query("messages")
      .withIndex("by_room", (q) => q.eq("room", room))
      .paginate(paginationOpts);
  },
});

// The same cursor as `page` would make, of another query.
export const pageBackwards = query({
  args: { room: v.id("rooms"), paginationOpts: paginationOptsValidator },
  handler: async (ctx, { room, paginationOpts }) => {
    return await ctx.db
      .query("messages")
      .withIndex("by_room", (q) => q.eq("room", room))
      .order("desc")
      .paginate(paginationOpts);
  },
});

export const long = query({
  args: { room: v.id("rooms"), least: v.number() },
  handler: async (ctx, { room, least }) => {
    const found = ctx.db.query("messages").filter((q) => q.eq(q.field("room"), room));
    const bodies: string[] = [];
    for await (const message of found) {
      if (message.body.length >= least) {
        bodies.push(message.body);
      }
    }
    return bodies;
  },
});

export const like = mutation({
  args: { id: v.id("messages") },
  returns: v.int64(),
  handler: async (ctx, { id }) => {
    const message = await ctx.db.get(id);
    const likes = (message?.likes ?? 0n) + 1n;
    await ctx.db.patch(id, { likes });
    return likes;
  },
});

// What the schema does not allow; `as any` is how such code comes about.
export const sendWrongly = mutation({
  args: { room: v.id("rooms"), author: v.id("users") },
  handler: async (ctx, { room, author }) => {
    await ctx.db.insert("messages", { room, author, body: 7, kind: "text" } as any);
  },
});

export const notice = internalMutation({
  args: { room: v.id("rooms"), author: v.id("users"), body: v.string() },
  handler: async (ctx, { room, author, body }) => {
    return await ctx.db.insert("messages", { room, author, body, kind: "notice" });
  },
});
