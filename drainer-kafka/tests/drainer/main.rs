//! The drainer's cores against recordings of a real TiDB, and its pulls and merge against pumps made for the purpose.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test prepares may fail loudly"
)]

mod feed;
mod model;
mod pulls;
mod recording;
mod rows;
mod schema;
