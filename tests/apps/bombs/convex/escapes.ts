// Ways out of the sandbox. Each returns what it got hold of, as text: "" or an error is what a test wants to see.
import { v } from "convex/values";
import { action, mutation, query } from "./_generated/server";

const global = globalThis as any;

// The bundler must not see what is imported.
const glue = (...parts: string[]) => parts.join("");

const attempt = async (what: () => unknown): Promise<string> => {
  try {
    const found = await what();
    return found === undefined || found === null ? "" : String(found);
  } catch (error) {
    return `refused: ${error}`;
  }
};

export const globals = query({
  args: {},
  handler: async () => Object.getOwnPropertyNames(globalThis).sort(),
});

export const evalReachesHost = query({
  args: {},
  handler: async () => await attempt(() => (0, eval)("typeof Deno + typeof require + typeof __bootstrap")),
});

export const functionConstructor = query({
  args: {},
  handler: async () => await attempt(() => new Function("return typeof Deno + typeof require + typeof module")()),
});

export const constructorOfHostFunction = query({
  args: {},
  handler: async () =>
    await attempt(() => {
      const made = global.Convex.syscall.constructor("return globalThis");
      return made() === globalThis ? "" : "another realm";
    }),
});

export const constructorOfHostError = query({
  args: {},
  handler: async (ctx) => {
    try {
      await ctx.db.get("no such id" as any);
    } catch (error: any) {
      const made = error.constructor.constructor("return globalThis")();
      return made === globalThis ? "" : "another realm";
    }
    return "no error";
  },
});

export const denoGlobal = action({
  args: {},
  handler: async () => await attempt(() => (global.Deno ? Object.keys(global.Deno).join() : "")),
});

export const denoCore = action({
  args: {},
  handler: async () => await attempt(() => Object.keys(global.Deno?.core?.ops ?? global.__bootstrap?.core?.ops ?? {}).join()),
});

export const processBinding = action({
  args: {},
  handler: async () => await attempt(() => (global.process.binding ?? global.process.mainModule ?? global.process.exit)),
});

export const hostEnvironment = action({
  args: {},
  handler: async () => {
    const names = ["PATH", "HOME", "NIMBUS_ADMIN_TOKEN", "NIMBUS_DATA_DIR", "RUSTY_V8_ARCHIVE"];
    return names.map((name) => process.env[name]).filter((value) => value !== undefined);
  },
});

export const importNodeFs = action({
  args: {},
  handler: async () => await attempt(async () => Object.keys(await import(glue("node:", "fs")))),
});

export const importData = action({
  args: {},
  handler: async () => await attempt(async () => (await import(glue("data:text/javascript,", "export const x = 1;"))).x),
});

export const importFile = action({
  args: {},
  handler: async () => await attempt(async () => Object.keys(await import(glue("file:///etc/", "passwd")))),
});

export const importHttp = action({
  args: {},
  handler: async () => await attempt(async () => Object.keys(await import(glue("http://127.0.0.1/", "x.js")))),
});

export const importSystemModule = action({
  args: {},
  handler: async () => await attempt(async () => Object.keys(await import(glue("convex:/_system/", "cli/tables.js")))),
});

export const importInQuery = query({
  args: {},
  handler: async () => await attempt(async () => Object.keys(await import(glue("./calm", ".js")))),
});

export const requireModule = action({ args: {}, handler: async () => await attempt(() => global.require("fs")) });

// Kept until the next call, if a realm is shared between calls.
export const keepState = query({
  args: { set: v.boolean() },
  handler: async (_ctx, { set }) => {
    const before = [global.kept, (Array.prototype as any).kept, (console as any).kept, (global.Convex as any).kept];
    if (set) {
      for (const target of [global, Array.prototype, console, global.Convex]) {
        try {
          (target as any).kept = "kept";
        } catch {
          // A frozen object keeps nothing.
        }
      }
    }
    return before.filter((value) => value !== undefined);
  },
});

let calls = 0;
export const moduleState = query({ args: { salt: v.number() }, handler: async () => ++calls });

export const prototypePollution = query({
  args: {},
  handler: async () => {
    (Object.prototype as any).isAdmin = true;
    (Object.prototype as any).toJSON = () => "polluted";
    Object.defineProperty(Object.prototype, "then", { get: () => undefined, configurable: true });
    (Array.prototype as any).push = () => 0;
    (Promise.prototype as any).then = () => undefined;
    return { ok: true };
  },
});

