//! The console lines of one invocation, within bounds: the worker is not trusted to keep them.

/// Console lines of one invocation at most (convex.md 1.5).
const MAX_LINES: usize = 256;
/// Longest console line in bytes, as the worker sends it: 32,768 characters and a mark.
const MAX_LINE: usize = 160 * 1024;

/// Lines as they come.
#[derive(Debug, Default)]
pub(crate) struct Console {
    lines: Vec<String>,
    /// Bytes that there may be of them.
    bound: Option<u64>,
    bytes: u64,
    full: bool,
}

impl Console {
    /// Of at most `bound` bytes.
    pub(crate) fn new(bound: Option<u64>) -> Console {
        Console {
            bound,
            ..Console::default()
        }
    }

    /// Takes a line, or says once that there are too many.
    pub(crate) fn add(&mut self, line: String) {
        if self.full || line.len() > MAX_LINE {
            return;
        }
        self.bytes += line.len() as u64;
        let over = match self.bound {
            _ if self.lines.len() == MAX_LINES => format!("{MAX_LINES} lines"),
            Some(bound) if self.bytes > bound => {
                format!("{bound} bytes, by the policy of the tenant")
            }
            _ => return self.lines.push(line),
        };
        self.full = true;
        let told = format!("[WARN] Log overflow (maximum {over}); the rest is left out.");
        self.lines.push(told);
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(bound: Option<u64>, lines: impl Iterator<Item = String>) -> Vec<String> {
        let mut console = Console::new(bound);
        lines.for_each(|line| console.add(line));
        console.into_lines()
    }

    #[test]
    fn lines_and_bytes_are_bounded_and_the_end_says_so() {
        let many = || (0..1_000).map(|at| format!("{at:05}"));
        let lines = kept(None, many());
        assert_eq!(lines.len(), 257);
        assert!(lines[256].contains("(maximum 256 lines)"), "{}", lines[256]);
        let lines = kept(Some(12), many());
        assert_eq!(lines[..2], ["00000", "00001"]);
        assert!(lines[2].contains("maximum 12 bytes"), "{lines:?}");
        assert_eq!(lines.len(), 3);
        assert_eq!(kept(Some(0), many()).len(), 1);
        let long = std::iter::once("x".repeat(MAX_LINE + 1)).chain(["y".to_owned()]);
        assert_eq!(kept(None, long), ["y"]);
    }
}
