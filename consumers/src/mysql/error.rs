//! Why applying cannot go on.

use super::ddl::DdlError;
use super::session::ConnectError;

/// Applying cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another instance works under our name.
    #[error(
        "the progress of consumer {consumer} was changed by another instance (stored: {stored}): this one stops, nothing \
         was written twice"
    )]
    Fenced {
        /// Our name.
        consumer: String,
        /// What the target says.
        stored: String,
    },
    /// The target cannot be reached in a way that retrying helps.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A row is not as the log says, and the policy is to stop.
    #[error(
        "transaction {seq}: {what} in {table}{key}. The target was changed by somebody else, or was not where the log \
         begins{cause}. Repair the row; this process tries it again by itself. Or set apply.conflict (now `{policy}`)"
    )]
    Conflict {
        /// First transaction of the batch.
        seq: u64,
        /// What was found.
        what: &'static str,
        /// Where.
        table: String,
        /// The row's key, if it may be shown, and the table's key that another row holds.
        key: String,
        /// What else may be behind it.
        cause: &'static str,
        /// The policy in force.
        policy: &'static str,
    },
    /// The target refuses a row.
    #[error("transaction {seq}: the target refuses a {kind} in {table}{key}: {reason}")]
    Refused {
        /// First transaction of the batch.
        seq: u64,
        /// What the statement does.
        kind: &'static str,
        /// Where.
        table: String,
        /// The row's key, if it may be shown.
        key: String,
        /// What the server says, and what can be done.
        reason: String,
    },
    /// The target refuses something of our own.
    #[error("the target refuses to {what}: {reason}")]
    Meta {
        /// What was tried.
        what: &'static str,
        /// What the server says.
        reason: String,
    },
    /// A schema change.
    #[error(transparent)]
    Ddl(#[from] Box<DdlError>),
    /// A statement cannot be written.
    #[error("transaction {seq}: {reason}")]
    Render {
        /// First transaction of the batch.
        seq: u64,
        /// Why.
        reason: String,
    },
    /// The connection broke within a transaction that came in pieces: start again from the stored position.
    #[error("the connection broke within a large transaction, starting again from the stored position")]
    Restart,
    /// The upstream says that transactions are missing, and the policy is to stop.
    #[error(
        "the upstream declares that transactions in ({from}, {to}] are missing ({cause}). The target equals the upstream up \
         to {from}. To go on without them, set feed.on-gap = \"continue\"; to be exact again, load the target anew"
    )]
    Gap {
        /// Everything up to this commit_ts is there.
        from: u64,
        /// The last commit_ts that may be missing.
        to: u64,
        /// Why.
        cause: String,
    },
}

impl ApplyError {
    /// True for what somebody can put right in the target's rows and tables while this process waits.
    pub(crate) fn is_about_rows(&self) -> bool {
        matches!(self, Self::Conflict { .. } | Self::Refused { .. })
    }
}
