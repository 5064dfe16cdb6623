//! The checkpoint: the index's state at one position of the log, so that a start replays only what came after.
//!
//! A cache: without it, or if it does not fit what is on disk, the index is rebuilt from the whole log. Layout, all
//! little-endian 8-byte numbers after the magic: position, sequence, watermark, newest start_ts, newest timestamp; then seven
//! lists, each with its count first (runs, spilled files, open prewrites, waiting commits, dropped prewrites, needed segments,
//! gaps with the length of their cause before it); CRC-32C (4 bytes) of all before it.

use tidb::ts::{CommitTs, StartTs, Tso};

use super::index::Published;
use super::pairing::{Committed, Dropped, Needed, Open, Pairing, Place};
use super::record::{u32_at, u64_at};
use super::recover::End;
use super::run::Run;
use super::segment::Position;
use super::{Fate, Gap};

/// The file's name.
pub(super) const NAME: &str = "checkpoint";
const MAGIC: [u8; 8] = *b"SLCHECK\x03";

/// What is saved.
#[derive(Debug, PartialEq)]
pub(super) struct Checkpoint {
    /// Every record before this was taken in, none behind it.
    pub end: End,
    pub runs: Vec<Run>,
    pub spilled: Vec<Run>,
    /// Committed, and not in a file yet.
    pub waiting: Vec<Committed>,
    /// Without those that committed.
    pub pairing: Pairing,
}

impl Checkpoint {
    /// Encodes the state.
    pub(super) fn encode(end: End, published: &Published, pairing: &Pairing) -> Vec<u8> {
        let mut out = Numbers(MAGIC.to_vec());
        out.put(&[end.position.get(), end.sequence]);
        out.put(&[pairing.watermark.get(), pairing.newest_start.get(), pairing.newest.get()]);
        out.put(&[published.runs.len() as u64]);
        for run in &published.runs {
            out.put(&[run.first.get(), run.last.get(), run.count]);
        }
        out.put(&[published.spilled.len() as u64]);
        for run in &published.spilled {
            let start_ts = run.spilled.unwrap_or_default();
            out.put(&[run.first.get(), start_ts.get(), run.last.get(), run.count]);
        }
        out.put(&[pairing.open.len() as u64]);
        for (start_ts, open) in &pairing.open {
            out.put(&[start_ts.get(), open.floor.get(), u64::from(open.rollback_seen)]);
            out.place(open.place);
        }
        out.put(&[published.waiting.len() as u64]);
        for committed in published.waiting.values() {
            out.put(&[committed.commit_ts.get(), committed.start_ts.get()]);
            out.place(committed.prewrite);
            out.place(committed.commit);
        }
        out.put(&[pairing.dropped.len() as u64]);
        for (start_ts, Dropped { fate, floor, place }) in pairing.dropped.iter() {
            let fate = fate.encode();
            out.put(&[start_ts.get(), floor.get(), u64::from(fate[0]), u64_at(&fate, 1)]);
            out.place(place);
        }
        out.put(&[pairing.needed.len() as u64]);
        for (base, needed) in &pairing.needed {
            out.put(&[*base, needed.open, needed.newest.get()]);
        }
        out.put(&[pairing.gaps.len() as u64]);
        for gap in &pairing.gaps {
            let place = [gap.start_ts.get(), gap.after.get(), gap.upto.get()];
            out.put(&place);
            out.put(&[gap.cause.len() as u64]);
            out.0.extend_from_slice(gap.cause.as_bytes());
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
        let mut rest = Rest(bytes.get(8..body)?);
        let end = End { position: Position(rest.next()?), sequence: rest.next()? };
        let mut pairing = Pairing {
            watermark: rest.tso()?,
            newest_start: rest.tso()?,
            newest: rest.tso()?,
            ..Pairing::default()
        };
        let mut runs = Vec::new();
        for _ in 0..rest.next()? {
            let first = CommitTs(rest.tso()?);
            runs.push(Run { first, spilled: None, last: CommitTs(rest.tso()?), count: rest.next()? });
        }
        let mut spilled = Vec::new();
        for _ in 0..rest.next()? {
            let (first, start_ts) = (CommitTs(rest.tso()?), StartTs(rest.tso()?));
            let last = CommitTs(rest.tso()?);
            spilled.push(Run { first, spilled: Some(start_ts), last, count: rest.next()? });
        }
        for _ in 0..rest.next()? {
            let start_ts = StartTs(rest.tso()?);
            let open = Open { floor: rest.tso()?, rollback_seen: rest.next()? != 0, place: rest.place()? };
            pairing.open.insert(start_ts, open);
        }
        let mut waiting = Vec::new();
        for _ in 0..rest.next()? {
            waiting.push(Committed {
                commit_ts: CommitTs(rest.tso()?),
                start_ts: StartTs(rest.tso()?),
                prewrite: rest.place()?,
                commit: rest.place()?,
            });
        }
        for _ in 0..rest.next()? {
            let start_ts = StartTs(rest.tso()?);
            let floor = rest.tso()?;
            let mut fate = [rest.next()? as u8; 9];
            fate[1..].copy_from_slice(&rest.next()?.to_le_bytes());
            let dropped = Dropped { fate: Fate::decode(&fate)?, floor, place: rest.place()? };
            pairing.dropped.insert(start_ts, dropped);
        }
        for _ in 0..rest.next()? {
            let base = rest.next()?;
            let needed = Needed { open: rest.next()?, newest: CommitTs(rest.tso()?) };
            pairing.needed.insert(base, needed);
        }
        for _ in 0..rest.next()? {
            let (start_ts, after, upto) = (StartTs(rest.tso()?), rest.tso()?, rest.tso()?);
            let len = rest.next()? as usize;
            let cause = String::from_utf8(rest.bytes(len)?.to_vec()).ok()?;
            pairing.gaps.push(Gap { start_ts, after, upto, cause });
        }
        Some(Self { end, runs, spilled, waiting, pairing })
    }
}

struct Numbers(Vec<u8>);

impl Numbers {
    fn put(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn place(&mut self, place: Place) {
        self.put(&[place.position.get(), u64::from(place.len)]);
    }
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        if self.0.len() < len {
            return None;
        }
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        Some(bytes)
    }

