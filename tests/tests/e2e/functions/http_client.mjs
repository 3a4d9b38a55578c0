// ConvexHttpClient of the npm package `convex` against the chat; the only argument is the deployment's URL.
import assert from "node:assert/strict";
import { ConvexHttpClient } from "convex/browser";
import { anyApi as api } from "convex/server";
import { ConvexError } from "convex/values";

const client = new ConvexHttpClient(process.argv[2], { logger: false });

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  assert.fail("the call succeeded, which it must not");
}

// Queries, mutations, documents.
const ada = await client.mutation(api.users.create, { name: "Ada", email: "ada@example.org" });
const bob = await client.mutation(api.users.create, { name: "Bob" });
assert.match(ada, /^[0-9a-z]{31,37}$/);
const found = await client.query(api.users.get, { id: ada });
assert.equal(found._id, ada);
assert.equal(found.email, "ada@example.org");
assert.ok(Math.abs(found._creationTime - Date.now()) < 60_000);
assert.equal(await client.mutation(api.users.rename, { id: ada, name: "Ada L." }), null);
await client.mutation(api.users.forgetEmail, { id: ada });
assert.deepEqual(Object.keys(await client.query(api.users.get, { id: ada })).sort(), ["_creationTime", "_id", "name"]);
assert.equal(await client.query(api.users.normalize, { text: ada }), ada);
assert.equal(await client.query(api.users.normalize, { text: "nonsense" }), null);
assert.equal(await client.query(api.users.me, {}), null);
await client.mutation(api.users.remove, { id: bob });
assert.equal(await client.query(api.users.get, { id: bob }), null);

// A function in a directory, and the index that its table has.
const room = await client.mutation(api.lib.rooms.create, { title: "Lobby", members: [ada] });
assert.equal((await client.query(api.lib.rooms.byTitle, { title: "Lobby" }))._id, room);
for (let i = 0; i < 25; i++) {
  await client.mutation(api.messages.send, { room, author: ada, body: `message ${i}` });
}
const list = await client.query(api.messages.list, { room });
assert.equal(list.length, 25);
assert.equal(list[0].body, "message 24");
assert.deepEqual(await client.query(api.messages.long, { room, least: 10 }), list.slice(0, 15).map((m) => m.body).reverse());

// Pages.
const bodies = [];
let cursor = null;
for (let pages = 0; ; pages++) {
  assert.ok(pages < 10, "the pages do not end");
  const page = await client.query(api.messages.page, { room, paginationOpts: { numItems: 10, cursor } });
  bodies.push(...page.page.map((message) => message.body));
  if (page.isDone) break;
  assert.equal(page.page.length, 10);
  cursor = page.continueCursor;
}
assert.deepEqual(bodies, Array.from({ length: 25 }, (_, i) => `message ${i}`));
const first = await client.query(api.messages.page, { room, paginationOpts: { numItems: 10, cursor: null } });
const foreign = await failure(
  client.query(api.messages.pageBackwards, { room, paginationOpts: { numItems: 10, cursor: first.continueCursor } }),
);
assert.match(String(foreign), /InvalidCursor/);

// Values.
const typed = await client.query(api.values.typed, {
  count: 2n ** 62n,
  bytes: new Uint8Array([1, 2, 255]).buffer,
  ratio: -0,
});
assert.equal(typed.next, 2n ** 62n + 1n);
assert.deepEqual(new Uint8Array(typed.bytes), new Uint8Array([255, 2, 1]));
assert.equal(typed.negativeZero, true);
assert.ok(Object.is(typed.ratio, -0));
const every = {
  none: null,
  yes: true,
  float: 0.1,
  tiny: 5e-324,
  large: 1.7976931348623157e308,
  negativeZero: -0,
  nan: NaN,
  infinite: -Infinity,
  least: -(2n ** 63n),
  most: 2n ** 63n - 1n,
  text: "a\u0000\u{1f600}\\\"",
  empty: "",
  list: [1n, [], {}, [-0]],
  object: { "with space": 1, a: { b: { c: null } } },
};
for (const [name, call] of [["echo", client.query], ["echoAction", client.action]]) {
  const back = await call.call(client, api.values[name], { value: every });
  assert.deepEqual(back, every);
  assert.ok(Object.is(back.negativeZero, -0) && Object.is(back.list[3][0], -0));
}
const blob = await client.mutation(api.values.store, { bytes: new ArrayBuffer(3), count: -1n, ratio: -0, extra: every });
const loaded = await client.query(api.values.load, { id: blob });
assert.equal(loaded.count, -1n);
assert.equal(loaded.bytes.byteLength, 3);
assert.ok(Object.is(loaded.ratio, -0));
assert.deepEqual(loaded.extra, every);
assert.equal(await client.query(api.values.nothing, {}), null);
const specials = await client.query(api.values.specials, {});
assert.deepEqual(specials, { nan: NaN, up: Infinity, down: -Infinity, zero: -0, least: -(2n ** 63n) });
assert.match(String(await failure(client.query(api.values.unsendable, {}))), /Map/);

