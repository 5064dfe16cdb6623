//! States of schema objects and of DDL jobs; numbers that later TiDB versions add are kept.

use serde::{Deserialize, Serialize};

/// How far a schema object has come: only `Public` ones are visible to SQL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum SchemaState {
    /// 0: absent.
    #[default]
    None,
    /// 1: deletes are seen.
    DeleteOnly,
    /// 2: writes are seen.
    WriteOnly,
    /// 3: writes are seen, old rows are being filled in.
    WriteReorganization,
    /// 4: being removed.
    DeleteReorganization,
    /// 5: visible.
    Public,
    /// 6: only in TiFlash.
    ReplicaOnly,
    /// 7: used by global transactions only.
    GlobalTxnOnly,
    /// A number this build does not know.
    Other(u32),
}

impl From<u32> for SchemaState {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::None,
            1 => Self::DeleteOnly,
            2 => Self::WriteOnly,
            3 => Self::WriteReorganization,
            4 => Self::DeleteReorganization,
            5 => Self::Public,
            6 => Self::ReplicaOnly,
            7 => Self::GlobalTxnOnly,
            other => Self::Other(other),
        }
    }
}

impl From<SchemaState> for u32 {
    fn from(state: SchemaState) -> Self {
        match state {
            SchemaState::None => 0,
            SchemaState::DeleteOnly => 1,
            SchemaState::WriteOnly => 2,
            SchemaState::WriteReorganization => 3,
            SchemaState::DeleteReorganization => 4,
            SchemaState::Public => 5,
            SchemaState::ReplicaOnly => 6,
            SchemaState::GlobalTxnOnly => 7,
            SchemaState::Other(other) => other,
        }
    }
}

/// How far a DDL job has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum JobState {
    /// 0: not begun.
    #[default]
    None,
    /// 1: under way.
    Running,
    /// 2: being undone.
    RollingBack,
    /// 3: undone; no effect.
    RollbackDone,
    /// 4: done.
    Done,
    /// 5: cancelled; no effect.
    Cancelled,
    /// 6: done, and every TiDB server has seen it. The usual state in history.
    Synced,
    /// 7: about to be undone.
    Cancelling,
    /// 8: waiting.
    Queueing,
    /// 9: paused.
    Paused,
    /// 10: about to be paused.
    Pausing,
    /// A number this build does not know.
    Other(u32),
}

impl JobState {
    /// True if the job changed the schema; only such jobs are acted on.
    pub fn is_applied(self) -> bool {
        matches!(self, Self::Done | Self::Synced)
    }
}

impl From<u32> for JobState {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Running,
            2 => Self::RollingBack,
            3 => Self::RollbackDone,
            4 => Self::Done,
            5 => Self::Cancelled,
            6 => Self::Synced,
            7 => Self::Cancelling,
            8 => Self::Queueing,
            9 => Self::Paused,
            10 => Self::Pausing,
            other => Self::Other(other),
        }
    }
}

impl From<JobState> for u32 {
    fn from(state: JobState) -> Self {
        match state {
            JobState::None => 0,
            JobState::Running => 1,
            JobState::RollingBack => 2,
            JobState::RollbackDone => 3,
            JobState::Done => 4,
            JobState::Cancelled => 5,
            JobState::Synced => 6,
            JobState::Cancelling => 7,
            JobState::Queueing => 8,
            JobState::Paused => 9,
            JobState::Pausing => 10,
            JobState::Other(other) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for number in 0..20u32 {
            assert_eq!(u32::from(SchemaState::from(number)), number);
            assert_eq!(u32::from(JobState::from(number)), number);
        }
        assert_eq!(SchemaState::from(5), SchemaState::Public);
        assert_eq!(JobState::from(3), JobState::RollbackDone);
        assert!(JobState::from(4).is_applied() && JobState::from(6).is_applied());
        assert!(!JobState::from(3).is_applied());
    }
}
