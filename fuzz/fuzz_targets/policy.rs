//! `cargo fuzz run policy`: hands libFuzzer's inputs to the check of that name, and knows no more.
#![no_main]
#![allow(unsafe_code, reason = "libFuzzer's entry point is a C function")]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nimbus_fuzz::targets::policy::check(data));
