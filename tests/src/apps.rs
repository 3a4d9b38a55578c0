//! Applications that tests deploy: npm projects of `tests/apps`, each test with a copy of its own.
//!
//! Their packages are installed once, by `cargo xtask setup`, into `apps/node_modules` of the build directory.
//! Copies lie beside it, so that Node.js finds the packages as it would in the project itself, and so that
//! what a bundle says about paths is the same in every test. It must not know what is deployed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::home::{Finished, Home};
use crate::server::Server;

/// A copy of an application, removed when dropped.
#[derive(Debug)]
pub struct App {
    dir: TempDir,
}

impl App {
    /// A copy of `tests/apps/<name>`.
    pub fn named(name: &str) -> App {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("apps")
            .join(name);
        let dir = TempDir::with_prefix_in(format!("{name}-"), installed()).unwrap();
        copy(&source, dir.path());
        App { dir }
    }

    /// An application of these files and no others.
    pub fn of(files: &[(&str, &str)]) -> App {
        let dir = TempDir::with_prefix_in("made-", installed()).unwrap();
        let app = App { dir };
        for (path, text) in files {
            app.write(path, text);
        }
        app
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes or replaces a file.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Replaces a text within a file, which must be there.
    pub fn edit(&self, path: &str, old: &str, new: &str) {
        let text = fs::read_to_string(self.path().join(path)).unwrap();
        assert!(text.contains(old), "{old:?} is not in {path}");
        self.write(path, &text.replace(old, new));
    }

    /// Removes a file.
    pub fn remove(&self, path: &str) {
        fs::remove_file(self.path().join(path)).unwrap();
    }

    /// `nimbus deploy` with more arguments, by the user of the server.
    pub fn deploy(&self, server: &Server, tenant: &str, more: &[&str]) -> Finished {
        let dir = self.path().to_str().unwrap();
        let base = server.base();
        let mut args = vec![
            "deploy",
            "--app-dir",
            dir,
            "--tenant",
            tenant,
            "--url",
            &base,
        ];
        args.extend(more);
        server.home().run(args)
    }

    /// The same, which must succeed; its answer as JSON.
    pub fn deployed(&self, server: &Server, tenant: &str) -> Json {
        self.deploy(server, tenant, &["-f", "json"])
            .expect(0)
            .json()
    }

    /// Runs a script with Node.js, as a module of the application: what it imports are its packages.
    pub fn node(&self, home: &Home, script: &str, args: &[&str]) -> Finished {
        let mut command = home.program("node", ["--input-type=module", "-"]);
        command.args(args).current_dir(self.path());
        with_input(&mut command, script)
    }
}

/// Runs a command to its end with `input` as its standard input.
pub fn with_input(command: &mut Command, input: &str) -> Finished {
    // A file, since a pipe would have to be filled by a thread.
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, input.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    Finished::of(command.stdin(Stdio::from(file)))
}

/// `<target>/apps`, counted from `<target>/<profile>/deps/<this test>`.
fn installed() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let dir = this
        .ancestors()
        .nth(3)
        .unwrap_or(Path::new("."))
        .join("apps");
    assert!(
        dir.join("node_modules/convex/package.json").is_file(),
        "the packages of the tests' applications are not in {}: `cargo xtask setup` installs them",
        dir.display()
    );
    dir
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_name() == "node_modules" {
            // Left there by somebody who ran npm in the checkout.
        } else if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
