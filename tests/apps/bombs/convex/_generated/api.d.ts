/* eslint-disable */
/** Utility to name functions; in the form that `npx convex codegen` makes. */
import type * as calm from "../calm.js";
import type * as cpu from "../cpu.js";
import type * as escapes from "../escapes.js";
import type * as floods from "../floods.js";
import type * as memory from "../memory.js";

import type { ApiFromModules, FilterApi, FunctionReference } from "convex/server";

declare const fullApi: ApiFromModules<{
  calm: typeof calm;
  cpu: typeof cpu;
  escapes: typeof escapes;
  floods: typeof floods;
  memory: typeof memory;
}>;

export declare const api: FilterApi<typeof fullApi, FunctionReference<any, "public">>;
export declare const internal: FilterApi<typeof fullApi, FunctionReference<any, "internal">>;
export declare const components: {};
