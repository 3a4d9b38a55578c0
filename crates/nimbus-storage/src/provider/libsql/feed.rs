//! Following the changes of a tenant in order: which part comes next, what the parts that came amount to, and what says
//! that they are not what this copy needs.
//!
//! Must not ask the primary nor write anything.

use crate::control::RandomId;
use crate::provider::Head;
use crate::provider::local::format_row;

use serde::{Deserialize, Serialize};

use super::primary::{Part, State, Tag};
use super::record::{Assembler, Writes};

/// Version of what a replica says of itself.
const VERSION: u32 = 1;

/// How far a copy is: everything up to this position is in it, and nothing after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) position: i64,
    pub(super) tag: Tag,
    pub(super) head: Head,
}

impl Mark {
    pub(super) fn of(state: &State) -> Mark {
        Mark {
            position: state.position,
            tag: state.tag,
            head: state.head,
        }
    }

    /// The format row of a copy that is this far.
    pub(super) fn row(&self, life: RandomId) -> String {
        let own = Own {
            version: VERSION,
            life,
            position: self.position,
            tag: data_encoding::HEXLOWER.encode(&self.tag),
        };
        let own = serde_json::to_string(&own).unwrap_or_default();
        let row = format_row();
        format!("{},\"replica\":{own}}}", row.trim_end_matches('}'))
    }

    /// How far the copy with this format row and head is, if it is one of this life of the tenant.
    ///
    /// # Errors
    /// Why it is of no use.
    pub(super) fn read(row: &[u8], head: Head, life: RandomId) -> Result<Mark, String> {
        #[derive(Deserialize)]
        struct Format {
            replica: Option<Own>,
        }
        let format: Format = serde_json::from_slice(row).map_err(|e| e.to_string())?;
        let own = format.replica.ok_or("it was not finished")?;
        if own.version != VERSION {
            return Err(format!("its version is {}", own.version));
        }
        if own.life != life {
            return Err("it is of another life of the tenant".to_owned());
        }
        let tag = data_encoding::HEXLOWER.decode(own.tag.as_bytes()).ok();
        let tag = tag.and_then(|tag| Tag::try_from(tag).ok());
        Ok(Mark {
            position: own.position,
            tag: tag.ok_or("its tag is no tag")?,
            head,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Own {
    version: u32,
    life: RandomId,
    position: i64,
    tag: String,
}

/// What some parts amount to.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) mark: Mark,
    pub(super) writes: Writes,
    /// Changes of which the given one is not one.
    pub(super) foreign: u64,
}

/// Reads on from a mark.
pub(super) struct Feed {
    /// Where whole changes end.
    mark: Mark,
    /// The newest part.
    cursor: i64,
    /// Of the change whose parts come.
    tag: Tag,
    assembler: Assembler,
}

impl Feed {
    pub(super) fn at(mark: Mark) -> Feed {
        Feed {
            mark,
            cursor: mark.position,
            tag: mark.tag,
            assembler: Assembler::default(),
        }
    }

    /// After which position to read on.
    pub(super) fn cursor(&self) -> i64 {
        self.cursor
    }

    /// Takes the next parts, which were read right after the state; what the whole changes in them amount to, if
    /// there are any. `own` is the tag of a change that is not counted as foreign.
    ///
    /// # Errors
    /// Why they do not follow what is there.
    pub(super) fn take(
        &mut self,
        state: &State,
        parts: Vec<Part>,
        own: Option<Tag>,
    ) -> Result<Option<Step>, String> {
        if parts.is_empty() && state.position != self.cursor {
            return Err(match state.position > self.cursor {
                true => "the changes since are pruned".to_owned(),
                false => "the primary went back: another history is there now".to_owned(),
            });
        }
        let mut step = Step {
            mark: self.mark,
            writes: Writes::new(),
            foreign: 0,
        };
        let mut is_whole = false;
        for part in parts {
            if part.position != self.cursor + 1 {
                return Err("the changes since are pruned".to_owned());
            }
            let follows = match self.assembler.is_within() {
                true => part.tag == self.tag,
                false => part.previous == self.mark.tag,
            };
            if !follows {
                return Err("a change does not follow: another history is there now".to_owned());
            }
            (self.cursor, self.tag) = (part.position, part.tag);
            let change = self.assembler.add(&part.data);
            let change = change.map_err(|e| format!("change {}: {e}", part.position))?;
            let Some(change) = change else { continue };
            self.mark = Mark {
                position: self.cursor,
                tag: self.tag,
                head: change.head,
            };
            step.foreign += u64::from(own != Some(self.tag));
            step.writes.extend(change.writes);
            is_whole = true;
        }
        step.mark = self.mark;
        Ok(is_whole.then_some(step))
    }

    /// Whether everything of the state is in it.
    ///
    /// # Errors
    /// What of the state differs.
    pub(super) fn is_at(&self, state: &State) -> Result<bool, String> {
        if self.assembler.is_within() || self.mark.position < state.position {
            return Ok(false);
        }
        if self.mark.position == state.position && self.mark != Mark::of(state) {
            return Err("head or tag differ: another history is there now".to_owned());
        }
        Ok(true)
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }
}
