//! Power cuts: what a disk may hold after one, rebuilt from what a process asked of it.
//!
//! `kill -9` cannot show a missing sync, because the page cache outlives the process. Here a recorder
//! (`tests/recorder/recorder.c`) writes down every change below a directory; [`disk::Disk`] follows
//! it, knows at each moment what the disk has promised to keep, and makes images of what may be
//! there after a cut: unsynced writes kept, dropped, torn or out of order (design section 9).
//!
//! It must not know what the files mean: SQLite, redb and Nimbus are all the same here.

pub mod disk;
pub mod image;
pub mod log;
pub mod process;
pub mod recorder;

pub use disk::Disk;
pub use image::{Image, Survival};
pub use log::{Event, Record};
pub use process::Process;
pub use recorder::{Fault, Recorder};
