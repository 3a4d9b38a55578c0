//! The JavaScript of extensions, from the binary and not from the machine that built it (see `build.rs`).
//! Must not know what the scripts do.

use std::borrow::Cow;

use deno_core::{
    Extension, ExtensionFileSource, ExtensionFileSourceCode, FastStaticString, ascii_str_include,
};

/// Where each file was when deno_core was compiled, and what it says.
const SOURCES: &[(&str, FastStaticString)] = include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// The extension with its files from the binary.
pub(crate) fn embedded(mut extension: Extension) -> Extension {
    for files in [
        &mut extension.js_files,
        &mut extension.esm_files,
        &mut extension.lazy_loaded_js_files,
        &mut extension.lazy_loaded_esm_files,
    ] {
        embed(files);
    }
    extension
}

fn embed(files: &mut Cow<'static, [ExtensionFileSource]>) {
    for file in files.to_mut() {
        if let ExtensionFileSourceCode::LoadedFromFsDuringSnapshot(path) = file.code
            && let Some((_, source)) = SOURCES.iter().find(|(known, _)| *known == path)
        {
            *file = ExtensionFileSource::new(file.specifier, *source);
        }
    }
}
