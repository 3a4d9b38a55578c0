// What npm's `@libsql/client`, unmodified, does with the primary of the tests: every call that it has over HTTP.
import assert from "node:assert/strict";
import dns from "node:dns";
import { createClient } from "@libsql/client";

const [url, authToken, hasty_url] = process.argv.slice(2);
const client = createClient({ url, authToken });
const fails = (code) => (error) => {
  assert.equal(error.code, code, String(error));
  return true;
};

// Statements and arguments of every type.
await client.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v) ");
let result = await client.execute({ sql: "INSERT INTO t VALUES (?, ?)", args: [1, "one"] });
assert.equal(result.rowsAffected, 1);
assert.equal(result.lastInsertRowid, 1n);
const blob = new Uint8Array([0, 255, 7, 9]);
result = await client.execute({ sql: "SELECT ?, ?, ?, ?, ?, ?", args: [null, 7, 0.5, "ü", blob, true] });
assert.deepEqual(Array.from(result.rows[0]).slice(0, 4), [null, 7, 0.5, "ü"]);
assert.deepEqual(new Uint8Array(result.rows[0][4]), blob);
assert.equal(result.rows[0][5], 1);
result = await client.execute({ sql: "SELECT :a AS x, @b AS y, $c AS z", args: { a: 1, b: "two", c: null } });
assert.deepEqual({ ...result.rows[0] }, { x: 1, y: "two", z: null });
result = await client.execute("SELECT k AS number, v FROM t");
assert.deepEqual([result.columns, result.columnTypes], [["number", "v"], ["INTEGER", ""]]);
await assert.rejects(client.execute("INSERT INTO t VALUES (1, 'again')"), fails("SQLITE_CONSTRAINT_PRIMARYKEY"));
await assert.rejects(client.execute("SELECT * FROM nowhere"), fails("SQLITE_ERROR"));
await assert.rejects(client.execute("ATTACH 'x' AS y"), fails("SQL_PARSE_ERROR"));
await assert.rejects(client.execute({ sql: "SELECT ?, ?", args: [1] }), fails("ARGS_INVALID"));

// 64-bit integers.
const wide = createClient({ url, authToken, intMode: "bigint" });
for (const value of [9223372036854775807n, -9223372036854775808n, 9007199254740993n]) {
  result = await wide.execute({ sql: "SELECT ?", args: [value] });
  assert.equal(result.rows[0][0], value);
}

// Batches: one transaction, all or nothing.
const count = async () => (await client.execute("SELECT count(*) FROM t")).rows[0][0];
const results = await client.batch(
  [{ sql: "INSERT INTO t VALUES (?, ?)", args: [2, blob] }, ["INSERT INTO t VALUES (?, ?)", [3, 0.25]], "SELECT count(*) FROM t"],
  "write",
);
assert.equal(results[2].rows[0][0], 3);
const doubled = client.batch(["INSERT INTO t VALUES (4, 4)", "INSERT INTO t VALUES (4, 4)", "INSERT INTO t VALUES (5, 5)"], "write");
await assert.rejects(doubled, fails("SQLITE_CONSTRAINT_PRIMARYKEY"));
assert.equal(await count(), 3);
await client.migrate(["CREATE TABLE m (k REFERENCES t)", "INSERT INTO m VALUES (77)"]);

// Interactive transactions.
let transaction = await client.transaction("write");
await transaction.execute("INSERT INTO t VALUES (4, 'kept')");
assert.equal((await transaction.execute("SELECT count(*) FROM t")).rows[0][0], 4);
assert.equal(await count(), 3);
await transaction.commit();
assert.equal(await count(), 4);
transaction = await client.transaction("write");
await transaction.batch(["INSERT INTO t VALUES (5, 5)", "INSERT INTO t VALUES (6, 6)"]);
await assert.rejects(transaction.execute("INSERT INTO t VALUES (5, 5)"), fails("SQLITE_CONSTRAINT_PRIMARYKEY"));
await transaction.rollback();
transaction.close();
assert.equal(await count(), 4);
transaction = await client.transaction("read");
assert.equal((await transaction.execute("SELECT count(*) FROM t")).rows[0][0], 4);
transaction.close();

// Writers at once wait for each other, and none loses anything.
const work = async () => {
  const own = createClient({ url, authToken });
  for (let i = 0; i < 8; i++) {
    const own_transaction = await own.transaction("write");
    const { rows } = await own_transaction.execute("SELECT v FROM t WHERE k = 3");
    await own_transaction.execute({ sql: "UPDATE t SET v = ? WHERE k = 3", args: [rows[0].v + 1] });
    await own_transaction.commit();
  }
  own.close();
};
await Promise.all([work(), work(), work()]);
assert.equal((await client.execute("SELECT v FROM t WHERE k = 3")).rows[0].v, 24.25);

// A transaction that is over time loses the lock to whoever waits, and says so.
const hasty = createClient({ url: hasty_url, authToken });
await hasty.execute("CREATE TABLE t (k)");
const slow = await hasty.transaction("write");
await slow.execute("INSERT INTO t VALUES (7)");
await hasty.execute("INSERT INTO t VALUES (8)");
await assert.rejects(slow.commit(), fails("TRANSACTION_TIMEOUT"));
slow.close();
assert.deepEqual(Array.from((await hasty.execute("SELECT k FROM t")).rows[0]), [8]);

// Many statements in one text, of which those before a failure stay.
await client.executeMultiple("CREATE TABLE s (k); INSERT INTO s VALUES (1); INSERT INTO s VALUES (2);");
await assert.rejects(client.executeMultiple("INSERT INTO s VALUES (3); INSERT INTO n VALUES (4)"), fails("SQLITE_ERROR"));
assert.equal((await client.execute("SELECT count(*) FROM s")).rows[0][0], 3);

// Namespaces by host: the names lead to this machine without a resolver.
const lookup = dns.lookup;
dns.lookup = (name, options, done) => lookup(name.endsWith(".libsql.test") ? "127.0.0.1" : name, options, done);
const port = new URL(url).port;
const other = createClient({ url: `http://other.libsql.test:${port}`, authToken });
await other.execute("CREATE TABLE t (k)");
assert.equal((await other.execute("SELECT count(*) FROM t")).rows[0][0], 0);
const nobody = createClient({ url: `http://nobody.libsql.test:${port}`, authToken });
await assert.rejects(nobody.execute("SELECT 1"), /404/);

// Credentials.
await assert.rejects(createClient({ url, authToken: "wrong" }).execute("SELECT 1"), /401/);
for (const each of [client, wide, hasty, other, nobody]) each.close();
console.log("all is well");
