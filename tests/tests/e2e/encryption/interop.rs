//! A reader that is not ours: `sqlcipher3` from PyPI opens a tenant file with the key that its manifest
//! wraps, unwrapped here by the documented formats alone.

use nimbus_e2e::python::python;

use super::{Vault, canary, fill};

/// Unwraps by ARCHITECTURE.md: HKDF-SHA256 without salt, AES-256-GCM-SIV, length-prefixed fields.
const SCRIPT: &str = r#"
import base64, hashlib, hmac, json, sys
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from sqlcipher3 import dbapi2

key_file, database = sys.argv[1:]
master = open(key_file, "rb").read()
manifest = json.load(open(database + ".nimbus-enc"))
assert manifest["version"] == 1 and manifest["cipher"] == "sqlcipher-4"

prk = hmac.new(bytes(32), master, hashlib.sha256).digest()
info = b"nimbus wrapping key v1\0" + manifest["subject"].encode()
wrapping = hmac.new(prk, info + b"\x01", hashlib.sha256).digest()

current = manifest["current"]
fields = [b"nimbus-enc wrapped key", (1).to_bytes(4, "big"), manifest["subject"].encode(),
          bytes.fromhex(manifest["fileId"]), manifest["cipher"].encode(),
          manifest["createdAt"].to_bytes(8, "big"), b"current", current["provider"].encode(),
          current["keyId"].encode(), current["algorithm"].encode()]
aad = b"".join(len(field).to_bytes(8, "big") + field for field in fields)
wrapped = base64.b64decode(current["wrappedKey"])
dek = AESGCMSIV(wrapping).decrypt(wrapped[:12], wrapped[12:], aad)

connection = dbapi2.connect(database)
connection.execute("PRAGMA key = \"x'%s'\"" % dek.hex())
for (text,) in connection.execute("SELECT value FROM docs"):
    print(json.loads(text)["text"])
"#;

#[test]
fn sqlcipher_of_others_reads_our_file() {
    let vault = Vault::new();
    let mut server = vault.start();
    fill(&server, "demo");
    assert!(server.terminate().success());
    let output = python()
        .args(["-c", SCRIPT])
        .arg(vault.path("master.key"))
        .arg(vault.file("demo.sqlite3"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        canary("demo")
    );
}
