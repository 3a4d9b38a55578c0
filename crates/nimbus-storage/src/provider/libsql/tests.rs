//! The libSQL provider.