// Errors.
const plain = await failure(client.query(api.errors.plain, { what: "x" }));
assert.ok(!(plain instanceof ConvexError));
assert.match(plain.message, /Uncaught Error: boom: x/);
assert.match(plain.message, /at boom \((\.\.\/)+convex\/lib\/text\.ts:7:/, "the stack is that of the sources");
const text = await failure(client.query(api.errors.text, {}));
assert.ok(text instanceof ConvexError);
assert.equal(text.data, "just text");
const data = await failure(client.mutation(api.errors.withData, { code: 7n }));
assert.ok(data instanceof ConvexError);
assert.deepEqual(data.data, { code: 7n, reason: "no seats left", at: [1, -0] });
assert.equal(await client.query(api.counters.get, { name: "never" }), 0);
assert.match((await failure(client.mutation(api.errors.ofClass, {}))).message, /Uncaught SeatError: seat 7 is taken/);
const through = await failure(client.action(api.errors.throughAction, {}));
assert.ok(through instanceof ConvexError);
assert.equal(through.data, "just text");
assert.match(String(await failure(client.query(api.errors.wrongResult, {}))), /ReturnsValidationError/);
assert.match(String(await failure(client.query(api.errors.rejected, {}))), /nobody waits for this/);
assert.match(String(await failure(client.query(api.errors.never, {}))), /Returned promise will never resolve/);
assert.match(String(await failure(client.query(api.errors.fetchInQuery, {}))), /Can't use fetch\(\) in queries and mutations/);
assert.match(String(await failure(client.mutation(api.errors.timerInMutation, {}))), /Can't use setTimeout/);
assert.match(String(await failure(client.mutation(api.messages.sendWrongly, { room, author: ada }))), /does not match the schema/);

// Arguments.
const missing = String(await failure(client.query(api.users.get, {})));
assert.match(missing, /ArgumentValidationError: Object is missing the required field `id`/);
const extra = String(await failure(client.query(api.users.get, { id: ada, more: 1 })));
assert.match(extra, /Object contains extra field `more` that is not in the validator/);
assert.match(String(await failure(client.query(api.users.get, { id: room }))), /Found ID ".*" from table `rooms`/);
assert.match(String(await failure(client.mutation(api.counters.increment, { name: 7 }))), /Value does not match validator/);

// What is not there, or not for clients.
for (const reference of [api.admin.secret, api.users.none, api.none.none, api.lib.text.shorten, api.crons.default]) {
  const hidden = String(await failure(client.query(reference, {})));
  assert.match(hidden, /Could not find public function for '/);
}
assert.match(String(await failure(client.query(api.counters.increment, { name: "x" }))), /is registered as a mutation but is being run as a query/);

// Nested mutations.
const nested = await client.mutation(api.nested.catchInner, { tag: "one" });
assert.deepEqual(nested, { caught: { inner: "one-inner" }, names: ["one-before", "one-after"] });
assert.deepEqual(await client.query(api.nested.names, { tag: "one" }), ["one-before", "one-after"]);
await failure(client.mutation(api.nested.doNotCatch, { tag: "two" }));
assert.deepEqual(await client.query(api.nested.names, { tag: "two" }), []);

// Actions.
assert.deepEqual(await client.action(api.actions.tour, { name: "tour" }), { secret: "42", value: 1, doubled: 2 });
assert.equal(await client.action(api.actions.parallel, { name: "parallel", times: 20 }), 20);
assert.equal(await client.action(api.actions.descend, { name: "deep", depth: 4 }), 1);
assert.equal(await client.action(api.actions.throughHandle, { name: "handle" }), 1);
assert.equal(
  await client.action(api.actions.digest, { text: "abc" }),
  "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
);

// One state for several queries.
const [before, dice] = [Date.now(), await client.query(api.actions.dice, { salt: 1 })];
assert.equal(dice.started, dice.later);
assert.ok(Math.abs(dice.started - before) < 60_000);
assert.equal(await client.consistentQuery(api.counters.get, { name: "tour" }), 1);

// Variables.
assert.equal(await client.query(api.settings.get, { name: "CHAT_ISSUER" }), "https://id.example");
assert.equal(await client.query(api.settings.get, { name: "PATH" }), null);
assert.deepEqual(await client.query(api.settings.urls, {}), { cloud: process.argv[2], site: `${process.argv[2]}/http` });

console.log("all is well");
