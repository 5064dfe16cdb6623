//! The durable mark: a file beside RocksDB with the number of the last synced group.
//!
//! Two slots in two sectors, written in turn after each sync, each with its checksum; the larger valid one counts. A
//! power cut may lose the latest writes of this file, which only makes the check weaker, never wrong.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::StoreError;

const SLOT: u64 = 512;
const SIZE: usize = 12;

pub(super) struct Mark {
    file: File,
    path: PathBuf,
    promised: u64,
}

impl Mark {
    pub(super) fn create(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join("durable");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
        let mark = match file {
            Ok(file) => Self { file, path, promised: 0 },
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        mark.write_slot(0, 0)?;
        mark.write_slot(1, 0)?;
        mark.sync()?;
        let directory = File::open(data_dir).and_then(|directory| directory.sync_all());
        directory.map_err(|source| StoreError::Io { path: data_dir.to_owned(), source })?;
        Ok(mark)
    }

    pub(super) fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join("durable");
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) => return Err(StoreError::Mark { path, reason: e.to_string() }),
        };
        let slots = [0, 1].map(|slot| read_slot(&file, slot));
        match slots.iter().flatten().max() {
            Some(&promised) => Ok(Self { file, path, promised }),
            None => Err(StoreError::Mark { path, reason: "neither slot has a valid checksum".into() }),
        }
    }

    /// Groups up to this number were synced.
    pub(super) fn promised(&self) -> u64 {
        self.promised
    }

    /// To be called only after the group was synced.
    pub(super) fn write(&mut self, number: u64) -> Result<(), StoreError> {
        self.write_slot(number % 2, number)?;
        self.promised = number;
        Ok(())
    }

    fn write_slot(&self, slot: u64, number: u64) -> Result<(), StoreError> {
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..].copy_from_slice(&crc32c::crc32c(&number.to_le_bytes()).to_le_bytes());
        self.file
            .write_all_at(&bytes, slot * SLOT)
            .map_err(|source| StoreError::Io { path: self.path.clone(), source })
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|source| StoreError::Io { path: self.path.clone(), source })
    }
}

fn read_slot(file: &File, slot: u64) -> Option<u64> {
    let mut bytes = [0; SIZE];
    file.read_exact_at(&mut bytes, slot * SLOT).ok()?;
    let (number, checksum) = bytes.split_first_chunk::<8>()?;
    (crc32c::crc32c(number).to_le_bytes() == *checksum).then(|| u64::from_le_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_valid_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut mark = Mark::create(dir.path()).unwrap();
        assert_eq!(Mark::open(dir.path()).unwrap().promised(), 0);
        for number in 1..=5 {
            mark.write(number).unwrap();
        }
        assert_eq!(Mark::open(dir.path()).unwrap().promised(), 5);
        // The slot being written when the power went is torn: the one before still counts.
        mark.file.write_all_at(&[0xff; SIZE], SLOT).unwrap();
        assert_eq!(Mark::open(dir.path()).unwrap().promised(), 4);
        mark.file.write_all_at(&[0xff; SIZE], 0).unwrap();
        assert!(matches!(Mark::open(dir.path()), Err(StoreError::Mark { .. })));
        std::fs::remove_file(dir.path().join("durable")).unwrap();
        assert!(matches!(Mark::open(dir.path()), Err(StoreError::Mark { .. })));
    }
}
