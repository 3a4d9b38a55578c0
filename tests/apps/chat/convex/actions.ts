import { createFunctionHandle } from "convex/server";
import type { FunctionHandle } from "convex/server";
import { v } from "convex/values";
import { api, internal } from "./_generated/api";
import { action, query } from "./_generated/server";

// An action that calls a query, a mutation and an action.
export const tour = action({
  args: { name: v.string() },
  handler: async (ctx, { name }): Promise<{ secret: string; value: number; doubled: number }> => {
    const secret: string = await ctx.runQuery(internal.admin.secret, {});
    const value: number = await ctx.runMutation(api.counters.increment, { name });
    const doubled: number = await ctx.runAction(internal.admin.twice, { n: value });
    return { secret, value, doubled };
  },
});

// Eight at a time is what an action may have in flight.
export const parallel = action({
  args: { name: v.string(), times: v.number() },
  handler: async (ctx, { name, times }): Promise<number> => {
    const calls = Array.from({ length: times }, () => ctx.runMutation(api.counters.increment, { name }));
    await Promise.all(calls);
    return await ctx.runQuery(api.counters.get, { name });
  },
});

// An action that calls itself, down to a mutation.
export const descend = action({
  args: { name: v.string(), depth: v.number() },
  handler: async (ctx, { name, depth }): Promise<number> => {
    if (depth === 0) {
      return await ctx.runMutation(api.counters.increment, { name });
    }
    return await ctx.runAction(api.actions.descend, { name, depth: depth - 1 });
  },
});

export const throughHandle = action({
  args: { name: v.string() },
  handler: async (ctx, { name }): Promise<number> => {
    const handle: FunctionHandle<"mutation", { name: string }, number> = await createFunctionHandle(
      api.counters.increment,
    );
    return await ctx.runMutation(handle, { name });
  },
});

export const digest = action({
  args: { text: v.string() },
  returns: v.string(),
  handler: async (_ctx, { text }) => {
    const bytes = new TextEncoder().encode(text);
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
  },
});

export const reach = action({
  args: { url: v.string() },
  handler: async (_ctx, { url }) => (await fetch(url)).status,
});

// The same in every run of one execution, and in no two executions.
export const dice = query({
  args: { salt: v.number() },
  handler: async () => ({ random: Math.random(), started: Date.now(), later: Date.now() }),
});
