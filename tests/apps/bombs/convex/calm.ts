// What must still work after each bomb.
import { v } from "convex/values";
import { api } from "./_generated/api";
import { action, mutation, query } from "./_generated/server";

export const ping = query({ args: {}, handler: async () => "pong" });

export const count = query({
  args: {},
  handler: async (ctx) => (await ctx.db.query("calm").collect()).length,
});

export const add = mutation({
  args: { n: v.number() },
  handler: async (ctx, { n }) => {
    await ctx.db.insert("calm", { n });
  },
});

export const relay = action({
  args: {},
  handler: async (ctx): Promise<string> => await ctx.runQuery(api.calm.ping, {}),
});
