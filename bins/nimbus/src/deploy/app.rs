//! An application on the disk: where its functions are, and which files are modules.
//!
//! The rules are those of the official command line, so that both deploy the same files. This room reads
//! names and the beginnings of files; it must not know how they are bundled or sent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// Extensions of modules; other files are data, or nothing of ours.
const EXTENSIONS: [&str; 8] = ["js", "mjs", "cjs", "ts", "tsx", "mts", "cts", "jsx"];
/// Longest name of a file or directory within a module path (convex.md 1.4).
const MAX_COMPONENT: usize = 64;
/// The directory of functions when convex.json names no other.
const FUNCTIONS: &str = "convex";

/// What is to be bundled. All paths are absolute and without symbolic links.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) dir: PathBuf,
    pub(crate) functions: PathBuf,
    /// Modules, sorted by path.
    pub(crate) entry_points: Vec<PathBuf>,
    pub(crate) schema: Option<PathBuf>,
    pub(crate) auth_config: Option<PathBuf>,
    pub(crate) app_config: Option<PathBuf>,
    /// Files that look like modules and are none, each with the reason.
    pub(crate) skipped: Vec<(String, &'static str)>,
}

/// The members of convex.json that matter here; the others are for other programs.
#[derive(Deserialize)]
struct ConvexJson {
    functions: Option<String>,
}

impl App {
    /// Looks at the application in `dir`.
    pub(crate) fn find(dir: &Path) -> anyhow::Result<App> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("opening the application in {}", dir.display()))?;
        let functions = functions_dir(&dir)?;
        let mut app = App {
            schema: either(&functions, "schema")?,
            auth_config: either(&functions, "auth.config")?,
            app_config: either(&functions, "convex.config")?,
            dir,
            functions,
            entry_points: Vec::new(),
            skipped: Vec::new(),
        };
        app.walk(&app.functions.clone(), "")?;
        app.check()?;
        Ok(app)
    }

    /// Takes in what lies in `dir`, whose path within the functions is `within`.
    fn walk(&mut self, dir: &Path, within: &str) -> anyhow::Result<()> {
        let reading = || format!("reading {}", dir.display());
        let entries = std::fs::read_dir(dir).with_context(reading)?;
        let mut found = entries
            .collect::<Result<Vec<_>, _>>()
            .with_context(reading)?;
        found.sort_by_key(std::fs::DirEntry::file_name);
        for entry in found {
            let kind = entry.file_type().with_context(reading)?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                bail!("{} has a name that is not UTF-8", path.display());
            };
            let relative = format!("{within}{name}");
            if kind.is_dir() {
                if !is_skipped_directory(&path, &relative, &name) {
                    self.walk(&path, &format!("{relative}/"))?;
                }
            } else if kind.is_file() {
                self.file(path, relative, &name)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, relative: String, name: &str) -> anyhow::Result<()> {
        let Some((stem, extension)) = name.rsplit_once('.') else {
            return Ok(());
        };
        if !EXTENSIONS.contains(&extension) {
            return Ok(());
        }
        let why = if name.starts_with('.') || name.starts_with('#') {
            "its name begins like that of a temporary file"
        } else if matches!(name, "schema.ts" | "schema.js") {
            // The schema itself is sent apart.
            return Ok(());
        } else if within_root(&relative) && matches!(stem, "auth.config" | "convex.config") {
            return Ok(());
        } else if stem.contains('.') {
            "its name has several dots"
        } else if relative.contains(' ') {
            "its path contains a space"
        } else if matches!(extension, "ts" | "tsx") && !is_module(&read(&path)?) {
            "it neither imports nor exports anything"
        } else {
            self.entry_points.push(path);
            return Ok(());
        };
        self.skipped.push((relative, why));
        Ok(())
    }

    /// Refuses names that no function could be called by, two files of one name, and files for Node.js.
    fn check(&self) -> anyhow::Result<()> {
        let mut seen: BTreeMap<String, &Path> = BTreeMap::new();
        for path in &self.entry_points {
            let shown = self.shown(path);
            let module = path.with_extension("");
            let module = module.strip_prefix(&self.functions).unwrap_or(&module);
            for component in module.components() {
                check_component(&component.as_os_str().to_string_lossy(), &shown)?;
            }
            let module = module.display().to_string();
            if let Some(other) = seen.insert(module.clone(), path) {
                bail!(
                    "{} and {shown} are both the module `{module}`; choose one",
                    self.shown(other)
                );
            }
            if uses_node(&read(path)?) {
                bail!(
                    "{shown} begins with \"use node\", and functions do not run in Node.js here; remove the \
                     directive if the module needs nothing of Node.js, or leave the file out"
                );
            }
        }
        if self.entry_points.is_empty() && self.schema.is_none() {
            bail!(
                "there is no module in {}, and no schema: nothing to deploy",
                self.functions.display()
            );
        }
        Ok(())
    }

    /// A path as messages show it: from the application's directory.
    pub(crate) fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.dir)
            .unwrap_or(path)
            .display()
            .to_string()
    }
}

