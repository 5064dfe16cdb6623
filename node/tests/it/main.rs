//! The node crate against real things: etcd, sockets, certificates, processes; and a stand-in for PD.

// A helper of tests is a test, too.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod admin;
mod binlogctl;
mod dialling;
mod pd;
mod process;
mod registry;
mod rig;
mod tidb_status;
mod tls;
