//! The baseline of functions: `workerd`, the runtime of Cloudflare Workers, from the npm package.
//!
//! It knows how such a server is configured and started, and not what its functions do.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{self, Site};

/// Longest time until it listens.
const LIMIT: Duration = Duration::from_secs(30);

/// A running workerd. Each of its workers listens at an address of its own.
#[derive(Debug)]
pub(crate) struct Workerd {
    child: Child,
    addresses: Vec<SocketAddr>,
}

impl Workerd {
    /// Starts `program` with `count` workers that are each made from `script`.
    pub(crate) fn start(
        program: &Path,
        site: &Site,
        script: &str,
        count: usize,
        cpu: Option<usize>,
    ) -> Result<Workerd> {
        let addresses = free_addresses(count)?;
        std::fs::write(site.path().join("worker.js"), script)?;
        let config = site.path().join("config.capnp");
        std::fs::write(&config, configuration(&addresses))?;
        let mut command = site.command(program);
        command.arg("serve").arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = process::spawn(command, cpu)?;
        let mut server = Workerd { child, addresses };
        server.wait()?;
        Ok(server)
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "workerd does not say when it listens"
    )]
    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        for address in &self.addresses {
            while TcpStream::connect(address).is_err() {
                if let Some(status) = self.child.try_wait()? {
                    bail!("workerd ended at once: {status}");
                }
                if Instant::now() > deadline {
                    bail!("workerd did not listen within {LIMIT:?}");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        self.child.wait().context("workerd did not end")?;
        Ok(())
    }
}

impl Drop for Workerd {
    fn drop(&mut self) {
        // Ended already where it was stopped.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Ports that nobody listens at; held together, so that they differ.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let addresses = held.iter().map(TcpListener::local_addr);
    Ok(addresses.collect::<Result<_, _>>()?)
}

fn configuration(addresses: &[SocketAddr]) -> String {
    let mut text = String::from("using Workerd = import \"/workerd/workerd.capnp\";\n");
    text.push_str("const config :Workerd.Config = (\n  services = [\n");
    for at in 0..addresses.len() {
        // Writing into a text does not fail.
        let _ = writeln!(text, "    (name = \"w{at}\", worker = .worker),");
    }
    text.push_str("  ],\n  sockets = [\n");
    for (at, address) in addresses.iter().enumerate() {
        let _ = writeln!(
            text,
            "    (name = \"s{at}\", address = \"{address}\", http = (), service = \"w{at}\"),"
        );
    }
    text.push_str("  ],\n);\nconst worker :Workerd.Worker = (\n");
    text.push_str("  modules = [(name = \"worker.js\", esModule = embed \"worker.js\")],\n");
    text.push_str("  compatibilityDate = \"2026-01-01\",\n);\n");
    text
}
