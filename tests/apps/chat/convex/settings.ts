// Variables of the deployment.
import { v } from "convex/values";
import { query } from "./_generated/server";

export const get = query({
  args: { name: v.string() },
  handler: async (_ctx, { name }) => process.env[name] ?? null,
});

export const urls = query({
  args: {},
  handler: async () => ({ cloud: process.env.CONVEX_CLOUD_URL ?? null, site: process.env.CONVEX_SITE_URL ?? null }),
});
