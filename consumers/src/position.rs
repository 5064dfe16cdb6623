//! Where a consumer stands in a feed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidb::ts::CommitTs;

/// The random name of a feed: 16 bytes, written as 32 lower-case hexadecimal digits. A commit stream that was made anew
/// has another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeedId([u8; 16]);

impl FeedId {
    /// From the bytes of a commit record; `None` unless there are 16.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for FeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("a feed id is 32 hexadecimal digits, not {0:?}")]
pub struct FeedIdError(String);

impl FromStr for FeedId {
    type Err = FeedIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || FeedIdError(text.to_owned());
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(error());
        }
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| error())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for FeedId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FeedId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A point between two transactions of a feed. Everything with a seq up to and including `seq`, and everything with a
/// commit_ts up to and including `commit_ts`, lies before it; nothing else does.
///
/// | field | before the point | after it |
/// |---|---|---|
/// | `seq` | `..= seq` | `seq + 1 ..` |
/// | `commit_ts` | `..= commit_ts` | `> commit_ts` |
/// | `commits_offset` | records below it were dealt with | reading goes on *at* it; of that record, transactions up to `seq` are skipped |
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The feed that all of this is about.
    pub feed_id: FeedId,
    /// The epoch in force just before `commits_offset`.
    pub epoch: u64,
    /// The last transaction before the point; 0 when there is none.
    pub seq: u64,
    /// The target equals the upstream at this timestamp.
    pub commit_ts: CommitTs,
    /// Offset in the commit stream at which reading goes on.
    pub commits_offset: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { feed_id, epoch, seq, commit_ts, commits_offset } = self;
        write!(
            f,
            "feed {feed_id} epoch {epoch} seq {seq} commit_ts {commit_ts} commit stream offset {commits_offset}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feed_ids_as_text() {
        let id = FeedId::from_bytes(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]).unwrap();
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(id.to_string().parse::<FeedId>().unwrap(), id);
        for bad in [
            "",
            "00",
            "000102030405060708090a0b0c0d0ef",
            "+00102030405060708090a0b0c0d0eff",
            "é00102030405060708090a0b0c0d0eff",
        ] {
            assert!(bad.parse::<FeedId>().is_err(), "{bad}");
        }
        assert!(FeedId::from_bytes(&[0; 15]).is_none());
    }
}
