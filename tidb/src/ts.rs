//! Timestamps of TiDB's timestamp oracle.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A timestamp of PD's timestamp oracle: Unix milliseconds in the upper 46 bits, a counter in the lower 18. Zero means
/// "none". Every timestamp of a cluster is given out once, in growing order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tso(u64);

const LOGICAL_BITS: u32 = 18;

impl Tso {
    /// No timestamp.
    pub const ZERO: Self = Self(0);
    /// Later than every timestamp that TiDB's signed 64-bit fields can carry.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// From the number as it stands in messages.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// From TiDB Binlog's signed fields; a negative number (never sent by TiDB) becomes zero.
    pub const fn from_i64(raw: i64) -> Self {
        Self(if raw < 0 { 0 } else { raw as u64 })
    }

    /// From Unix milliseconds and the counter (its lower 18 bits are used).
    pub const fn from_parts(physical_ms: u64, logical: u64) -> Self {
        Self((physical_ms << LOGICAL_BITS) | (logical & ((1 << LOGICAL_BITS) - 1)))
    }

    /// The number as it stands in messages.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// For TiDB Binlog's signed fields.
    pub const fn to_i64(self) -> i64 {
        self.0 as i64
    }

    /// Unix milliseconds.
    pub const fn physical_ms(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The counter within the millisecond.
    pub const fn logical(self) -> u64 {
        self.0 & ((1 << LOGICAL_BITS) - 1)
    }

    /// True for [`Self::ZERO`].
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The timestamp just after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The timestamp just before this one; zero stays zero.
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// Seconds from `earlier` to this one by their physical parts; zero if it is not earlier. Every lag is measured so.
    pub fn seconds_since(self, earlier: Self) -> f64 {
        self.physical_ms().saturating_sub(earlier.physical_ms()) as f64 / 1000.0
    }
}

impl fmt::Display for Tso {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// When a transaction began: its identity in TiKV and in the prewrite binlog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StartTs(pub Tso);

/// When a transaction became visible: its place in the total order. With binlog on, no two transactions share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommitTs(pub Tso);

impl StartTs {
    /// From the number as it stands in messages.
    pub const fn new(raw: u64) -> Self {
        Self(Tso::new(raw))
    }

    /// The number as it stands in messages.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl CommitTs {
    /// From the number as it stands in messages.
    pub const fn new(raw: u64) -> Self {
        Self(Tso::new(raw))
    }

    /// The number as it stands in messages.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for StartTs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for CommitTs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        // start_ts of the envelope vector: Unix ms 1684318830123, counter 5.
        let ts = Tso::new(441_534_075_403_763_717);
        assert_eq!((ts.physical_ms(), ts.logical()), (1_684_318_830_123, 5));
        assert_eq!(Tso::from_parts(1_684_318_830_123, 5), ts);
        assert_eq!(ts.next().seconds_since(Tso::from_parts(1_684_318_828_123, 9)), 2.0);
        assert_eq!(Tso::from_i64(-1), Tso::ZERO);
    }
}
