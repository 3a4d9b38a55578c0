import { v } from "convex/values";
import { mutation, query } from "./_generated/server";

export const create = mutation({
  args: { name: v.string(), email: v.optional(v.string()) },
  returns: v.id("users"),
  handler: async (ctx, user) => {
    return await ctx.db.insert("users", user);
  },
});

export const get = query({
  args: { id: v.id("users") },
  handler: async (ctx, { id }) => await ctx.db.get(id),
});

export const rename = mutation({
  args: { id: v.id("users"), name: v.string() },
  returns: v.null(),
  handler: async (ctx, { id, name }) => {
    await ctx.db.patch(id, { name });
    return null;
  },
});

export const forgetEmail = mutation({
  args: { id: v.id("users") },
  handler: async (ctx, { id }) => {
    await ctx.db.patch(id, { email: undefined });
  },
});

export const replace = mutation({
  args: { id: v.id("users"), name: v.string() },
  handler: async (ctx, { id, name }) => {
    await ctx.db.replace(id, { name });
  },
});

export const remove = mutation({
  args: { id: v.id("users") },
  handler: async (ctx, { id }) => {
    await ctx.db.delete(id);
  },
});

export const normalize = query({
  args: { text: v.string() },
  handler: async (ctx, { text }) => ctx.db.normalizeId("users", text),
});

export const me = query({
  args: {},
  handler: async (ctx) => await ctx.auth.getUserIdentity(),
});
