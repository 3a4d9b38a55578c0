// Ways to compute without end. None returns; each is to be ended from outside.
import { action, mutation, query } from "./_generated/server";

export const endlessLoop = query({
  args: {},
  handler: async () => {
    for (;;);
  },
});

export const endlessLoopInAction = action({
  args: {},
  handler: async () => {
    for (;;);
  },
});

export const catchingLoop = mutation({
  args: {},
  handler: async () => {
    for (;;) {
      try {
        for (;;);
      } catch {
        // A termination must not be caught.
      } finally {
        for (;;);
      }
    }
  },
});

export const deepRecursion = query({
  args: {},
  handler: async () => {
    const down = (n: number): number => 1 + down(n + 1);
    return down(0);
  },
});

export const recursionInACatch = query({
  args: {},
  handler: async () => {
    const down = (): void => {
      try {
        down();
      } catch {
        down();
      }
    };
    down();
  },
});

export const catastrophicRegexp = query({
  args: {},
  handler: async () => /^(a+)+$/.test(`${"a".repeat(64)}!`),
});

export const hugeSort = query({
  args: {},
  handler: async () => {
    const all = Array.from({ length: 1 << 20 }, (_, i) => (i * 7919) % 1_000_003);
    for (;;) all.sort((a, b) => Math.sin(a) - Math.sin(b));
  },
});

export const promiseFlood = query({
  args: {},
  handler: async () => {
    const again = (): Promise<void> => Promise.resolve().then(again);
    await again();
  },
});

export const microtaskFlood = action({
  args: {},
  handler: async () => {
    const again = () => queueMicrotask(again);
    again();
    await new Promise<void>(() => {});
  },
});

// The host reads the result, and with it this getter.
export const loopInResultGetter = query({
  args: {},
  handler: async () => ({
    get value(): number {
      for (;;);
    },
  }),
});

// The host writes the error down, and asks it for its text.
export const loopInErrorText = query({
  args: {},
  handler: async () => {
    const error = new Error("x");
    Object.defineProperty(error, "message", {
      get() {
        for (;;);
      },
    });
    Object.defineProperty(error, "stack", {
      get() {
        for (;;);
      },
    });
    throw error;
  },
});

export const loopInLoggedGetter = query({
  args: {},
  handler: async () => {
    console.log({
      get value(): number {
        for (;;);
      },
    });
    return "logged";
  },
});

export const loopInToJson = query({
  args: {},
  handler: async () =>
    JSON.stringify({
      toJSON() {
        for (;;);
      },
    }),
});

export const loopInThenable = query({
  args: {},
  handler: () =>
    ({
      then() {
        for (;;);
      },
    }) as unknown as Promise<null>,
});

// (module (func (export "spin") (loop (br 0))))
const SPIN = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 7, 8, 1, 4, 115, 112, 105, 110, 0, 0, 10, 9, 1, 7, 0, 3,
  64, 12, 0, 11, 11,
]);

export const wasmLoop = query({
  args: {},
  handler: async () => {
    const instance = new WebAssembly.Instance(new WebAssembly.Module(SPIN));
    (instance.exports.spin as () => void)();
  },
});

export const bigPower = query({ args: {}, handler: async () => String(7n ** 20_000_000n).length });
