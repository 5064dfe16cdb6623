//! Fuzzing of everything that reads bytes from elsewhere.
//!
//! [`entry`] has one function per decoder; cargo-fuzz's targets call them, and so do the tests of crate `tidb`, which
//! run mutated seeds through them with the stable compiler on every change. [`seeds`] takes inputs from the recordings.

pub mod entry;
pub mod seeds;
