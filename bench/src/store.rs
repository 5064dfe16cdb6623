//! The pump's store alone, without gRPC and without a sorter.
//!
//! `sessions` writers in a closed loop: each sends a prewrite, waits until it is durable, sends its commit, waits again.
//! Whatever they have to write at one time is one group, as in the pump. Then everything is read in commit_ts order, then
//! collected, then the store is opened again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use pump::store::{self, Appender, Options, Reader, Record};
use serde::Serialize;
use tidb::ts::{CommitTs, StartTs, Tso};

use crate::latency::{Latencies, Percentiles};
use crate::process::Process;

/// Bytes that one read may return.
const READ: usize = 1 << 20;

/// A change to store.
#[derive(Clone, Debug)]
enum Op {
    Prewrite { start_ts: StartTs, payload: Bytes },
    Commit { start_ts: StartTs, commit_ts: CommitTs, payload: Bytes },
}

/// What is read back.
#[derive(Clone, Copy, Debug, Default)]
struct Scanned {
    count: u64,
    bytes: u64,
    last: CommitTs,
}

struct Store {
    appender: Appender,
    reader: Reader,
}

impl Store {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let (appender, reader, _) = store::open(dir, Options::default())?;
        Ok(Self { appender, reader })
    }

    /// Makes a group durable.
    fn append(&mut self, group: &[Op]) -> anyhow::Result<()> {
        let records: Vec<_> = group
            .iter()
            .cloned()
            .map(|op| match op {
                Op::Prewrite { start_ts, payload } => {
                    Record::Prewrite { start_ts, floor: start_ts.0, payload }
                }
                Op::Commit { start_ts, commit_ts, payload } => {
                    Record::Commit { start_ts, commit_ts, payload }
                }
            })
            .collect();
        Ok(self.appender.append(&records)?)
    }

    /// Says about once a second that no smaller commit will come.
    fn advance(&mut self, watermark: Tso) -> anyhow::Result<()> {
        Ok(self.appender.append(&[Record::Watermark(watermark)])?)
    }

    /// Reads transactions after `after`, each with its prewrite.
    fn scan(&self, after: CommitTs, upto: CommitTs) -> anyhow::Result<Scanned> {
        let scan = self.reader.scan(after.0, upto.0, READ)?;
        Ok(Scanned {
            count: scan.transactions.len() as u64,
            bytes: scan.transactions.iter().map(|stored| stored.prewrite.len() as u64).sum(),
            last: CommitTs(scan.reached),
        })
    }

    /// Gives back the space of transactions at or below `through`.
    fn collect(&mut self, through: CommitTs) -> anyhow::Result<()> {
        self.appender.append(&[Record::Collected(through.0)])?;
        // The space is given back beside the writer; what is measured is when it is there.
        Ok(self.appender.finish_background()?)
    }
}

/// The load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Writers in a closed loop.
    pub sessions: usize,
    /// Bytes of a prewrite.
    pub payload: usize,
    /// How long to write.
    pub time: Duration,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Writers.
    pub sessions: usize,
    /// Bytes of a prewrite.
    pub payload: usize,
    /// Transactions made durable, prewrite and commit.
    pub transactions: u64,
    /// The same per second.
    pub per_second: f64,
    /// Milliseconds of a group.
    pub group: Percentiles,
    /// Processor seconds per million transactions, background work included.
    pub cpu_per_million: f64,
    /// Bytes written to disk per byte of payload.
    pub write_amplification: f64,
    /// Resident memory after writing, bytes.
    pub resident: u64,
    /// Transactions read back per second, in order, with their prewrites.
    pub read_per_second: f64,
    /// Bytes on disk after writing.
    pub disk: u64,
    /// Bytes on disk after everything was collected.
    pub disk_after_collection: u64,
    /// Seconds that the collection took.
    pub collection_seconds: f64,
    /// Seconds to open the full store again.
    pub open_seconds: f64,
}

