// For other functions and for administrators; no client sees them.
import { v } from "convex/values";
import { internalAction, internalMutation, internalQuery } from "./_generated/server";

export const secret = internalQuery({ args: {}, handler: async () => "42" });

export const wipe = internalMutation({
  args: { name: v.string() },
  returns: v.number(),
  handler: async (ctx, { name }) => {
    let removed = 0;
    const found = ctx.db.query("counters").withIndex("by_name", (q) => q.eq("name", name));
    for await (const counter of found) {
      await ctx.db.delete(counter._id);
      removed += 1;
    }
    return removed;
  },
});

export const twice = internalAction({ args: { n: v.number() }, handler: async (_ctx, { n }) => n * 2 });
