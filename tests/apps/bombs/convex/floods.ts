// Too much for the host: results, logs, calls, documents.
import { v } from "convex/values";
import { api } from "./_generated/api";
import { action, mutation, query } from "./_generated/server";

export const hugeResult = query({ args: {}, handler: async () => "x".repeat(64 << 20) });

export const wideResult = query({ args: {}, handler: async () => Array.from({ length: 100_000 }, (_, i) => i) });

export const deepResult = query({
  args: {},
  handler: async () => {
    let value: unknown = null;
    for (let i = 0; i < 100_000; i++) value = [value];
    return value;
  },
});

export const cyclicResult = query({
  args: {},
  handler: async () => {
    const value: Record<string, unknown> = {};
    value.self = value;
    return value;
  },
});

export const manyLogs = query({
  args: {},
  handler: async () => {
    for (let i = 0; i < 100_000; i++) console.log("line", i);
    return "done";
  },
});

export const longLog = query({
  args: {},
  handler: async () => {
    console.log("y".repeat(8 << 20));
    return "done";
  },
});

export const hugeError = query({
  args: {},
  handler: async () => {
    throw new Error("z".repeat(32 << 20));
  },
});

export const endlessCalls = action({
  args: {},
  handler: async (ctx): Promise<null> => {
    for (;;) await ctx.runQuery(api.calm.ping, {});
  },
});

export const unawaitedCalls = action({
  args: {},
  handler: async (ctx) => {
    for (let i = 0; i < 10_000; i++) void ctx.runQuery(api.calm.ping, {});
    return "left";
  },
});

export const callsItself = action({
  args: {},
  handler: async (ctx): Promise<null> => await ctx.runAction(api.floods.callsItself, {}),
});

export const mutationCallsItself = mutation({
  args: {},
  handler: async (ctx): Promise<null> => await ctx.runMutation(api.floods.mutationCallsItself, {}),
});

export const endlessInserts = mutation({
  args: {},
  handler: async (ctx): Promise<null> => {
    for (let i = 0; ; i++) await ctx.db.insert("flood", { i });
  },
});

export const bigInserts = mutation({
  args: {},
  handler: async (ctx): Promise<null> => {
    for (;;) await ctx.db.insert("flood", { text: "t".repeat(900_000) });
  },
});

export const endlessReads = query({
  args: {},
  handler: async (ctx): Promise<null> => {
    for (;;) await ctx.db.query("flood").first();
  },
});

export const hugeArgument = action({
  args: { megabytes: v.number() },
  handler: async (ctx, { megabytes }): Promise<number> =>
    (await ctx.runQuery(api.floods.measure, { text: "a".repeat(megabytes << 20) })) as number,
});

export const measure = query({ args: { text: v.string() }, handler: async (_ctx, { text }) => text.length });

// Arguments that no function may have, for one that looks at none.
const deep = () => {
  let value: unknown = null;
  for (let i = 0; i < 70; i++) value = [value];
  return { value };
};

export const swallow = query({ args: { value: v.any() }, handler: async () => "swallowed" });

export const deepArgumentWithin = query({
  args: {},
  handler: async (ctx): Promise<string> => await ctx.runQuery(api.floods.swallow, deep()),
});

export const deepArgumentApart = action({
  args: {},
  handler: async (ctx): Promise<string> => await ctx.runQuery(api.floods.swallow, deep()),
});