    fn next(&mut self) -> Option<u64> {
        self.bytes(8).map(|bytes| u64_at(bytes, 0))
    }

    fn tso(&mut self) -> Option<Tso> {
        self.next().map(Tso::new)
    }

    fn place(&mut self) -> Option<Place> {
        Some(Place { position: Position(self.next()?), len: u32::try_from(self.next()?).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_damage_is_seen() {
        let place = |position, len| Place { position: Position(position), len };
        let mut pairing = Pairing {
            watermark: Tso::new(40),
            newest_start: Tso::new(60),
            newest: Tso::new(90),
            ..Pairing::default()
        };
        for (start, rollback_seen) in [(7, true), (8, false)] {
            let open = Open { floor: Tso::new(41), rollback_seen, place: place(5000, u32::MAX) };
            pairing.open.insert(StartTs::new(start), open);
        }
        let fate = Fate::LateCopy { commit_ts: CommitTs::new(17) };
        for (start, fate) in [(1, Fate::RolledBack), (2, fate), (3, Fate::Unknown)] {
            let dropped = Dropped { fate, floor: Tso::new(20), place: place(4096, 5) };
            pairing.dropped.insert(StartTs::new(start), dropped);
        }
        pairing.needed.insert(0, Needed { open: 2, newest: CommitTs::new(50) });
        let (after, upto) = (Tso::new(43), Tso::new(44));
        pairing.gaps.push(Gap { start_ts: StartTs::new(3), after, upto, cause: "forgotten".into() });
        let committed = Committed {
            commit_ts: CommitTs::new(50),
            start_ts: StartTs::new(9),
            prewrite: place(4096, 77),
            commit: place(4300, 0),
        };
        let mut published = Published::default();
        let run = Run { first: CommitTs::new(1), spilled: None, last: CommitTs::new(39), count: 12 };
        published.runs.push(run);
        published.spilled.push(Run {
            spilled: Some(StartTs::new(6)),
            last: CommitTs::new(45),
            count: 3,
            ..run
        });
        published.waiting.insert((committed.commit_ts, committed.start_ts), committed);
        let end = End { position: Position(9000), sequence: 33 };

        let bytes = Checkpoint::encode(end, &published, &pairing);
        let Published { runs, spilled, .. } = published;
        let whole = Checkpoint { end, runs, spilled, waiting: vec![committed], pairing };
        assert_eq!(Checkpoint::decode(&bytes), Some(whole));
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
