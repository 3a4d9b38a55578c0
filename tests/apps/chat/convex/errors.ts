import { ConvexError, v } from "convex/values";
import { api } from "./_generated/api";
import { action, mutation, query } from "./_generated/server";
import { boom } from "./lib/text";

export const plain = query({ args: { what: v.string() }, handler: async (_ctx, { what }) => boom(what) });

export const text = query({
  args: {},
  handler: async () => {
    throw new ConvexError("just text");
  },
});

export const withData = mutation({
  args: { code: v.int64() },
  handler: async (ctx, { code }) => {
    await ctx.db.insert("counters", { name: "never", value: 1 });
    throw new ConvexError({ code, reason: "no seats left", at: [1, -0] });
  },
});

class SeatError extends Error {
  override name = "SeatError";
}

export const ofClass = mutation({
  args: {},
  handler: async () => {
    throw new SeatError("seat 7 is taken");
  },
});

export const throughAction = action({
  args: {},
  handler: async (ctx): Promise<string> => await ctx.runQuery(api.errors.text, {}),
});

// A result that the validator does not allow.
export const wrongResult = query({
  args: {},
  returns: v.object({ count: v.number() }),
  handler: async () => ({ count: "three" }) as any,
});

export const rejected = query({
  args: {},
  handler: async () => {
    void Promise.reject(new Error("nobody waits for this"));
    return "done";
  },
});

export const never = query({ args: {}, handler: async () => await new Promise<string>(() => {}) });

export const fetchInQuery = query({ args: {}, handler: async () => (await fetch("https://example.com/")).status });

export const timerInMutation = mutation({
  args: {},
  handler: async () => await new Promise((resolve) => setTimeout(resolve, 1)),
});
