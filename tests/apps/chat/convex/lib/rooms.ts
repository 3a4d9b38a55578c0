// Functions in a directory: `lib/rooms:create`.
import { v } from "convex/values";
import { mutation, query } from "../_generated/server";
import { shorten } from "./text";

export const create = mutation({
  args: { title: v.string(), members: v.array(v.id("users")) },
  returns: v.id("rooms"),
  handler: async (ctx, { title, members }) => {
    return await ctx.db.insert("rooms", { title: shorten(title, 40), members });
  },
});

export const byTitle = query({
  args: { title: v.string() },
  handler: async (ctx, { title }) => {
    return await ctx.db
      .query("rooms")
      .withIndex("by_title", (q) => q.eq("title", title))
      .unique();
  },
});
