import { httpRouter } from "convex/server";
import { api } from "./_generated/api";
import { httpAction } from "./_generated/server";

const http = httpRouter();

http.route({
  path: "/counters",
  method: "GET",
  handler: httpAction(async (ctx, request) => {
    const name = new URL(request.url).searchParams.get("name") ?? "";
    return Response.json({ value: await ctx.runQuery(api.counters.get, { name }) });
  }),
});

http.route({
  pathPrefix: "/hooks/",
  method: "POST",
  handler: httpAction(async (ctx, request) => {
    await ctx.runMutation(api.counters.increment, { name: new URL(request.url).pathname });
    return new Response(null, { status: 204 });
  }),
});

export default http;
