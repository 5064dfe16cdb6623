//! What follows from TiKV's word. Pure; the table stands in the description of the module above.

use tidb::ts::{StartTs, Tso};

use super::{AskError, TxnStatus};
use crate::writer::Verdict;

/// TiDB refuses to commit a transaction older than 24 hours; an hour more for whatever was under way.
const LONGEST_TRANSACTION_MS: u64 = 25 * 3600 * 1000;

/// TiDB gives up locking a primary key after 40 s; three times that.
const FENCE_AFTER_MS: u64 = 120 * 1000;

/// What came of one question.
pub(super) enum Answer {
    /// By the name for metrics.
    Verdict(&'static str, Verdict),
    /// It holds the watermark until its lock expires.
    Unpushable,
    /// To be asked again.
    Failed(AskError),
}

/// Whether a transaction that TiKV has not heard of could no longer begin, had its TiDB worked as it should: its prewrite
/// has been here since `seen`.
pub(super) fn is_fenceable(seen: Tso, now: Tso) -> bool {
    now.physical_ms() >= seen.physical_ms() + FENCE_AFTER_MS
}

/// TiKV may have collected the record: only what it still shows can be believed.
pub(super) fn judge_forgotten(status: TxnStatus, forgotten: Tso) -> Answer {
    match status {
        TxnStatus::Committed(commit_ts) => Answer::Verdict("committed", Verdict::Committed(commit_ts)),
        TxnStatus::Locked { .. } => Answer::Unpushable,
        TxnStatus::RolledBack | TxnStatus::NotFound => {
            let cause = format!("TiKV may have collected its record: PD's safe point is {forgotten}");
            Answer::Verdict("unknown", Verdict::Unknown { cause })
        }
    }
}

/// The table in the module's description.
pub(super) fn judge(status: TxnStatus, start_ts: StartTs, now: Tso, rollback_seen: bool) -> Answer {
    let expired = now.physical_ms() > start_ts.0.physical_ms() + LONGEST_TRANSACTION_MS;
    match status {
        TxnStatus::Committed(commit_ts) => Answer::Verdict("committed", Verdict::Committed(commit_ts)),
        TxnStatus::RolledBack => Answer::Verdict("rolled back", Verdict::RolledBack),
        TxnStatus::NotFound if rollback_seen => Answer::Verdict("rolled back", Verdict::RolledBack),
        TxnStatus::NotFound if expired => Answer::Verdict("expired", Verdict::RolledBack),
        TxnStatus::NotFound => Answer::Verdict("not found", Verdict::Above(now)),
        TxnStatus::Locked { min_commit_ts } if min_commit_ts > now => {
            Answer::Verdict("locked", Verdict::Above(now))
        }
        TxnStatus::Locked { .. } => Answer::Unpushable,
    }
}

#[cfg(test)]
mod tests {
    use tidb::ts::CommitTs;

    use super::*;

    const HOUR: u64 = 3_600_000;

    fn shown(answer: Answer) -> Option<Verdict> {
        match answer {
            Answer::Verdict(_, verdict) => Some(verdict),
            Answer::Unpushable => None,
            Answer::Failed(_) => panic!("an answer never fails"),
        }
    }

    fn verdict(status: TxnStatus, age_hours: u64, rollback_seen: bool) -> Option<Verdict> {
        let start_ts = StartTs(Tso::from_parts(100 * HOUR, 0));
        shown(judge(status, start_ts, Tso::from_parts((100 + age_hours) * HOUR, 1), rollback_seen))
    }

    #[test]
    fn rules() {
        let now = Tso::from_parts(100 * HOUR, 1);
        let commit = CommitTs::new(7);
        assert_eq!(verdict(TxnStatus::Committed(commit), 0, true), Some(Verdict::Committed(commit)));
        assert_eq!(verdict(TxnStatus::RolledBack, 0, false), Some(Verdict::RolledBack));
        // Absent: perhaps about to begin.
        assert_eq!(verdict(TxnStatus::NotFound, 0, false), Some(Verdict::Above(now)));
        assert_eq!(verdict(TxnStatus::NotFound, 0, true), Some(Verdict::RolledBack));
        assert!(matches!(verdict(TxnStatus::NotFound, 24, false), Some(Verdict::Above(_))));
        assert_eq!(verdict(TxnStatus::NotFound, 26, false), Some(Verdict::RolledBack));
        // A lock lives until TiKV says otherwise, rollback binlog or not.
        let pushed = TxnStatus::Locked { min_commit_ts: now.next() };
        assert_eq!(verdict(pushed, 0, true), Some(Verdict::Above(now)));
        assert_eq!(verdict(TxnStatus::Locked { min_commit_ts: now }, 0, false), None);
        assert_eq!(verdict(TxnStatus::Locked { min_commit_ts: Tso::ZERO }, 0, true), None);
    }

    #[test]
    fn what_tikv_may_have_forgotten_is_unknown() {
        let forgotten = |status| shown(judge_forgotten(status, Tso::new(9)));
        let commit = CommitTs::new(7);
        assert_eq!(forgotten(TxnStatus::Committed(commit)), Some(Verdict::Committed(commit)));
        assert!(matches!(forgotten(TxnStatus::RolledBack), Some(Verdict::Unknown { .. })));
        assert!(matches!(forgotten(TxnStatus::NotFound), Some(Verdict::Unknown { .. })));
        assert_eq!(forgotten(TxnStatus::Locked { min_commit_ts: Tso::MAX }), None);
    }
}
