// Two doctors on call leave at the same time; each may only while the other stays.
import assert from "node:assert/strict";
import { ConvexHttpClient } from "convex/browser";
import { anyApi as api } from "convex/server";

// A client sends one mutation after the other, so each doctor has one of her own.
const clients = Array.from({ length: 2 }, () => new ConvexHttpClient(process.argv[2], { logger: false }));

// An answer that says to try again is no answer.
async function untilDecided(call) {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (!String(error).includes("OptimisticConcurrencyControlFailure")) throw error;
    }
  }
}

let left = 0;
for (let round = 0; round < 30; round++) {
  const staying = await clients[0].query(api.counters.onCall, {});
  const doctors = [`a${round}`, `b${round}`];
  // Whoever stayed in the last round is one of the two.
  if (staying.length === 1) doctors[0] = staying[0];
  else await untilDecided(() => clients[0].mutation(api.counters.goOnCall, { doctor: doctors[0] }));
  await untilDecided(() => clients[1].mutation(api.counters.goOnCall, { doctor: doctors[1] }));
  const outcomes = await Promise.all(
    clients.map((client, i) => untilDecided(() => client.mutation(api.counters.leave, { doctor: doctors[i] }))),
  );
  assert.equal(outcomes.filter((gone) => gone).length, 1, `round ${round}: ${outcomes}`);
  assert.equal((await clients[0].query(api.counters.onCall, {})).length, 1);
  left += 1;
}
assert.equal(left, 30);
console.log("all is well");
