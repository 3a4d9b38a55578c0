//! The bundle's modules in one realm: compiled from the deployed files, linked by their relative imports.
//!
//! Specifiers are `convex:/<path>`; nothing else resolves. Compiled code is kept from call to call, modules are not.

use deno_core::v8;
use v8::script_compiler::{CachedData, CompileOptions, NoCacheReason, Source};

use super::session;

/// What stands before a path in a specifier.
pub(crate) const SCHEME: &str = "convex:/";
/// Modules that one import may lead to.
const MAX_MODULES: usize = 4_096;

/// Why a module could not be imported.
pub(crate) enum ImportError {
    /// JavaScript threw; the exception is with the caller's `TryCatch`.
    Thrown,
    /// Our own refusal.
    Refused(String),
}

/// The path that `specifier` means in the file `referrer`.
fn resolve(specifier: &str, referrer: &str) -> Result<String, String> {
    if let Some(path) = specifier.strip_prefix(SCHEME) {
        return Ok(path.to_owned());
    }
    if !specifier.starts_with("./") && !specifier.starts_with("../") {
        return Err(format!(
            "cannot import `{specifier}` in {referrer}: only files of the bundle can be imported"
        ));
    }
    let mut segments: Vec<&str> = referrer.split('/').collect();
    segments.pop();
    for segment in specifier.split('/') {
        match segment {
            "." | "" => {}
            ".." => {
                if segments.pop().is_none() {
                    return Err(format!(
                        "`{specifier}` in {referrer} leads out of the bundle"
                    ));
                }
            }
            other => segments.push(other),
        }
    }
    Ok(segments.join("/"))
}

/// Imports `path` and what it needs, and evaluates it. Returns its namespace.
pub(crate) fn import<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    path: &str,
) -> Result<v8::Local<'s, v8::Object>, ImportError> {
    let module = match find(scope, path) {
        Some(known) => known,
        None => load(scope, path)?,
    };
    if module.get_status() == v8::ModuleStatus::Uninstantiated
        && module.instantiate_module(scope, linked).is_none()
    {
        return Err(ImportError::Thrown);
    }
    if module.is_graph_async() {
        return Err(ImportError::Refused(format!(
            "{path}: top-level await is not supported"
        )));
    }
    module.evaluate(scope).ok_or(ImportError::Thrown)?;
    scope.perform_microtask_checkpoint();
    if module.get_status() == v8::ModuleStatus::Errored {
        let exception = module.get_exception();
        scope.throw_exception(exception);
        // The promise of the evaluation says the same; once is enough.
        session::frame(|frame| frame.unhandled.clear());
        return Err(ImportError::Thrown);
    }
    v8::Local::<v8::Object>::try_from(module.get_module_namespace())
        .map_err(|_| ImportError::Refused(format!("{path} has no namespace")))
}

/// Imports what `specifier` means in the module named `referrer`.
pub(crate) fn import_from<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    specifier: &str,
    referrer: &str,
) -> Result<v8::Local<'s, v8::Object>, ImportError> {
    let referrer = referrer.strip_prefix(SCHEME).unwrap_or(referrer);
    let path = resolve(specifier, referrer).map_err(ImportError::Refused)?;
    import(scope, &path)
}

/// The module of `path` in this realm, with everything that it imports compiled.
fn load<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    path: &str,
) -> Result<v8::Local<'s, v8::Module>, ImportError> {
    let mut wanted = vec![path.to_owned()];
    while let Some(path) = wanted.pop() {
        let known =
            session::frame(|frame| (frame.modules.contains_key(&path), frame.modules.len()));
        match known {
            Some((true, _)) => continue,
            Some((false, n)) if n < MAX_MODULES => {}
            _ => return Err(ImportError::Refused("too many modules".to_owned())),
        }
        let module = compile(scope, &path)?;
        let requests = module.get_module_requests();
        for at in 0..requests.length() {
            let request = requests
                .get(scope, at)
                .and_then(|r| v8::Local::<v8::ModuleRequest>::try_from(r).ok());
            let Some(request) = request else { continue };
            let specifier = request.get_specifier().to_rust_string_lossy(scope);
            wanted.push(resolve(&specifier, &path).map_err(ImportError::Refused)?);
        }
        let hash = module.get_identity_hash().get();
        let kept = v8::Global::new(scope, module);
        session::frame(|frame| {
            frame.modules.insert(path.clone(), kept);
            frame.paths.entry(hash).or_default().push(path);
        });
    }
    find(scope, path).ok_or_else(|| ImportError::Refused(format!("{path} was not loaded")))
}

