//! Schema changes: what to run for one ([`plan`]), and running it so that a crash neither loses nor repeats it
//! ([`journal`]).

mod alter;
mod convert;
mod create;
pub(crate) mod journal;
pub mod plan;
mod statement;
mod token;
mod verbatim;
pub mod verdict;
mod zone;

/// A schema change cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum DdlError {
    /// The target cannot run it, and the policy is to stop.
    #[error(
        "schema change stopped: job {job_id} ({action}) of transaction {seq}: {reason}\n  statement: {statement}\n  to leave \
         it out:      binlogctl ddl skip --job {job_id} {flags}\n  to run another one: binlogctl ddl replace --job \
         {job_id} --statement '…' {flags}"
    )]
    Stopped {
        /// The job.
        job_id: i64,
        /// Its kind.
        action: String,
        /// The transaction.
        seq: u64,
        /// Why.
        reason: String,
        /// As the upstream ran it.
        statement: String,
        /// Flags with which an operator reaches our admin listener.
        flags: String,
    },
    /// The lease is not ours any more.
    #[error("another instance took over")]
    Fenced,
    /// The target, outside the schema change itself.
    #[error("the target failed while a schema change was journaled: {source}")]
    Server {
        /// What it said.
        source: mysql_async::Error,
    },
}

impl From<mysql_async::Error> for DdlError {
    fn from(source: mysql_async::Error) -> Self {
        Self::Server { source }
    }
}
