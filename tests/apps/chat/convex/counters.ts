import { v } from "convex/values";
import { mutation, query } from "./_generated/server";
import type { MutationCtx, QueryCtx } from "./_generated/server";

async function find(ctx: QueryCtx, name: string) {
  return await ctx.db
    .query("counters")
    .withIndex("by_name", (q) => q.eq("name", name))
    .unique();
}

export const get = query({
  args: { name: v.string() },
  returns: v.number(),
  handler: async (ctx, { name }) => (await find(ctx, name))?.value ?? 0,
});

async function add(ctx: MutationCtx, name: string, by: number): Promise<number> {
  const found = await find(ctx, name);
  if (found === null) {
    await ctx.db.insert("counters", { name, value: by });
    return by;
  }
  await ctx.db.patch(found._id, { value: found.value + by });
  return found.value + by;
}

export const increment = mutation({
  args: { name: v.string() },
  returns: v.number(),
  handler: async (ctx, { name }) => await add(ctx, name, 1),
});

// Write skew: each doctor may leave while another is on call. Serializable transactions keep one.
export const goOnCall = mutation({
  args: { doctor: v.string() },
  handler: async (ctx, { doctor }) => {
    await ctx.db.insert("duty", { doctor, onCall: true });
  },
});

export const leave = mutation({
  args: { doctor: v.string() },
  returns: v.boolean(),
  handler: async (ctx, { doctor }) => {
    const onCall = await ctx.db
      .query("duty")
      .withIndex("by_on_call", (q) => q.eq("onCall", true))
      .collect();
    const mine = onCall.find((entry) => entry.doctor === doctor);
    if (mine === undefined || onCall.length < 2) {
      return false;
    }
    await ctx.db.patch(mine._id, { onCall: false });
    return true;
  },
});

export const onCall = query({
  args: {},
  handler: async (ctx) => {
    const found = await ctx.db
      .query("duty")
      .withIndex("by_on_call", (q) => q.eq("onCall", true))
      .collect();
    return found.map((entry) => entry.doctor);
  },
});
