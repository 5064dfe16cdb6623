//! The mark: how far the log was durable, in a small file of its own.
//!
//! A log that ends early looks like one that was never longer. The mark tells: a log that ends before it has lost
//! acknowledged records. It is written without hurry (see `keeper`), so it may lag behind the log, never lead it; a lost
//! tail younger than the last mark cannot be told from one that was never acknowledged, which takes a disk that forgets
//! what it synced within that second.
//!
//! Two slots of 512 bytes, 4096 apart, are written in turn, so that a torn write leaves the older one.

use std::io;

use super::disk::{Disk, DiskFile};
use super::record::{u32_at, u64_at};
use super::segment::write_at;

/// The file's name.
pub(super) const NAME: &str = "mark";
const MAGIC: [u8; 8] = *b"SLCMARK\x01";
const SLOT: u64 = 4096;
const LEN: usize = 8 + 5 * 8;

/// What is known to be durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Counts the writes of this file; the slot with the greater one holds.
    pub counter: u64,
    /// Every record with a smaller sequence number was durable.
    pub sequence: u64,
    /// The log was closed in order and ended here; 0 if it was not closed.
    pub closed_at: u64,
    /// The first position kept: segments before it were collected.
    pub first: u64,
    /// Transactions at or below this commit_ts were collected.
    pub collected: u64,
}

impl Mark {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [self.counter, self.sequence, self.closed_at, self.first, self.collected] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes[..8] == MAGIC && crc32c::crc32c(&bytes[..LEN]) == u32_at(bytes, LEN)).then(|| Self {
            counter: u64_at(bytes, 8),
            sequence: u64_at(bytes, 16),
            closed_at: u64_at(bytes, 24),
            first: u64_at(bytes, 32),
            collected: u64_at(bytes, 40),
        })
    }

    /// Creates the file; durable when this returns.
    pub(super) fn create(disk: &dyn Disk) -> io::Result<()> {
        // Under another name until it is whole: a log without a mark is refused, so it must not exist by halves.
        let temporary = "mark.tmp";
        let file = disk.create(temporary)?;
        write_at(file.as_ref(), &vec![0; 2 * SLOT as usize], 0)?;
        let mut mark = Self::default();
        mark.write(file.as_ref())?;
        mark.write(file.as_ref())?;
        file.sync()?;
        disk.rename(temporary, NAME)?;
        disk.sync_dir()
    }

    /// Reads the newer whole slot; `None` if there is none.
    pub(super) fn read(file: &dyn DiskFile) -> io::Result<Option<Self>> {
        let mut newest: Option<Self> = None;
        for slot in 0..2 {
            let mut bytes = [0; LEN + 4];
            match file.read_exact_at(&mut bytes, slot * SLOT) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(error),
            }
            if let Some(mark) = Self::decode(&bytes)
                && newest.is_none_or(|newest| mark.counter > newest.counter)
            {
                newest = Some(mark);
            }
        }
        Ok(newest)
    }

    /// Counts up and writes the next slot. Not synced.
    pub(super) fn write(&mut self, file: &dyn DiskFile) -> io::Result<()> {
        self.counter += 1;
        write_at(file, &self.encode(), self.counter % 2 * SLOT)
    }
}
