//! Consumers of a Sluice feed: the library that follows a feed and hands over whole transactions in commit order, and the
//! two targets built on it, `apply-mysql` and `export-files`.
//!
//! ```text
//! kafka ─▶ chain ─▶ align ─▶ schema, shape ─▶ queue ─┬─▶ mysql  (fold, sql, ddl)
//!          (order)  (whole)   (columns)              └─▶ files  (csv, json lines, manifest)
//! ```
//!
//! Ordering promise: transactions arrive in commit order, each exactly once between two stops, each verified whole; a
//! schema change arrives after everything before it and before everything after it. What was delivered twice across a
//! crash is the target's to know: it stores the position with the data.

pub mod align;
pub mod chain;
pub mod claims;
pub mod config;
pub mod event;
pub mod files;
pub mod follow;
pub mod kafka;
pub mod metrics;
pub mod mysql;
pub mod position;
pub mod progress;
pub mod queue;
pub mod remains;
pub mod schema;
pub mod shape;
pub mod spill;
