//! The pump: takes binlogs from TiDB, keeps them, and serves committed transactions in commit order.

pub mod config;
pub mod metrics;
pub mod progress;
pub mod sorter;
pub mod store;
pub mod writer;
