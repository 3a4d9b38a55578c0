//! The anchor: how far the chain reaches, kept apart from the log so that a cut end is found.
//!
//! This room must not know what keeps it; [`AnchorStore`] is that place's door. In the server it
//! is the control database, with a copy beside the key for a check while the server runs.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::AuditError;
use super::chain::{ChainId, ChainKey, Mac, Point};
use crate::private_fs::{Access, PrivateDir, PrivateFileError, split};

/// First word of an anchor's text: the version of its form.
const VERSION: &str = "1";
/// Name of the copy, in the directory of the admin token.
const COPY_FILE: &str = "audit.anchor";
/// Written in full before it takes the name of the copy.
const COPY_TEMP: &str = ".audit.anchor.tmp";
/// More than the longest copy: a chain, a version, two numbers, three MACs and their separators.
const MAX_TEXT: u64 = 512;

/// Where a chain begins and how far it reaches at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The point before the oldest entry that is still kept.
    pub floor: Point,
    /// A point that was durable when the anchor was written; the log must reach it.
    pub head: Point,
}

/// Why an anchor is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnchorFault {
    /// Its text has not the form of an anchor.
    #[error("it is not the text of an anchor")]
    Form,
    /// It was not written with the key, or changed afterwards.
    #[error("it was changed, or written with another key")]
    Forged,
}

/// A place for anchors, apart from the log, where whoever can change the log had better not reach.
///
/// Both methods may block, and are called by the thread that syncs the log.
pub trait AnchorStore: Debug + Send + Sync {
    /// The last text that was stored for a chain, from each place where one is kept.
    ///
    /// # Errors
    /// When a place fails.
    fn load(&self, chain: ChainId) -> io::Result<Vec<String>>;
    /// Keeps a text for a chain, durably.
    ///
    /// # Errors
    /// When the place fails.
    fn store(&self, chain: ChainId, text: &str) -> io::Result<()>;
}

/// Anchors in memory: for tests, and where nothing better is at hand. A cut end is then found only
/// as long as the process lives.
#[derive(Debug, Default)]
pub struct MemoryAnchors(Mutex<HashMap<ChainId, String>>);

impl AnchorStore for MemoryAnchors {
    fn load(&self, chain: ChainId) -> io::Result<Vec<String>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(kept.get(&chain).cloned().into_iter().collect())
    }

    fn store(&self, chain: ChainId, text: &str) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(chain, text.to_owned());
        Ok(())
    }
}

impl Anchor {
    /// The anchor of a chain without entries.
    pub(crate) fn origin(key: &ChainKey) -> Anchor {
        Anchor {
            floor: key.origin(),
            head: key.origin(),
        }
    }

    /// The text to keep: version, both points, and a MAC over them.
    pub fn encode(&self, key: &ChainKey) -> String {
        let Anchor { floor, head } = self;
        let text = format!(
            "{VERSION} {} {} {} {}",
            floor.seq, floor.mac, head.seq, head.mac
        );
        let mac = key.anchor_mac(text.as_bytes());
        format!("{text} {mac}")
    }

    /// Reads the text of an anchor.
    ///
    /// # Errors
    /// [`AnchorFault`].
    pub fn decode(text: &str, key: &ChainKey) -> Result<Anchor, AnchorFault> {
        let (signed, mac) = text.rsplit_once(' ').ok_or(AnchorFault::Form)?;
        let mac = Mac::parse(mac.as_bytes()).ok_or(AnchorFault::Form)?;
        let words: Vec<&str> = signed.split(' ').collect();
        let [VERSION, floor_seq, floor_mac, head_seq, head_mac] = words[..] else {
            return Err(AnchorFault::Form);
        };
        if key.anchor_mac(signed.as_bytes()) != mac {
            return Err(AnchorFault::Forged);
        }
        Ok(Anchor {
            floor: point(floor_seq, floor_mac).ok_or(AnchorFault::Form)?,
            head: point(head_seq, head_mac).ok_or(AnchorFault::Form)?,
        })
    }

    /// The one of `texts` that reaches furthest: logs may be used with one place and then another.
    /// One that is faulty does not count as long as there is a good one.
    ///
    /// # Errors
    /// [`AnchorFault`] when there are texts and none is good.
    pub fn newest(
        texts: impl IntoIterator<Item = String>,
        key: &ChainKey,
    ) -> Result<Option<Anchor>, AnchorFault> {
        let (mut newest, mut fault) = (None::<Anchor>, None);
        for text in texts {
            match Anchor::decode(&text, key) {
                Ok(anchor) if newest.is_some_and(|n| n.head.seq >= anchor.head.seq) => {}
                Ok(anchor) => newest = Some(anchor),
                Err(found) => {
                    tracing::error!(%found, "an anchor of the audit log cannot be trusted");
                    fault = Some(found);
                }
            }
        }
        match (newest, fault) {
            (None, Some(fault)) => Err(fault),
            (newest, _) => Ok(newest),
        }
    }