/// Runs the load on a new store in `dir` and removes it.
///
/// # Errors
/// The store failed, or did not return what it was given.
pub fn measure(load: Load, dir: &Path) -> anyhow::Result<Measured> {
    let dir = tempfile::tempdir_in(dir).with_context(|| dir.display().to_string())?;
    let own = Process::own();
    let mut engine = Store::open(dir.path())?;
    let (cpu, written) = (own.cpu()?, own.written()?);

    let mut latencies = Latencies::default();
    let mut payloads = Payloads::new(load.payload);
    let mut clock = 1 << 40;
    let mut tick = || {
        clock += 1;
        Tso::new(clock)
    };
    // Half of the sessions begin with a prewrite while the other half commits, as they will in the long run.
    let mut open_by: Vec<Option<StartTs>> = vec![None; load.sessions];
    let mut transactions = 0;
    let mut turn = 0;
    let began = Instant::now();
    let mut advanced = began;
    let mut last = CommitTs::default();
    while began.elapsed() < load.time || open_by.iter().any(Option::is_some) {
        let ending = began.elapsed() >= load.time;
        let mut group = Vec::with_capacity(load.sessions);
        for (session, open) in open_by.iter_mut().enumerate() {
            match open.take() {
                Some(start_ts) => {
                    last = CommitTs(tick());
                    group.push(Op::Commit { start_ts, commit_ts: last, payload: payloads.commit() });
                    transactions += 1;
                }
                None if ending || (turn == 0 && session % 2 == 1) => {}
                None => {
                    let start_ts = StartTs(tick());
                    *open = Some(start_ts);
                    group.push(Op::Prewrite { start_ts, payload: payloads.prewrite() });
                }
            }
        }
        turn += 1;
        let before = Instant::now();
        engine.append(&group)?;
        latencies.add(before.elapsed());
        if advanced.elapsed() > Duration::from_secs(1) {
            advanced = Instant::now();
            // Open prewrites hold the watermark; none commits below the last commit_ts given out.
            engine.advance(last.0)?;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    engine.advance(last.0)?;
    let cpu = (own.cpu()? - cpu).as_secs_f64();
    let resident = own.memory()?.resident;

    let began = Instant::now();
    let mut read = Scanned::default();
    while read.last < last {
        let part = engine.scan(read.last, last)?;
        anyhow::ensure!(part.count > 0, "{} of {transactions} transactions came back", read.count);
        read = Scanned { count: read.count + part.count, bytes: read.bytes + part.bytes, last: part.last };
    }
    let read_seconds = began.elapsed().as_secs_f64();
    anyhow::ensure!(read.count == transactions, "{} of {transactions} transactions came back", read.count);
    anyhow::ensure!(read.bytes == transactions * load.payload as u64, "{} bytes came back", read.bytes);

    let disk = usage(dir.path())?;
    drop(engine);
    let began = Instant::now();
    let mut engine = Store::open(dir.path())?;
    let open_seconds = began.elapsed().as_secs_f64();
    let began = Instant::now();
    engine.collect(last)?;
    let collection_seconds = began.elapsed().as_secs_f64();
    drop(engine);
    let written = own.written()? - written;

    Ok(Measured {
        sessions: load.sessions,
        payload: load.payload,
        transactions,
        per_second: transactions as f64 / seconds,
        group: latencies.percentiles(),
        cpu_per_million: cpu * 1e6 / transactions as f64,
        write_amplification: written as f64 / (transactions as f64 * load.payload as f64),
        resident,
        read_per_second: transactions as f64 / read_seconds,
        disk,
        disk_after_collection: usage(dir.path())?,
        collection_seconds,
        open_seconds,
    })
}

/// Bytes that a directory's files have on disk.
fn usage(dir: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

/// Binlogs of the wanted length, that neither compress to nothing nor cost much to make.
struct Payloads {
    noise: Bytes,
    len: usize,
    at: usize,
}

impl Payloads {
    fn new(len: usize) -> Self {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let noise = (0..len + 65_536).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        Self { noise: noise.collect(), len, at: 0 }
    }

    fn prewrite(&mut self) -> Bytes {
        self.at = (self.at + 97) % 65_536;
        self.noise.slice(self.at..self.at + self.len)
    }

    /// TiDB's commit binlogs have about 60 bytes.
    fn commit(&mut self) -> Bytes {
        self.noise.slice(..60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for (sessions, payload) in [(1, 300), (7, 5000)] {
            let load = Load { sessions, payload, time: Duration::from_millis(50) };
            assert!(measure(load, dir.path()).unwrap().transactions > 0);
        }
    }
}
