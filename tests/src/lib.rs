//! End-to-end tests and the demo: real etcd, Kafka and MariaDB, our binaries as they are shipped, recordings of a real
//! TiDB as input.
//!
//! - [`harness`] starts, kills and restarts processes;
//! - [`compare`] holds a MariaDB against a recorded state, row by row;
//! - [`checker`] reads the Kafka topics with a plain consumer of its own and verifies that the log adds up;
//! - `tests/e2e/` uses all of them; `sluice-demo` shows the whole path in a terminal.

pub mod checker;
pub mod compare;
pub mod demo;
pub mod harness;
pub mod recording;