    /// Reads the anchor from `store`.
    pub(crate) fn load(
        store: &dyn AnchorStore,
        key: &ChainKey,
    ) -> Result<Option<Anchor>, AuditError> {
        let texts = store.load(key.id()).map_err(AuditError::Anchor)?;
        Ok(Anchor::newest(texts, key)?)
    }
}

fn point(seq: &str, mac: &str) -> Option<Point> {
    Some(Point {
        seq: seq.parse().ok()?,
        mac: Mac::parse(mac.as_bytes())?,
    })
}

/// The copy of the anchor beside the key: for a check while a server holds the first place, and for a
/// log whose first place was lost.
#[derive(Clone, Debug)]
pub struct AnchorCopy {
    path: PathBuf,
}

impl AnchorCopy {
    /// The copy in the directory of the admin token's file.
    pub fn beside(token: &Path) -> AnchorCopy {
        AnchorCopy {
            path: token.with_file_name(COPY_FILE),
        }
    }

    /// The text that is kept for a chain; `None` when there is none, or that of another chain.
    ///
    /// # Errors
    /// [`PrivateFileError`].
    pub fn load(&self, chain: ChainId) -> Result<Option<String>, PrivateFileError> {
        let (parent, name) = split(&self.path)?;
        let Some(dir) = PrivateDir::open(parent)? else {
            return Ok(None);
        };
        let Some(file) = dir.open_file(name, Access::Read)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(MAX_TEXT)
            .read_to_end(&mut bytes)
            .map_err(PrivateFileError::io("read", &self.path))?;
        let text = String::from_utf8_lossy(&bytes);
        let of_chain = text.trim_end().strip_prefix(&format!("{chain} "));
        Ok(of_chain.map(str::to_owned))
    }

    /// Replaces the copy.
    ///
    /// # Errors
    /// [`PrivateFileError`].
    pub fn store(&self, chain: ChainId, text: &str) -> Result<(), PrivateFileError> {
        let (parent, name) = split(&self.path)?;
        let dir = PrivateDir::create(parent)?;
        let text = format!("{chain} {text}\n");
        dir.replace(name, OsStr::new(COPY_TEMP), text.as_bytes())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn an_anchor_is_read_back_and_a_changed_one_is_not() {
        let key = ChainKey::new(Zeroizing::new([3; 32]));
        let point = |seq| Point {
            seq,
            mac: Mac([u8::try_from(seq).unwrap(); 32]),
        };
        let anchor = Anchor {
            floor: point(5),
            head: point(17),
        };
        let text = anchor.encode(&key);
        assert!(text.len() as u64 + 34 <= MAX_TEXT);
        assert_eq!(Anchor::decode(&text, &key), Ok(anchor));
        let other = ChainKey::new(Zeroizing::new([4; 32]));
        assert_eq!(Anchor::decode(&text, &other), Err(AnchorFault::Forged));
        assert_eq!(
            Anchor::decode(&text.replace(" 17 ", " 16 "), &key),
            Err(AnchorFault::Forged)
        );
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8(changed).unwrap();
            assert!(Anchor::decode(&changed, &key).is_err(), "{changed}");
        }
        for text in [
            "",
            " ",
            "1",
            "1 2 3 4 5 6",
            &text[..text.len() - 1],
            &format!("{text} "),
        ] {
            assert_eq!(Anchor::decode(text, &key), Err(AnchorFault::Form), "{text}");
        }
    }

    #[test]
    fn the_newest_good_one_counts() {
        let key = ChainKey::new(Zeroizing::new([3; 32]));
        let at = |seq| {
            let head = Point {
                seq,
                mac: Mac([9; 32]),
            };
            Anchor {
                head,
                ..Anchor::origin(&key)
            }
        };
        let (old, new) = (at(3).encode(&key), at(8).encode(&key));
        let bad = new.replace(" 8 ", " 9 ");
        for (texts, expected) in [
            (vec![], Ok(None)),
            (vec![&old], Ok(Some(3))),
            (vec![&old, &new], Ok(Some(8))),
            (vec![&new, &old], Ok(Some(8))),
            (vec![&bad, &old], Ok(Some(3))),
            (vec![&bad], Err(AnchorFault::Forged)),
        ] {
            let found = Anchor::newest(texts.iter().map(|text| (*text).clone()), &key);
            assert_eq!(found.map(|a| a.map(|a| a.head.seq)), expected, "{texts:?}");
        }
    }

    #[test]
    fn the_copy_is_replaced_and_read_for_its_own_chain_only() {
        let temp = tempfile::tempdir().unwrap();
        let key = ChainKey::new(Zeroizing::new([3; 32]));
        let other = ChainKey::new(Zeroizing::new([4; 32]));
        let copy = AnchorCopy::beside(&temp.path().join("nimbus/auth/token"));
        assert_eq!(copy.load(key.id()).unwrap(), None);
        for text in ["1", "1 2 3"] {
            copy.store(key.id(), text).unwrap();
            assert_eq!(copy.load(key.id()).unwrap().as_deref(), Some(text));
            assert_eq!(copy.load(other.id()).unwrap(), None);
        }
        std::fs::write(&copy.path, [0xff; 600]).unwrap();
        assert_eq!(copy.load(key.id()).unwrap(), None);
    }
}
