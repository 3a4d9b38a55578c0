// What every realm has: console, `Convex`, `process.env`. It is given the builtins, the host's functions and the
// inspector; see own.js for how it is written.
// Knows no web APIs; those of queries are in bare.js, those of actions in the extensions.
((globalThis, own, host, inspect) => {
  "use strict";
  const { Error, TypeError, hidden } = own;
  const MAX_LINE = 32768;
  // What it has not must not be looked for in `Object.prototype`.
  own.orphan(host);

  function write(level, text) {
    let line = `[${level}]${text}`;
    if (line.length > MAX_LINE) line = `${own.slice(line, 0, MAX_LINE)} (truncated due to length)`;
    host.log(own.wellFormed(line));
  }
  function log(level, args, first = "") {
    let text = first === "" ? "" : ` ${inspect(first)}`;
    for (let at = 0; at < args.length; at++) text += ` ${inspect(args[at])}`;
    write(level, text);
  }

  const timers = new own.Map();
  const counts = new own.Map();
  function timed(label, args, ends) {
    const name = `${label}`;
    if (!own.mapHas(timers, name)) return write("WARN", ` ${inspect(`Timer '${name}' does not exist`)}`);
    log("INFO", args, `${name}: ${host.clock() - own.mapGet(timers, name)}ms`);
    if (ends) own.mapDelete(timers, name);
  }
  const console = {
    debug: (...args) => log("DEBUG", args),
    error: (...args) => log("ERROR", args),
    info: (...args) => log("INFO", args),
    log: (...args) => log("LOG", args),
    warn: (...args) => log("WARN", args),
    trace: (...args) => log("LOG", args, "Trace"),
    dir: (value) => log("LOG", [value]),
    table: (value) => log("LOG", [value]),
    group: (...args) => { if (args.length > 0) log("LOG", args); },
    groupCollapsed: (...args) => { if (args.length > 0) log("LOG", args); },
    groupEnd: () => {},
    assert: (holds, ...args) => { if (!holds) log("ERROR", args, "Assertion failed"); },
    count: (label = "default") => {
      const name = `${label}`;
      const count = (own.mapGet(counts, name) ?? 0) + 1;
      own.mapSet(counts, name, count);
      log("LOG", [`${name}: ${count}`]);
    },
    countReset: (label = "default") => void own.mapDelete(counts, `${label}`),
    time: (label = "default") => void own.mapSet(timers, `${label}`, host.clock()),
    timeLog: (label = "default", ...args) => timed(label, args, false),
    timeEnd: (label = "default") => timed(label, [], true),
  };
  hidden(globalThis, "console", console);

  // Failures come as [message, data]: an Error is made here, in the function's own realm.
  function failure(message, data) {
    const error = new Error(message);
    if (data !== undefined) own.define(error, "data", { value: own.parse(data), writable: true, enumerable: true, configurable: true });
    return error;
  }
  const text = (value) => {
    if (typeof value !== "string") throw new TypeError("a syscall takes JSON text");
    return value;
  };
  const Convex = {
    syscall: (op, args) => {
      const answer = host.syscall(`${op}`, text(args));
      if (typeof answer === "string") return answer;
      throw failure(answer[0], answer[1]);
    },
    asyncSyscall: (op, args) => {
      const name = `${op}`;
      const asked = text(args);
      return new own.Promise((resolve, reject) => host.asyncSyscall(name, asked, resolve, (message, data) => reject(failure(message, data))));
    },
    jsSyscall: (op, args) => {
      const known = host.jsSyscalls?.[op];
      if (known === undefined) throw new Error(`Unknown js operation ${op}`);
      return known(args);
    },
  };
  hidden(globalThis, "Convex", own.freeze(Convex));

  const env = new Proxy(own.orphan({}), own.orphan({
    get: (_, name) => (typeof name === "string" ? host.env(name) : undefined),
    has: (_, name) => typeof name === "string" && host.env(name) !== undefined,
    set: () => { throw new TypeError("`process.env` is read-only: set variables with `nimbus env set`"); },
    defineProperty: () => false,
    deleteProperty: () => false,
    ownKeys: () => [],
    getOwnPropertyDescriptor: (_, name) => {
      const value = typeof name === "string" ? host.env(name) : undefined;
      return value === undefined ? undefined : own.orphan({ value, writable: false, enumerable: true, configurable: true });
    },
  }));
  hidden(globalThis, "process", own.freeze({ env }));
  hidden(globalThis, "self", globalThis);
  hidden(globalThis, "global", globalThis);

  // Whether an object was collected would tell one run from another.
  class WeakRef {
    #target;
    constructor(target) {
      if (target === null || (typeof target !== "object" && typeof target !== "function" && typeof target !== "symbol")) {
        throw new TypeError("WeakRef: invalid target");
      }
      this.#target = target;
    }
    deref() { return this.#target; }
    get [own.tag]() { return "WeakRef"; }
  }
  class FinalizationRegistry {
    constructor(cleanup) {
      if (typeof cleanup !== "function") throw new TypeError("FinalizationRegistry: cleanup must be callable");
    }
    register() {}
    unregister() { return false; }
    get [own.tag]() { return "FinalizationRegistry"; }
  }
  hidden(globalThis, "WeakRef", WeakRef);
  hidden(globalThis, "FinalizationRegistry", FinalizationRegistry);
})
