// Every kind of value there and back, through arguments, documents and results.
import { v } from "convex/values";
import { action, mutation, query } from "./_generated/server";

export const echo = query({
  args: { value: v.any() },
  handler: async (_ctx, { value }) => value,
});

export const echoAction = action({
  args: { value: v.any() },
  handler: async (_ctx, { value }) => value,
});

export const typed = query({
  args: { count: v.int64(), bytes: v.bytes(), ratio: v.number() },
  returns: v.object({ next: v.int64(), bytes: v.bytes(), negativeZero: v.boolean(), ratio: v.number() }),
  handler: async (_ctx, { count, bytes, ratio }) => {
    const reversed = new Uint8Array(bytes).slice().reverse();
    return {
      next: count + 1n,
      bytes: reversed.buffer,
      negativeZero: Object.is(ratio, -0),
      ratio,
    };
  },
});

export const store = mutation({
  args: { bytes: v.bytes(), count: v.int64(), ratio: v.number(), extra: v.any() },
  returns: v.id("blobs"),
  handler: async (ctx, fields) => await ctx.db.insert("blobs", fields),
});

export const load = query({
  args: { id: v.id("blobs") },
  handler: async (ctx, { id }) => {
    const found = await ctx.db.get(id);
    if (found === null) {
      return null;
    }
    const { bytes, count, ratio, extra } = found;
    return { bytes, count, ratio, extra };
  },
});

export const nothing = query({ args: {}, handler: async () => undefined });

export const specials = query({
  args: {},
  handler: async () => ({ nan: NaN, up: Infinity, down: -Infinity, zero: -0, least: -(2n ** 63n) }),
});

// What no client can be given.
export const unsendable = query({ args: {}, handler: async () => new Map([["a", 1]]) as any });
