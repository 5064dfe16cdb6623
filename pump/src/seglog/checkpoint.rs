//! The checkpoint: the index's state at one position of the log, so that a start replays only what came after.
//!
//! A cache: without it, or if it does not fit what is on disk, the index is rebuilt from the whole log. Layout, all
//! little-endian 8-byte numbers after the magic: position, sequence, watermark, newest; then four lists, each with its
//! count first (index files, pending prewrites, waiting commits, needed segments); CRC-32C (4 bytes) of all before it.

use tidb::ts::{CommitTs, StartTs, Tso};

use super::pairing::{Committed, Needed, Pairing, Pending};
use super::recover::End;
use super::record::{u32_at, u64_at};
use super::run::Run;
use super::segment::Position;

/// The file's name.
pub(super) const NAME: &str = "checkpoint";
const MAGIC: [u8; 8] = *b"SLCHECK\x01";

/// What is saved.
#[derive(Debug, PartialEq)]
pub(super) struct Checkpoint {
    /// Every record before this was taken in, none behind it.
    pub end: End,
    pub runs: Vec<Run>,
    pub pairing: Pairing,
}

impl Checkpoint {
    /// Encodes the state.
    pub(super) fn encode(end: End, runs: &[Run], pairing: &Pairing) -> Vec<u8> {
        let mut out = Numbers(MAGIC.to_vec());
        out.put(&[end.position.get(), end.sequence, pairing.watermark.get(), pairing.newest.get()]);
        out.put(&[runs.len() as u64]);
        for run in runs {
            out.put(&[run.first.get(), run.last.get(), run.count]);
        }
        out.put(&[pairing.pending.len() as u64]);
        for pending in pairing.pending.values() {
            let flags = u64::from(pending.rollback_seen) << 32;
            out.put(&[pending.start_ts.get(), pending.floor.get(), pending.position.get()]);
            out.put(&[u64::from(pending.len) | flags]);
        }
        out.put(&[pairing.waiting.len() as u64]);
        for waiting in pairing.waiting.values() {
            let Committed { commit_ts, start_ts, position, len } = waiting;
            out.put(&[commit_ts.get(), start_ts.get(), position.get(), u64::from(*len)]);
        }
        out.put(&[pairing.needed.len() as u64]);
        for (base, needed) in &pairing.needed {
            out.put(&[*base, needed.pending, needed.newest.get()]);
        }
        let mut bytes = out.0;
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote; `None` if it is not whole.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let body = bytes.len().checked_sub(4)?;
        if bytes.get(..8)? != MAGIC || crc32c::crc32c(&bytes[..body]) != u32_at(bytes, body) {
            return None;
        }
        let mut rest = Rest(&bytes[8..body]);
        let end = End { position: Position(rest.next()?), sequence: rest.next()? };
        let mut pairing =
            Pairing { watermark: Tso::new(rest.next()?), newest: Tso::new(rest.next()?), ..Pairing::default() };
        let mut runs = Vec::new();
        for _ in 0..rest.next()? {
            let (first, last) = (CommitTs::new(rest.next()?), CommitTs::new(rest.next()?));
            runs.push(Run { first, last, count: rest.next()? });
        }
        for _ in 0..rest.next()? {
            let start_ts = StartTs::new(rest.next()?);
            let floor = Tso::new(rest.next()?);
            let position = Position(rest.next()?);
            let last = rest.next()?;
            let pending = Pending { start_ts, floor, position, len: last as u32, rollback_seen: last >> 32 != 0 };
            pairing.pending.insert(start_ts, pending);
        }
        for _ in 0..rest.next()? {
            let (commit_ts, start_ts) = (CommitTs::new(rest.next()?), StartTs::new(rest.next()?));
            let position = Position(rest.next()?);
            let committed = Committed { commit_ts, start_ts, position, len: rest.next()? as u32 };
            pairing.decided.insert(start_ts, commit_ts);
            pairing.waiting.insert((commit_ts, start_ts), committed);
        }
        for _ in 0..rest.next()? {
            let base = rest.next()?;
            let needed = Needed { pending: rest.next()?, newest: CommitTs::new(rest.next()?) };
            pairing.needed.insert(base, needed);
        }
        Some(Self { end, runs, pairing })
    }
}

struct Numbers(Vec<u8>);

impl Numbers {
    fn put(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn next(&mut self) -> Option<u64> {
        if self.0.len() < 8 {
            return None;
        }
        let (number, rest) = self.0.split_at(8);
        self.0 = rest;
        Some(u64_at(number, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_damage_is_seen() {
        let mut pairing = Pairing { watermark: Tso::new(40), newest: Tso::new(90), ..Pairing::default() };
        for (start, rollback_seen) in [(7, true), (8, false)] {
            let start_ts = StartTs::new(start);
            let pending =
                Pending { start_ts, floor: Tso::new(41), position: Position(5000), len: u32::MAX, rollback_seen };
            pairing.pending.insert(start_ts, pending);
        }
        let committed = Committed {
            commit_ts: CommitTs::new(50),
            start_ts: StartTs::new(9),
            position: Position(4096),
            len: 77,
        };
        pairing.decided.insert(committed.start_ts, committed.commit_ts);
        pairing.waiting.insert((committed.commit_ts, committed.start_ts), committed);
        pairing.needed.insert(0, Needed { pending: 2, newest: CommitTs::new(50) });
        let runs = [Run { first: CommitTs::new(1), last: CommitTs::new(39), count: 12 }];
        let end = End { position: Position(9000), sequence: 33 };

        let bytes = Checkpoint::encode(end, &runs, &pairing);
        assert_eq!(Checkpoint::decode(&bytes), Some(Checkpoint { end, runs: runs.to_vec(), pairing }));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Checkpoint::decode(&damaged), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(Checkpoint::decode(&bytes[..len]), None, "cut to {len}");
        }
    }
}
