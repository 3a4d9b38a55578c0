//! The command line by its transcripts in `tests/cli`, and what they cannot show.
//!
//! It must not know what a command does beyond what it prints and leaves behind.
