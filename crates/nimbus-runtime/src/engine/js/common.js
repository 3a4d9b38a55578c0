// What every realm has: console, `Convex`, `process.env`. It is given the host's functions and the inspector.
// Knows no web APIs; those of queries are in bare.js, those of actions in the extensions.
((globalThis, host, inspect) => {
  "use strict";
  const { Date, JSON, Map, Object, Promise, Proxy, String } = globalThis;
  const MAX_LINE = 32768;

  function hidden(target, name, value) {
    Object.defineProperty(target, name, { value, writable: true, enumerable: false, configurable: true });
  }

  function log(level, args) {
    let line = `[${level}]`;
    for (const arg of args) line += ` ${inspect(arg)}`;
    if (line.length > MAX_LINE) line = `${line.slice(0, MAX_LINE)} (truncated due to length)`;
    host.log(line.toWellFormed());
  }

  const timers = new Map();
  const counts = new Map();
  const elapsed = (label) => `${label}: ${host.clock() - timers.get(label)}ms`;
  const console = {
    debug: (...args) => log("DEBUG", args),
    error: (...args) => log("ERROR", args),
    info: (...args) => log("INFO", args),
    log: (...args) => log("LOG", args),
    warn: (...args) => log("WARN", args),
    trace: (...args) => log("LOG", ["Trace", ...args]),
    dir: (value) => log("LOG", [value]),
    table: (value) => log("LOG", [value]),
    group: (...args) => args.length > 0 && log("LOG", args),
    groupCollapsed: (...args) => args.length > 0 && log("LOG", args),
    groupEnd: () => {},
    assert: (holds, ...args) => holds || log("ERROR", ["Assertion failed", ...args]),
    count: (label = "default") => {
      counts.set(`${label}`, (counts.get(`${label}`) ?? 0) + 1);
      log("LOG", [`${label}: ${counts.get(`${label}`)}`]);
    },
    countReset: (label = "default") => void counts.delete(`${label}`),
    time: (label = "default") => void timers.set(`${label}`, host.clock()),
    timeLog: (label = "default", ...args) => {
      if (timers.has(`${label}`)) log("INFO", [elapsed(`${label}`), ...args]);
      else log("WARN", [`Timer '${label}' does not exist`]);
    },
    timeEnd: (label = "default") => {
      if (timers.has(`${label}`)) log("INFO", [elapsed(`${label}`)]);
      else log("WARN", [`Timer '${label}' does not exist`]);
      timers.delete(`${label}`);
    },
  };
  hidden(globalThis, "console", console);

  // Failures come as [message, data]: an Error is made here, in the function's own realm.
  function failure(message, data) {
    const error = new Error(message);
    if (data !== undefined) error.data = JSON.parse(data);
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
      const asked = text(args);
      return new Promise((resolve, reject) => host.asyncSyscall(`${op}`, asked, resolve, (message, data) => reject(failure(message, data))));
    },
    jsSyscall: (op, args) => {
      const known = host.jsSyscalls?.[op];
      if (known === undefined) throw new Error(`Unknown js operation ${op}`);
      return known(args);
    },
  };
  hidden(globalThis, "Convex", Object.freeze(Convex));

  const env = new Proxy(Object.create(null), {
    get: (_, name) => (typeof name === "string" ? host.env(name) : undefined),
    has: (_, name) => typeof name === "string" && host.env(name) !== undefined,
    set: () => { throw new TypeError("`process.env` is read-only: set variables with `nimbus env set`"); },
    defineProperty: () => false,
    deleteProperty: () => false,
    ownKeys: () => [],
    getOwnPropertyDescriptor: (_, name) => {
      const value = typeof name === "string" ? host.env(name) : undefined;
      return value === undefined ? undefined : { value, writable: false, enumerable: true, configurable: true };
    },
  });
  hidden(globalThis, "process", Object.freeze({ env }));
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
    get [Symbol.toStringTag]() { return "WeakRef"; }
  }
  class FinalizationRegistry {
    constructor(cleanup) {
      if (typeof cleanup !== "function") throw new TypeError("FinalizationRegistry: cleanup must be callable");
    }
    register() {}
    unregister() { return false; }
    get [Symbol.toStringTag]() { return "FinalizationRegistry"; }
  }
  hidden(globalThis, "WeakRef", WeakRef);
  hidden(globalThis, "FinalizationRegistry", FinalizationRegistry);
})
