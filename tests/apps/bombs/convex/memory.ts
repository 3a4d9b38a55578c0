// Twelve ways to allocate without end. What they hold is reachable, so no collector can help.
import { action, mutation, query } from "./_generated/server";

export const arrayFill = query({
  args: {},
  handler: async () => {
    const all: number[][] = [];
    for (;;) all.push(new Array<number>(1000).fill(1.5));
  },
});

export const join = query({
  args: {},
  handler: async () => {
    const all: string[] = ["x".repeat(1 << 16)];
    for (;;) all.push(all.slice(-64).join(String(all.length)));
  },
});

export const repeat = query({
  args: {},
  handler: async () => {
    const all: string[] = [];
    // Changing one character flattens the rope, so that it really takes its bytes.
    for (let i = 0; ; i++) all.push("ab".repeat(1 << 20).replace("a", String(i)));
  },
});

export const json = query({
  args: {},
  handler: async () => {
    let value: unknown = Array.from({ length: 1000 }, (_, i) => ({ i }));
    for (;;) value = [JSON.parse(JSON.stringify(value)), JSON.parse(JSON.stringify(value))];
  },
});

export const typedArrays = action({
  args: {},
  handler: async () => {
    const all: Uint8Array[] = [];
    for (;;) all.push(new Uint8Array(1 << 20).fill(7));
  },
});

export const map = mutation({
  args: {},
  handler: async () => {
    const all = new Map<object, object>();
    for (;;) all.set({}, { n: all.size });
  },
});

export const regexpCaptures = query({
  args: {},
  handler: async () => {
    const all: RegExpMatchArray[] = [];
    const text = "abcdefgh".repeat(4096);
    for (let i = 0; ; i++) all.push(...(text + i).matchAll(/(a)(b)(c)(d)(e)(f)(g)(h)/g));
  },
});

export const spread = query({
  args: {},
  handler: async () => {
    let all: number[] = [1.5, 2.5];
    for (;;) all = [...all, ...all];
  },
});

export const bigints = query({
  args: {},
  handler: async () => {
    const all: bigint[] = [3n];
    for (;;) all.push(all[all.length - 1]! << 65536n);
  },
});

export const closures = query({
  args: {},
  handler: async () => {
    let last: () => unknown = () => null;
    for (let i = 0; ; i++) {
      const [before, kept] = [last, new Array(64).fill(i)];
      last = () => [before, kept];
    }
  },
});

export const strings = mutation({
  args: {},
  handler: async () => {
    const all: Record<string, string> = {};
    for (let i = 0; ; i++) all[`key ${i} ${"y".repeat(i % 512)}`] = String.fromCharCode(...Array(512).fill(0x4e00 + (i % 99)));
  },
});

export const asyncFrames = action({
  args: {},
  handler: async () => {
    const forever = new Promise<void>(() => {});
    const all: Promise<number>[] = [];
    const wait = async (kept: number[]) => {
      await forever;
      return kept.length;
    };
    for (let i = 0; ; i++) all.push(wait(new Array(64).fill(i)));
  },
});

// One buffer past every limit, and one too many of the rest: no loop is needed.
export const hugeBuffer = action({ args: {}, handler: async () => new Uint8Array(3 * 2 ** 30).byteLength });

export const growingWasm = action({
  args: {},
  handler: async () => {
    const all: WebAssembly.Memory[] = [];
    for (;;) {
      const memory = new WebAssembly.Memory({ initial: 256 });
      new Uint8Array(memory.buffer).fill(1);
      all.push(memory);
    }
  },
});
