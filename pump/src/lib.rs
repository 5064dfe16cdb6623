//! The pump: takes binlogs from TiDB, keeps them, and serves committed transactions in commit order.
//!
//! ```text
//! TiDB ──▶ service::Intake ──▶ writer ──▶ store (one sync per group)
//!             │ prewrites open     │ settlements durable
//!             ▼                    ▼
//!          progress: sorter, watermark ◀── clock (PD) ◀── resolver (TiKV about what stays open)
//!             │
//!             └──▶ service::PullService, service::DrainService ──▶ drainers
//! ```
//!
//! Always forward: nothing downstream calls back. What a drainer has made durable comes back through the registry only,
//! where `housekeeping` reads it. `ARCHITECTURE.md` beside this crate says why; each module says what it promises.

pub mod budget;
pub mod clock;
pub mod config;
mod decider;
pub mod disk;
pub mod housekeeping;
pub mod membership;
pub mod metrics;
pub mod predecessor;
pub mod progress;
pub mod readers;
pub mod resolver;
pub mod retention;
mod run;
pub mod service;
mod settle;
pub mod sorter;
pub mod state;
mod status;
pub mod store;
pub mod writer;

pub use run::{Started, run, run_with};
