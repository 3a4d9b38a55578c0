// Mutations within mutations: what the inner one wrote goes when it throws.
import { ConvexError, v } from "convex/values";
import { api, internal } from "./_generated/api";
import { internalMutation, mutation, query } from "./_generated/server";

export const insertThenThrow = internalMutation({
  args: { name: v.string() },
  handler: async (ctx, { name }) => {
    await ctx.db.insert("counters", { name, value: 1 });
    throw new ConvexError({ inner: name });
  },
});

export const insert = internalMutation({
  args: { name: v.string(), value: v.number() },
  handler: async (ctx, { name, value }) => {
    await ctx.db.insert("counters", { name, value });
    return (await ctx.db.query("counters").collect()).length;
  },
});

export const catchInner = mutation({
  args: { tag: v.string() },
  handler: async (ctx, { tag }) => {
    await ctx.db.insert("counters", { name: `${tag}-before`, value: 1 });
    let caught: unknown = null;
    try {
      await ctx.runMutation(internal.nested.insertThenThrow, { name: `${tag}-inner` });
    } catch (error) {
      caught = error instanceof ConvexError ? error.data : String(error);
    }
    await ctx.runMutation(internal.nested.insert, { name: `${tag}-after`, value: 2 });
    const names: string[] = await ctx.runQuery(api.nested.names, { tag });
    return { caught: caught as any, names };
  },
});

export const doNotCatch = mutation({
  args: { tag: v.string() },
  handler: async (ctx, { tag }) => {
    await ctx.db.insert("counters", { name: `${tag}-before`, value: 1 });
    await ctx.runMutation(internal.nested.insertThenThrow, { name: `${tag}-inner` });
  },
});

export const names = query({
  args: { tag: v.string() },
  handler: async (ctx, { tag }): Promise<string[]> => {
    const all = await ctx.db.query("counters").collect();
    return all.map((counter) => counter.name).filter((name) => name.startsWith(`${tag}-`));
  },
});