fn functions_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    let file = dir.join("convex.json");
    let named = match std::fs::read_to_string(&file) {
        Ok(text) => {
            let json: ConvexJson = serde_json::from_str(&text)
                .with_context(|| format!("reading {}", file.display()))?;
            json.functions
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    let functions = dir.join(named.as_deref().unwrap_or(FUNCTIONS));
    match functions.canonicalize() {
        Ok(found) if found.is_dir() => Ok(found),
        _ if named.is_some() => bail!(
            "{} is not a directory, and the member `functions` of convex.json names it",
            functions.display()
        ),
        _ => bail!(
            "{} is not a directory; name the application with --app-dir, or its functions in convex.json",
            functions.display()
        ),
    }
}

/// `<name>.ts` or `<name>.js`, whichever is there.
fn either(dir: &Path, name: &str) -> anyhow::Result<Option<PathBuf>> {
    let [ts, js] = ["ts", "js"].map(|extension| dir.join(format!("{name}.{extension}")));
    match (ts.is_file(), js.is_file()) {
        (true, true) => bail!(
            "there are both {} and {}; choose one",
            ts.display(),
            js.display()
        ),
        (true, false) => Ok(Some(ts)),
        (false, true) => Ok(Some(js)),
        (false, false) => Ok(None),
    }
}

/// Generated code, packages, hidden directories, and components, which are not deployed by lying there.
fn is_skipped_directory(path: &Path, relative: &str, name: &str) -> bool {
    relative == "_generated"
        || name == "node_modules"
        || name.starts_with('.')
        || path.join("convex.config.ts").is_file()
}

/// Whether a file lies directly in the directory of functions.
fn within_root(relative: &str) -> bool {
    !relative.contains('/')
}

/// The rule for a component of a module path (convex.md 1.4).
fn check_component(name: &str, shown: &str) -> anyhow::Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
        bail!(
            "{shown} cannot be deployed: {bad:?} in `{name}` may not be part of a module path; use letters, \
             digits, `_` and `.`"
        );
    }
    if !name.chars().any(|c| c.is_ascii_alphanumeric()) {
        bail!("{shown} cannot be deployed: `{name}` has no letter and no digit");
    }
    if name.len() > MAX_COMPONENT {
        bail!("{shown} cannot be deployed: `{name}` is longer than {MAX_COMPONENT} characters");
    }
    if name == "_deps" {
        bail!(
            "{shown} cannot be deployed: `_deps` is the place of what modules share; use another directory"
        );
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    // What is not UTF-8 is for the bundler to refuse, with line and column.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a line begins with `import` or `export`: without, TypeScript takes the file for a script.
fn is_module(text: &str) -> bool {
    text.lines()
        .map(str::trim_start)
        .any(|line| line.starts_with("import") || line.starts_with("export"))
}

/// Whether the directive `"use node"` is among those that a module begins with.
fn uses_node(text: &str) -> bool {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    if rest.starts_with("#!") {
        rest = rest.split_once('\n').map_or("", |(_, after)| after);
    }
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        if let Some(comment) = rest.strip_prefix("//") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else if let Some(quote) = rest.chars().next().filter(|c| matches!(c, '"' | '\'')) {
            let Some((directive, after)) = rest[1..].split_once(quote) else {
                return false;
            };
            if directive == "use node" {
                return true;
            }
            rest = after;
        } else {
            return false;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn app(files: &[(&str, &str)]) -> (tempfile::TempDir, anyhow::Result<App>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = App::find(dir.path());
        (dir, found)
    }

    const X: &str = "export const x = 1;";

    #[test]
    fn modules_are_the_files_that_the_official_command_line_takes() {
        let (_dir, found) = app(&[
            ("convex/messages.ts", X),
            ("convex/plain.js", ""),
            ("convex/http.tsx", X),
            ("convex/a/b/deep.mts", X),
            ("convex/schema.ts", X),
            ("convex/auth.config.ts", X),
            ("convex/messages.test.ts", X),
            ("convex/types.d.ts", X),
            ("convex/_generated/api.js", X),
            ("convex/a/_generated/kept.js", X),
            ("convex/node_modules/p/index.js", X),
            ("convex/.hidden/x.ts", X),
            ("convex/.x.ts", X),
            ("convex/#x.ts", X),
            ("convex/with space.ts", X),
            ("convex/empty.ts", "// nothing yet"),
            ("convex/part/convex.config.ts", X),
            ("convex/part/inner.ts", X),
            ("convex/README.md", ""),
            ("convex/data.json", "{}"),
        ]);
        let found = found.unwrap();
        let shown: Vec<_> = found
            .entry_points
            .iter()
            .map(|path| found.shown(path))
            .collect();
        let wanted = [
            "a/_generated/kept.js",
            "a/b/deep.mts",
            "http.tsx",
            "messages.ts",
            "plain.js",
        ];
        assert_eq!(shown, wanted.map(|name| format!("convex/{name}")));
        assert_eq!(found.schema, Some(found.functions.join("schema.ts")));
        assert_eq!(
            found.auth_config,
            Some(found.functions.join("auth.config.ts"))
        );
        assert_eq!(found.app_config, None);
        let skipped: Vec<_> = found
            .skipped
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let wanted = [
            "#x.ts",
            ".x.ts",
            "empty.ts",
            "messages.test.ts",
            "types.d.ts",
            "with space.ts",
        ];
        assert_eq!(skipped, wanted);
    }

    #[test]
    fn convex_json_names_the_directory() {
        let (_dir, found) = app(&[
            (
                "convex.json",
                r#"{"functions": "src/server/", "node": {"nodeVersion": "22"}}"#,
            ),
            ("src/server/a.ts", X),
        ]);
        let found = found.unwrap();
        assert_eq!(found.shown(&found.entry_points[0]), "src/server/a.ts");
    }

    #[test]
    fn what_cannot_be_deployed_is_named() {
        let long = format!("convex/{}.ts", "a".repeat(65));
        let cases: &[(&[(&str, &str)], &str)] = &[
            (
                &[("package.json", "{}")],
                "convex is not a directory; name the application with --app-dir",
            ),
            (
                &[("convex.json", "{\"functions\": \"src\"}")],
                "the member `functions` of convex.json names it",
            ),
            (&[("convex.json", "{")], "convex.json"),
            (&[("convex/readme.md", "")], "nothing to deploy"),
            (
                &[("convex/my-file.ts", X)],
                "convex/my-file.ts cannot be deployed: '-' in `my-file`",
            ),
            (&[("convex/é/a.ts", X)], "'é' in `é`"),
            (&[("convex/___.ts", X)], "`___` has no letter and no digit"),
            (&[(&long, X)], "is longer than 64 characters"),
            (
                &[("convex/_deps/a.ts", X)],
                "`_deps` is the place of what modules share",
            ),
            (
                &[("convex/a.ts", X), ("convex/a.js", X)],
                "convex/a.js and convex/a.ts are both the module `a`",
            ),
            (
                &[("convex/schema.ts", X), ("convex/schema.js", X)],
                "choose one",
            ),
            (
                &[("convex/a.ts", "\"use node\";\nexport const x = 1;")],
                "convex/a.ts begins with \"use node\"",
            ),
        ];
        for (files, text) in cases {
            let error = format!("{:#}", app(files).1.unwrap_err());
            assert!(error.contains(text), "{text:?} is not in {error:?}");
        }
    }

    #[test]
    fn the_directive_counts_at_the_beginning_only() {
        for text in [
            "\"use node\"",
            "'use node';",
            "// hello\n/* a\n b */ \"use strict\"; 'use node'\nimport x from 'y'",
            "#!/usr/bin/env node\n\n\"use node\";",
            "\u{feff}\"use node\"",
        ] {
            assert!(uses_node(text), "{text}");
        }
        for text in [
            "",
            "// \"use node\"",
            "import x from 'y'; \"use node\"",
            "/* \"use node\" ",
            "\"use",
            "f('use node')",
        ] {
            assert!(!uses_node(text), "{text}");
        }
    }
}