fn find<'s>(scope: &mut v8::PinScope<'s, '_>, path: &str) -> Option<v8::Local<'s, v8::Module>> {
    let module = session::frame(|frame| frame.modules.get(path).cloned())??;
    Some(v8::Local::new(scope, module))
}

fn compile<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    path: &str,
) -> Result<v8::Local<'s, v8::Module>, ImportError> {
    let file = session::with(|session| session.file(path))
        .ok_or_else(|| ImportError::Refused(format!("the bundle has no module `{path}`")))?;
    let too_long = || ImportError::Refused(format!("{path} is too long"));
    let text = v8::String::new(scope, &file.source).ok_or_else(too_long)?;
    let name = v8::String::new(scope, &format!("{SCHEME}{path}")).ok_or_else(too_long)?;
    let origin = v8::ScriptOrigin::new(
        scope,
        name.into(),
        0,
        0,
        false,
        0,
        None,
        false,
        false,
        true,
        None,
    );
    let cache = file.cache.borrow();
    let (mut source, options) = match cache.as_deref() {
        Some(cache) => (
            Source::new_with_cached_data(text, Some(&origin), CachedData::new(cache)),
            CompileOptions::ConsumeCodeCache,
        ),
        None => (
            Source::new(text, Some(&origin)),
            CompileOptions::NoCompileOptions,
        ),
    };
    v8::script_compiler::compile_module2(scope, &mut source, options, NoCacheReason::NoReason)
        .ok_or(ImportError::Thrown)
}

/// Keeps what was compiled for the next call: after a run, when the functions that it needed are in it.
pub(crate) fn keep_compiled(scope: &mut v8::PinScope<'_, '_>) {
    let modules = session::frame(|frame| std::mem::take(&mut frame.modules)).unwrap_or_default();
    for (path, module) in modules {
        let Some(file) = session::with(|session| session.file(&path)) else {
            continue;
        };
        if file.cache.borrow().is_some() {
            continue;
        }
        let module = v8::Local::new(scope, module);
        let compiled = module.get_unbound_module_script(scope).create_code_cache();
        *file.cache.borrow_mut() = compiled.map(|data| data.to_vec());
    }
}

/// What an import in a module leads to; all of it was compiled before linking began.
fn linked<'s>(
    context: v8::Local<'s, v8::Context>,
    specifier: v8::Local<'s, v8::String>,
    _: v8::Local<'s, v8::FixedArray>,
    referrer: v8::Local<'s, v8::Module>,
) -> Option<v8::Local<'s, v8::Module>> {
    v8::callback_scope!(unsafe scope, context);
    let specifier = specifier.to_rust_string_lossy(scope);
    let hash = referrer.get_identity_hash().get();
    let candidates = session::frame(|frame| frame.paths.get(&hash).cloned())??;
    let path = candidates
        .into_iter()
        .find(|path| find(scope, path).is_some_and(|module| module == referrer))?;
    find(scope, &resolve(&specifier, &path).ok()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::resolve;

    #[test]
    fn imports_are_relative_and_stay_in_the_bundle() {
        let at = |specifier: &str, referrer: &str| resolve(specifier, referrer).ok();
        assert_eq!(at("./_deps/A.js", "a.js").as_deref(), Some("_deps/A.js"));
        assert_eq!(
            at("../_deps/A.js", "dir/a.js").as_deref(),
            Some("_deps/A.js")
        );
        assert_eq!(
            at("./b.js", "dir/sub/a.js").as_deref(),
            Some("dir/sub/b.js")
        );
        assert_eq!(at("convex:/b.js", "dir/a.js").as_deref(), Some("b.js"));
        for outside in [
            "node:fs",
            "fs",
            "../../b.js",
            "https://x/b.js",
            "/b.js",
            "data:text/javascript,1",
        ] {
            assert_eq!(at(outside, "dir/a.js"), None, "{outside}");
        }
    }
}