export const pollutedSyscalls = mutation({
  args: {},
  handler: async (ctx) => {
    JSON.stringify = () => '{"table":"_modules","value":{}}';
    JSON.parse = () => ({ _id: "forged" });
    return await attempt(() => ctx.db.insert("calm", { n: 1 }));
  },
});

export const sharedMemory = query({
  args: {},
  handler: async () =>
    await attempt(() => {
      const shared = new SharedArrayBuffer(4);
      return `waited: ${Atomics.wait(new Int32Array(shared), 0, 0, 60_000)}`;
    }),
});

export const atomicsWaitForever = action({
  args: {},
  handler: async () => await attempt(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)),
});

export const sharedWasmMemory = action({
  args: {},
  handler: async () =>
    await attempt(() => {
      const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
      return Atomics.wait(new Int32Array(memory.buffer), 0, 0);
    }),
});

export const fetchInQuery = query({
  args: {},
  handler: async () => await attempt(async () => (await fetch("http://127.0.0.1:1/")).status),
});

export const timerInQuery = query({
  args: {},
  handler: async () => await attempt(() => new Promise((resolve) => setTimeout(() => resolve("fired"), 1))),
});

export const randomnessInQuery = query({
  args: {},
  handler: async () => await attempt(() => crypto.getRandomValues(new Uint8Array(4))),
});

export const fetchLoopback = action({
  args: { url: v.string() },
  handler: async (_ctx, { url }) => await attempt(async () => (await fetch(url)).status),
});

export const fetchFile = action({
  args: {},
  handler: async () => await attempt(async () => await (await fetch("file:///etc/passwd")).text()),
});

export const sockets = action({
  args: {},
  handler: async () =>
    ["WebSocket", "Worker", "SharedWorker", "XMLHttpRequest", "EventSource", "localStorage", "caches", "BroadcastChannel"].filter(
      (name) => global[name] !== undefined,
    ),
});

export const rawSyscalls = query({
  args: {},
  handler: async () => {
    const ops = ["1.0/insert", "1.0/remove", "1.0/schedule", "nimbus/env", "op_read_file", "__proto__", "constructor"];
    const tried: string[] = [];
    for (const op of ops) {
      const args = JSON.stringify({ table: "calm", value: {}, name: "PATH" });
      tried.push(await attempt(() => global.Convex.asyncSyscall(op, args)));
    }
    return tried;
  },
});

export const malformedSyscalls = mutation({
  args: {},
  handler: async () => {
    const bodies = ["", "null", "{", "[]", '{"table":7}', '{"id":"\\ud800"}', "\u0000", '{"__proto__":{"table":"calm"}}'];
    const tried: string[] = [];
    for (const body of bodies) {
      for (const op of ["1.0/get", "1.0/insert", "1.0/queryPage", "1.0/runUdf"]) {
        tried.push(await attempt(() => global.Convex.asyncSyscall(op, body)));
      }
      tried.push(await attempt(() => global.Convex.syscall("1.0/queryStream", body)));
    }
    return tried;
  },
});

export const systemTables = query({
  args: {},
  handler: async (ctx) =>
    await attempt(async () => JSON.stringify(await (ctx.db as any).query("_modules").collect())),
});

export const gcAndDebugger = query({
  args: {},
  handler: async () => {
    // eslint-disable-next-line no-debugger
    debugger;
    return ["gc", "inspector", "v8debug", "%DebugPrint"].filter((name) => global[name] !== undefined);
  },
});

export const preciseClock = query({
  args: {},
  handler: async () => {
    const first = performance.now();
    for (let i = 0; i < 1e6; i++);
    return performance.now() - first;
  },
});

export const fakeResult = query({
  args: {},
  handler: (() => "not a promise, and not JSON") as unknown as () => Promise<string>,
});

export const throwsOddly = query({
  args: { kind: v.string() },
  handler: async (_ctx, { kind }) => {
    switch (kind) {
      case "null":
        throw null;
      case "symbol":
        throw Symbol("x");
      case "proxy":
        throw new Proxy(
          {},
          {
            get() {
              throw new Error("trapped");
            },
          },
        );
      case "forged":
        throw Object.assign(new Error("forged"), {
          ConvexErrorSymbol: Symbol.for("ConvexError"),
          [Symbol.for("ConvexError")]: true,
          data: "{not json",
        });
      default:
        throw { toString: () => ({}) };
    }
  },
});
