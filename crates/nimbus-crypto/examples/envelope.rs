//! Shows an embedder's round: a key file, a manifest beside a file of encrypted pages, opening it
//! again, and what a changed byte does. Run with `cargo run -p nimbus-crypto --example envelope`.
//! Must not be taken for a storage engine: it writes one page.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use nimbus_crypto::{
    Dek, Manifest, MasterKeyFile, PAGE_BYTES, PageCipher, SLOT_BYTES, Subject, manifest_path,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("demo.redb");
    let key_file = dir.path().join("master.key");

    // An operator does this once, outside the data directory: openssl rand -out master.key 32
    fs::write(&key_file, Dek::generate()?.expose_secret())?;
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o400))?;

    let provider = MasterKeyFile::open(&key_file)?;
    let subject = Subject::redb_tenant("demo")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let (manifest, key) = Manifest::create(&provider, subject.clone(), now).await?;
    manifest.write_new(&file)?;

    let mut page = [0; PAGE_BYTES];
    page[..5].copy_from_slice(b"hello");
    let mut slot = [0; SLOT_BYTES];
    PageCipher::new(&key, manifest.file_id()).seal(0, &page, &mut slot)?;
    fs::write(&file, slot)?;
    drop(key);

    println!("{}", fs::read_to_string(manifest_path(&file))?);

    let manifest = Manifest::read(&file, &subject)?;
    let keys = manifest.unlock(&provider, &subject).await?;
    let cipher = PageCipher::new(&keys.current, manifest.file_id());
    let mut slot: [u8; SLOT_BYTES] = fs::read(&file)?.as_slice().try_into()?;
    let mut opened = [0; PAGE_BYTES];
    cipher.open(0, &slot, &mut opened)?;
    println!("page 0: {}", String::from_utf8_lossy(&opened[..5]));

    slot[100] ^= 1;
    if let Err(error) = cipher.open(0, &slot, &mut opened) {
        println!("one bit changed: {error}");
    }
    Ok(())
}
