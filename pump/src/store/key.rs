//! The whole keyspace: column families, keys and the small values. Numbers are big-endian: key order is number order.

use tidb::ts::{CommitTs, StartTs, Tso};

use super::{Fate, StoreError};

/// The column families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Prewrite,
    Pending,
    Commit,
    Dropped,
    Gap,
    Batch,
    Meta,
    /// RocksDB insists on it; nothing is kept there.
    Default,
}

impl Family {
    pub(super) const ALL: [Self; 8] = [
        Self::Prewrite,
        Self::Pending,
        Self::Commit,
        Self::Dropped,
        Self::Gap,
        Self::Batch,
        Self::Meta,
        Self::Default,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prewrite => "prewrite",
            Self::Pending => "pending",
            Self::Commit => "commit",
            Self::Dropped => "dropped",
            Self::Gap => "gap",
            Self::Batch => "batch",
            Self::Meta => "meta",
            Self::Default => "default",
        }
    }

    /// Whether keys that are probably absent are asked for.
    pub(super) fn looked_up(self) -> bool {
        matches!(self, Self::Prewrite | Self::Commit | Self::Dropped)
    }

    pub(super) fn holds_payloads(self) -> bool {
        matches!(self, Self::Prewrite | Self::Commit)
    }
}

pub(super) fn u64_key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

pub(super) fn start_key(start_ts: StartTs) -> [u8; 8] {
    u64_key(start_ts.get())
}

pub(super) fn number(family: Family, bytes: &[u8]) -> Result<u64, StoreError> {
    let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| malformed(family, bytes))?;
    Ok(u64::from_be_bytes(bytes))
}

/// commit_ts first: the order in which drainers read.
pub(super) fn commit_key(commit_ts: CommitTs, start_ts: StartTs) -> [u8; 16] {
    pair(commit_ts.get(), start_ts.get())
}

pub(super) fn parse_commit_key(bytes: &[u8]) -> Result<(CommitTs, StartTs), StoreError> {
    let (commit_ts, start_ts) = parse_pair(Family::Commit, bytes)?;
    Ok((CommitTs::new(commit_ts), StartTs::new(start_ts)))
}

pub(super) fn pair(a: u64, b: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&a.to_be_bytes());
    key[8..].copy_from_slice(&b.to_be_bytes());
    key
}

pub(super) fn parse_pair(family: Family, bytes: &[u8]) -> Result<(u64, u64), StoreError> {
    let (a, b) = bytes.split_at_checked(8).ok_or_else(|| malformed(family, bytes))?;
    Ok((number(family, a)?, number(family, b)?))
}

const ROLLBACK_SEEN: u8 = 1;

pub(super) fn pending_value(floor: Tso, rollback_seen: bool) -> [u8; 9] {
    let mut value = [0; 9];
    value[..8].copy_from_slice(&floor.get().to_be_bytes());
    value[8] = if rollback_seen { ROLLBACK_SEEN } else { 0 };
    value
}

pub(super) fn parse_pending(bytes: &[u8]) -> Result<(Tso, bool), StoreError> {
    match bytes.split_last() {
        Some((flags, floor)) if *flags <= ROLLBACK_SEEN => {
            Ok((Tso::new(number(Family::Pending, floor)?), *flags == ROLLBACK_SEEN))
        }
        _ => Err(malformed(Family::Pending, bytes)),
    }
}

/// Fate, floor, commit_ts (zero if unknown).
pub(super) fn dropped_value(fate: Fate, floor: Tso) -> [u8; 17] {
    let (tag, commit_ts) = match fate {
        Fate::RolledBack => (1, CommitTs::default()),
        Fate::LateCopy { commit_ts } => (2, commit_ts),
        Fate::Unknown => (3, CommitTs::default()),
    };
    let mut value = [tag; 17];
    value[1..].copy_from_slice(&pair(floor.get(), commit_ts.get()));
    value
}

pub(super) fn parse_dropped(bytes: &[u8]) -> Result<(Fate, Tso), StoreError> {
    let (tag, rest) = bytes.split_first().ok_or_else(|| malformed(Family::Dropped, bytes))?;
    let (floor, commit_ts) = parse_pair(Family::Dropped, rest)?;
    let fate = match tag {
        1 => Fate::RolledBack,
        2 => Fate::LateCopy { commit_ts: CommitTs::new(commit_ts) },
        3 => Fate::Unknown,
        _ => return Err(malformed(Family::Dropped, bytes)),
    };
    Ok((fate, Tso::new(floor)))
}

fn malformed(family: Family, bytes: &[u8]) -> StoreError {
    let shown: String = bytes.iter().take(32).map(|byte| format!("{byte:02x}")).collect();
    StoreError::Malformed { family: family.name(), reason: format!("{} bytes, {shown}", bytes.len()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn commit_keys_order_as_timestamps(a in any::<(u64, u64)>(), b in any::<(u64, u64)>()) {
            let key = |(c, s): (u64, u64)| commit_key(CommitTs::new(c), StartTs::new(s));
            prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
            prop_assert_eq!(parse_commit_key(&key(a)).unwrap(), (CommitTs::new(a.0), StartTs::new(a.1)));
        }

        #[test]
        fn values_come_back(floor in any::<u64>(), commit in any::<u64>(), seen in any::<bool>()) {
            let floor = Tso::new(floor);
            prop_assert_eq!(parse_pending(&pending_value(floor, seen)).unwrap(), (floor, seen));
            for fate in [Fate::RolledBack, Fate::Unknown, Fate::LateCopy { commit_ts: CommitTs::new(commit) }] {
                prop_assert_eq!(parse_dropped(&dropped_value(fate, floor)).unwrap(), (fate, floor));
            }
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = (parse_pending(&bytes), parse_dropped(&bytes), parse_commit_key(&bytes));
            prop_assert_eq!(number(Family::Meta, &bytes).is_ok(), bytes.len() == 8);
        }
    }
}
