//! What TiDB and drainers call: `WriteBinlog`, the original `PullBinlogs`, and our own `Drain/Pull`.

mod drain;
mod framing;
mod pull;
mod routes;
mod write;

pub use drain::DrainService;
pub use pull::PullService;
pub use routes::{Http, router};
pub use write::Intake;
