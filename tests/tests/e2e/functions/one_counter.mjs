// 64 clients increment one counter; each acknowledged increment counts once, and no other does.
import assert from "node:assert/strict";
import { ConvexHttpClient } from "convex/browser";
import { anyApi as api } from "convex/server";

const [clients, each] = [64, 8];
const seen = [];
let conflicts = 0;

async function work() {
  const client = new ConvexHttpClient(process.argv[2], { logger: false });
  for (let i = 0; i < each; ) {
    try {
      seen.push(await client.mutation(api.counters.increment, { name: "shared" }));
      i++;
    } catch (error) {
      // Refused after several conflicts, so certainly not written.
      if (!String(error).includes("OptimisticConcurrencyControlFailure")) throw error;
      conflicts += 1;
    }
  }
}

await Promise.all(Array.from({ length: clients }, work));
seen.sort((a, b) => a - b);
assert.deepEqual(seen, Array.from({ length: clients * each }, (_, i) => i + 1));
const client = new ConvexHttpClient(process.argv[2], { logger: false });
assert.equal(await client.query(api.counters.get, { name: "shared" }), clients * each);
console.log(`${conflicts} refused for conflicts`);
console.log("all is well");
