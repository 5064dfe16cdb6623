//! The drainer: merges the pumps' streams into one, shapes rows by their table's definition, and writes the Kafka
//! contract (rows, commit stream, schema), exactly once and in commit order.
//!
//! The pure cores are [`merge`], [`schema`], [`translate`], [`ddl`], [`filter`] and [`sequence`]; [`feed`] and
//! [`kafka::sink`] are the tasks around them, [`lead`] wires one epoch, [`run`] is the process.

pub mod backoff;
pub mod beginning;
pub mod claims;
pub mod config;
pub mod ddl;
pub mod feed;
pub mod filter;
pub mod inflight;
pub mod kafka;
pub mod lead;
pub mod membership;
pub mod merge;
pub mod metrics;
pub mod native;
pub mod pull;
pub mod routing;
mod run;
pub mod schema;
pub mod sequence;
pub mod service;
pub mod statement;
pub mod status;
pub mod transaction;
pub mod translate;

pub use self::run::run;
