//! From positions in bundled files to positions in the developer's: stack lines through source maps.

use std::collections::HashMap;
use std::rc::Rc;

use sourcemap::SourceMap;

/// Longest stack that is shown, in lines.
const MAX_LINES: usize = 50;

enum Map {
    Text(String),
    Parsed(Option<Rc<SourceMap>>),
}

/// The source maps of a bundle, parsed when they are needed.
#[derive(Default)]
pub(crate) struct SourceMaps {
    maps: HashMap<String, Map>,
}

impl SourceMaps {
    pub(crate) fn add(&mut self, path: &str, map: String) {
        self.maps.insert(path.to_owned(), Map::Text(map));
    }

    fn get(&mut self, path: &str) -> Option<Rc<SourceMap>> {
        let slot = self.maps.get_mut(path)?;
        if let Map::Text(text) = slot {
            // A map that does not parse leaves the positions of the bundle, which is still a stack.
            *slot = Map::Parsed(SourceMap::from_slice(text.as_bytes()).ok().map(Rc::new));
        }
        match slot {
            Map::Parsed(map) => map.clone(),
            Map::Text(_) => None,
        }
    }

    /// Where a position (from 1) of a bundled file was written.
    pub(crate) fn original(&mut self, path: &str, line: u32, column: u32) -> (String, u32, u32) {
        let bundled = || (format!("../convex/{path}"), line, column);
        let Some(map) = self.get(path) else {
            return bundled();
        };
        let token = map.lookup_token(line.saturating_sub(1), column.saturating_sub(1));
        match token.and_then(|t| t.get_source().map(|s| (s, t))) {
            Some((source, token)) => (
                shown(source),
                token.get_src_line() + 1,
                token.get_src_col() + 1,
            ),
            None => bundled(),
        }
    }

    /// The lines of an error's `stack` that lie in the bundle, in the developer's positions.
    pub(crate) fn stack(&mut self, stack: &str) -> String {
        let mut out = String::new();
        let frames = stack.lines().filter_map(frame).take(MAX_LINES);
        for (function, path, line, column) in frames {
            let (source, line, column) = self.original(path, line, column);
            out.push_str(&format!("    at {function} ({source}:{line}:{column})\n"));
        }
        out
    }
}

/// `../convex/messages.ts`, wherever the bundler stood.
fn shown(source: &str) -> String {
    let mut rest = source;
    while let Some(inner) = rest.strip_prefix("../").or_else(|| rest.strip_prefix("./")) {
        rest = inner;
    }
    format!("../{rest}")
}

/// `    at async fn (convex:/messages.js:3:9)` as its parts.
fn frame(line: &str) -> Option<(&str, &str, u32, u32)> {
    let rest = line.trim_start().strip_prefix("at ")?;
    let (function, place) = match rest.rsplit_once(" (") {
        Some((function, place)) => (function, place.strip_suffix(')')?),
        None => match rest.strip_prefix("async ") {
            Some(place) => ("async <anonymous>", place),
            None => ("<anonymous>", rest),
        },
    };
    let place = place.strip_prefix(super::modules::SCHEME)?;
    let (place, column) = place.rsplit_once(':')?;
    let (path, line) = place.rsplit_once(':')?;
    Some((function, path, line.parse().ok()?, column.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn stack_lines_of_the_bundle_are_mapped_and_others_left_out() {
        let mut maps = SourceMaps::default();
        // Line 1, column 1 of a.js is line 3, column 5 of ../../convex/a.ts.
        let map = r#"{"version":3,"sources":["../../convex/a.ts"],"names":[],"mappings":"AAEI"}"#;
        maps.add("a.js", map.to_owned());
        let stack = "Error: x\n    at f (convex:/a.js:1:9)\n    at async convex:/b.js:7:2\n    at native (common.js:1:1)\n    at convex:/b.js:1:1";
        assert_eq!(
            maps.stack(stack),
            "    at f (../convex/a.ts:3:5)\n    at async <anonymous> (../convex/b.js:7:2)\n    at <anonymous> (../convex/b.js:1:1)\n"
        );
    }

    #[test]
    fn a_map_that_is_none_leaves_the_bundles_positions() {
        let mut maps = SourceMaps::default();
        maps.add("a.js", "{".to_owned());
        assert_eq!(maps.original("a.js", 4, 2), ("../convex/a.js".into(), 4, 2));
    }
}
