/* eslint-disable */
/** Utility to name functions; in the form that `npx convex codegen` makes. */
import type * as actions from "../actions.js";
import type * as admin from "../admin.js";
import type * as counters from "../counters.js";
import type * as crons from "../crons.js";
import type * as errors from "../errors.js";
import type * as http from "../http.js";
import type * as lib_rooms from "../lib/rooms.js";
import type * as lib_text from "../lib/text.js";
import type * as messages from "../messages.js";
import type * as nested from "../nested.js";
import type * as settings from "../settings.js";
import type * as users from "../users.js";
import type * as values from "../values.js";

import type { ApiFromModules, FilterApi, FunctionReference } from "convex/server";

declare const fullApi: ApiFromModules<{
  actions: typeof actions;
  admin: typeof admin;
  counters: typeof counters;
  crons: typeof crons;
  errors: typeof errors;
  http: typeof http;
  "lib/rooms": typeof lib_rooms;
  "lib/text": typeof lib_text;
  messages: typeof messages;
  nested: typeof nested;
  settings: typeof settings;
  users: typeof users;
  values: typeof values;
}>;

export declare const api: FilterApi<typeof fullApi, FunctionReference<any, "public">>;
export declare const internal: FilterApi<typeof fullApi, FunctionReference<any, "internal">>;
export declare const components: {};
