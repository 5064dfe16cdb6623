//! What the codecs do with bytes that a real TiDB sent, with the published vectors, and with bytes nobody should send.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod hostile;
mod recording;
mod recordings;
mod replay;
mod rows;
mod vectors;
