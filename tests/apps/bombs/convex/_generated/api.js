/* eslint-disable */
/** Utility to name functions; in the form that `npx convex codegen` makes. */
import { anyApi, componentsGeneric } from "convex/server";

export const api = anyApi;
export const internal = anyApi;
export const components = componentsGeneric();
