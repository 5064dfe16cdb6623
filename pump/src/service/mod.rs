//! What TiDB and drainers call: `WriteBinlog`, the original `PullBinlogs`, and our own `Drain/Pull`.

mod admit;
mod ahead;
mod drain;
mod framing;
mod inspect;
mod pull;
mod routes;
mod write;

pub use drain::DrainService;
pub use inspect::Inspector;
pub use pull::PullService;
pub use routes::{Http, Port};
pub use write::{Intake, calls_within};
