// Functions without the package: what a bundle of it looks like from the server's side (convex.md 5.2), so
// that a test says itself which syscalls are made.
const text = async (handler, args) => JSON.stringify((await handler(JSON.parse(args)[0])) ?? null);
const made = (kind, invoke, handler, visibility = "isPublic") =>
  Object.assign(() => {}, {
    [kind]: true,
    [visibility]: true,
    [invoke]: (...args) => text(handler, args.at(-1)),
    exportArgs: () => '{"type":"any"}',
    exportReturns: () => "null",
  });
const query = (handler, visibility) => made("isQuery", "invokeQuery", handler, visibility);
const mutation = (handler) => made("isMutation", "invokeMutation", handler);
const action = (handler) => made("isAction", "invokeAction", handler);
const ask = async (op, args) =>
  JSON.parse(await Convex.asyncSyscall(`1.0/${op}`, JSON.stringify({ version: "1.48.0", requestId: "r", ...args })));
const run = (udfType, name, args = {}) => ask("runUdf", { udfType, name, args });
const all = async () => {
  const query = { source: { type: "FullTableScan", tableName: "notes", order: "asc" }, operators: [] };
  const { queryId } = JSON.parse(Convex.syscall("1.0/queryStream", JSON.stringify({ query, version: "1.48.0" })));
  const found = [];
  for (;;) {
    const { value, done } = await ask("queryStreamNext", { queryId });
    if (done) return found;
    found.push(value.text);
  }
};

export const list = query(all);
export const variable = query(() => process.env.NAME ?? "unset");
export const version = query(() => "first");
export const chance = query(() => Math.random());
export const who = query(async () => (await ask("getUserIdentity", {}))?.subject ?? "nobody");
export const slow = query(() => {
  let sum = 0;
  for (let i = 0; i < 5e7; i++) sum += i;
  return sum;
});
export const secret = query(() => "inside", "isInternal");
export const add = mutation(({ text }) => ask("insert", { table: "notes", value: { text } }).then(() => null));
export const fail = mutation(async () => {
  await ask("insert", { table: "notes", value: { text: "never" } });
  throw new Error("no");
});
export const mixed = mutation(async () => {
  await ask("insert", { table: "notes", value: { text: "own" } });
  const caught = await run("mutation", "bare:fail").catch((error) => error.message.split("\n")[0]);
  const before = await run("snapshotQuery", "bare:list");
  const now = await run("query", "bare:list");
  await run("mutation", "bare:add", { text: "child" });
  return { caught, before, now };
});
export const deep = mutation(({ left }) => (left === 0 ? 0 : run("mutation", "bare:deep", { left: left - 1 })));
export const chain = action(async ({ left }) => {
  const inside = await ask("actions/query", { name: "bare:secret", args: {} });
  const who = await ask("actions/query", { name: "bare:who", args: {} });
  await ask("actions/mutation", { name: "bare:add", args: { text: `level ${left}` } });
  const below = left === 0 ? [] : await ask("actions/action", { name: "bare:chain", args: { left: left - 1 } });
  return [`${inside} ${who}`, ...below];
});
export const unknown = query(async () => {
  const tried = [];
  for (const op of ["nothing", "insert", "schedule"]) await ask(op, {}).catch((error) => tried.push(error.message));
  return tried;
});
