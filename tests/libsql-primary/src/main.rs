//! `libsql-primary`: the primary of the tests as a program. It must not know faults; those are for the library's users.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nimbus_libsql_primary::{Options, Primary};

/// A small libSQL primary for tests, on 127.0.0.1.
#[derive(Debug, Parser)]
struct Args {
    /// Directory of the namespaces, one SQLite file each.
    #[arg(long)]
    dir: PathBuf,
    /// Port of Hrana over HTTP; 0: a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Port of the admin API; 0: a free one.
    #[arg(long, default_value_t = 0)]
    admin_port: u16,
    /// What users must send as `Authorization: Bearer T`.
    #[arg(long, value_name = "T")]
    auth_token: Option<String>,
    /// What the admin API expects in `Authorization`, to the letter.
    #[arg(long, value_name = "H")]
    admin_auth_header: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options {
        port: args.port,
        admin_port: args.admin_port,
        auth_token: args.auth_token,
        admin_auth_header: args.admin_auth_header,
        ..Options::default()
    };
    let primary = match Primary::start(args.dir, options) {
        Ok(primary) => primary,
        Err(error) => {
            // Without a standard error there is nowhere to say it.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let urls = serde_json::json!({ "url": primary.url(), "admin_url": primary.admin_url() });
    if writeln!(std::io::stdout(), "{urls}").is_err() {
        return ExitCode::FAILURE;
    }
    // Until a signal ends the process; every commit that was answered is on the disk.
    loop {
        std::thread::park();
    }
}
