// QuickJS alone, in a realm that no code of a function has run in yet. What makes scripts of ours safe there as they
// are in V8.
((globalThis) => {
  "use strict";
  const { Error, Object, String } = globalThis;
  const fix = (holder, name, value) => void Object.defineProperty(holder, name, { __proto__: null, value, writable: false, enumerable: false, configurable: false });
  // Template literals are compiled to calls of it: one that a function replaced would run inside our scripts.
  fix(String.prototype, "concat", String.prototype.concat);
  // Call sites show functions of strict code too, and what they were called with: ours among them. Those of an
  // action are deno_core's, and are fixed as they are.
  Error.prepareStackTrace = (_, sites) => sites;
  const site = Object.getPrototypeOf(new Error().stack[0]);
  Error.prepareStackTrace = undefined;
  for (const name of ["getFunction", "getThis"]) {
    if (Object.getOwnPropertyDescriptor(site, name)?.configurable) fix(site, name, { [name]() { return undefined; } }[name]);
  }
})(globalThis)
