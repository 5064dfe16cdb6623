//! How far stored transactions may be given up: by age, by size, and never past a drainer that still needs them.
//!
//! Pure; `housekeeping` asks and acts. What is collected is a prefix of the stream: everything up to one commit_ts, each
//! commit with its prewrite. A later pull from below it is refused as out of range, never skipped.

use std::time::Duration;

use tidb::ts::{CommitTs, Tso};

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Transactions older than this by PD's time go.
    pub keep: Duration,
    /// The oldest go, too, when the log has more bytes than this.
    pub size: Option<u64>,
    /// Drainers' positions hold nothing back.
    pub past_drainers: bool,
}

/// A drainer that is registered and not offline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drainer {
    /// Its name.
    pub node_id: String,
    /// Everything up to here is safe with it.
    pub position: CommitTs,
}

/// What may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan<'a> {
    /// What age and size alone would give up.
    pub cutoff: Tso,
    /// What may go: at most `cutoff`.
    pub upto: Tso,
    /// Whose position keeps `upto` below `cutoff`.
    pub held_by: Option<&'a Drainer>,
}

impl Policy {
    /// What may go now. `newest` is PD's time, `by_size` the commit_ts through which the log has to be given up to fit its
    /// size. Nothing above the watermark goes: it is not final.
    pub fn plan<'a>(
        &self,
        newest: Tso,
        watermark: Tso,
        by_size: Option<CommitTs>,
        drainers: &'a [Drainer],
    ) -> Plan<'a> {
        let keep = u64::try_from(self.keep.as_millis()).unwrap_or(u64::MAX);
        let by_age = Tso::from_parts(newest.physical_ms().saturating_sub(keep), 0);
        let cutoff = by_size.map_or(by_age, |by_size| by_age.max(by_size.0)).min(watermark);
        let slowest = drainers.iter().min_by_key(|drainer| drainer.position);
        match slowest.filter(|slowest| !self.past_drainers && slowest.position.0 < cutoff) {
            Some(slowest) => Plan { cutoff, upto: slowest.position.0, held_by: Some(slowest) },
            None => Plan { cutoff, upto: cutoff, held_by: None },
        }
    }
}

impl Drainer {
    /// Seconds of commit_ts between the drainer's position and what retention wants to give up: below zero it holds data
    /// that is due, or has lost some if it may not hold it.
    pub fn headroom(&self, cutoff: Tso) -> f64 {
        (self.position.0.physical_ms() as f64 - cutoff.physical_ms() as f64) / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    fn at(ms: u64) -> Tso {
        Tso::from_parts(ms, 0)
    }

    fn drainer(node_id: &str, ms: u64) -> Drainer {
        Drainer { node_id: node_id.into(), position: CommitTs(at(ms)) }
    }

    #[test]
    fn the_oldest_go_and_a_drainer_holds_them() {
        let policy = Policy { keep: Duration::from_millis(2 * DAY), size: None, past_drainers: false };
        let (now, watermark) = (at(10 * DAY), at(10 * DAY - 5));
        let plan = policy.plan(now, watermark, None, &[]);
        assert_eq!((plan.upto, plan.held_by), (at(8 * DAY), None));

        let drainers = [drainer("fast", 9 * DAY), drainer("slow", 7 * DAY)];
        let plan = policy.plan(now, watermark, None, &drainers);
        assert_eq!((plan.cutoff, plan.upto, plan.held_by), (at(8 * DAY), at(7 * DAY), Some(&drainers[1])));
        assert_eq!(drainers[1].headroom(plan.cutoff), -86_400.0);
        assert_eq!(drainers[0].headroom(plan.cutoff), 86_400.0);
        let careless = Policy { past_drainers: true, ..policy };
        assert_eq!(careless.plan(now, watermark, None, &drainers).upto, at(8 * DAY));
    }

    #[test]
    fn size_goes_further_than_age_and_never_past_the_watermark() {
        let policy = Policy { keep: Duration::from_millis(2 * DAY), size: Some(1), past_drainers: false };
        let by_size = |ms| Some(CommitTs(at(ms)));
        let (now, watermark) = (at(10 * DAY), at(10 * DAY - 5));
        assert_eq!(policy.plan(now, watermark, by_size(9 * DAY), &[]).upto, at(9 * DAY));
        assert_eq!(policy.plan(now, watermark, by_size(DAY), &[]).upto, at(8 * DAY));
        assert_eq!(policy.plan(now, watermark, by_size(11 * DAY), &[]).upto, watermark);
        assert_eq!(policy.plan(now, at(3 * DAY), None, &[]).upto, at(3 * DAY));
        let drainers = [drainer("slow", 8 * DAY + 7)];
        assert_eq!(policy.plan(now, watermark, by_size(9 * DAY), &drainers).upto, at(8 * DAY + 7));
    }
}
