//! A disk that keeps in memory what was not synced, and forgets a part of it when the power goes.
//!
//! Content: each sector of 512 bytes that was written since the file's last sync survives or not, by itself. Names: the
//! operations since the directory's last sync survive up to a point. Both are drawn from a seed.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// A small generator (splitmix64), so that a seed decides everything.
#[derive(Clone, Debug)]
pub(super) struct Dice(pub u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides.max(1)
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Operation {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    unsynced: Vec<Operation>,
    /// Operations that change something until the power goes.
    budget: Option<u64>,
    /// Syncs until one fails, and forgets what it was to keep.
    failing_sync: Option<u64>,
    /// Bytes that all files together may have; once they do, none can be made either.
    capacity: Option<u64>,
    /// Handles from before a crash are of no use.
    life: u64,
    counts: Counts,
}

fn rename(names: &mut BTreeMap<String, usize>, operation: &Operation) -> io::Result<()> {
    match operation {
        Operation::Create(name, inode) => {
            if names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            names.insert(name.clone(), *inode);
        }
        Operation::Rename(from, to) => {
            let inode = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            names.insert(to.clone(), inode);
        }
        Operation::Remove(name) => {
            names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        }
    }
    Ok(())
}

impl State {
    /// Counts an operation that changes something.
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.budget {
            Some(0) => Err(io::Error::other("the power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn is_on(&self, life: u64) -> io::Result<()> {
        if self.budget == Some(0) || self.life != life {
            return Err(io::Error::other("the power is off"));
        }
        Ok(())
    }

    fn name(&mut self, operation: Operation) -> io::Result<()> {
        self.spend()?;
        rename(&mut self.names, &operation)?;
        self.unsynced.push(operation);
        Ok(())
    }

    /// Grows a file, if there is space.
    fn grow(&mut self, inode: usize, len: usize) -> io::Result<()> {
        let have = self.inodes[inode].current.len();
        let more = len.saturating_sub(have) as u64;
        if more > 0 && self.capacity.is_some_and(|capacity| self.used() + more > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inodes[inode].current.resize(len.max(have), 0);
        Ok(())
    }

    fn used(&self) -> u64 {
        self.names.values().map(|&inode| self.inodes[inode].current.len() as u64).sum()
    }
}

/// How often content was written and made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub writes: u64,
    pub syncs: u64,
}

/// The disk; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct CrashDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct CrashFile {
    disk: CrashDisk,
    inode: usize,
    life: u64,
}

impl CrashDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The power goes after this many more operations that change something.
    pub(super) fn power_off_after(&self, operations: u64) {
        self.state().budget = Some(operations);
    }

    /// The power will not go any more.
    pub(super) fn power_on(&self) {
        self.state().budget = None;
    }

    /// True if the power went.
    pub(super) fn is_off(&self) -> bool {
        self.state().budget == Some(0)
    }

    /// The sync after this many more fails, and what it should have kept is gone.
    pub(super) fn fail_sync_after(&self, syncs: u64) {
        self.state().failing_sync = Some(syncs);
    }

    /// All files together may have this many bytes.
    pub(super) fn limit(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Bytes of all files.
    pub(super) fn used(&self) -> u64 {
        self.state().used()
    }

    /// How often content was written and made durable so far.
    pub(super) fn counts(&self) -> Counts {
        self.state().counts
    }

    /// The power comes back: what was not synced is there by chance.
    pub(super) fn reboot(&self, dice: &mut Dice) {
        let mut state = self.state();
        let keep = dice.roll(state.unsynced.len() as u64 + 1) as usize;
        let mut names = std::mem::take(&mut state.durable_names);
        for operation in state.unsynced.drain(..).take(keep) {
            // What came before it survived too, so it fits.
            rename(&mut names, &operation).unwrap();
        }
        state.names = names.clone();
        state.durable_names = names;
        for inode in &mut state.inodes {
            if inode.durable == inode.current {
                continue;
            }
            let len = if dice.roll(2) == 0 { inode.durable.len() } else { inode.current.len() };
            let mut survived = inode.durable.clone();
            survived.resize(len, 0);
            let all = dice.roll(4);
            for (index, sector) in survived.chunks_mut(SECTOR).enumerate() {
                let from = index * SECTOR;
                let Some(new) = inode.current.get(from..from + sector.len()) else { continue };
                let lives = match all {
                    0 => false,
                    1 => true,
                    _ => dice.roll(2) == 0,
                };
                if lives {
                    sector.copy_from_slice(new);
                }
            }
            inode.durable = survived.clone();
            inode.current = survived;
        }
        state.budget = None;
        state.failing_sync = None;
        state.life += 1;
    }

    /// The process dies, the machine does not: everything written is there.
    pub(super) fn kill(&self) {
        let mut state = self.state();
        state.budget = None;
        state.failing_sync = None;
        state.life += 1;
    }

    /// Files that are there, with their lengths.
    pub(super) fn files(&self) -> Vec<(String, usize)> {
        let state = self.state();
        state.names.iter().map(|(name, &inode)| (name.clone(), state.inodes[inode].current.len())).collect()
    }

    /// Changes bytes behind the log's back.
    pub(super) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let inode = state.names[name];
        change(&mut state.inodes[inode].current);
        state.inodes[inode].durable = state.inodes[inode].current.clone();
    }

    /// Removes a file behind the log's back.
    pub(super) fn lose(&self, name: &str) {
        let mut state = self.state();
        state.names.remove(name).unwrap();
        state.durable_names = state.names.clone();
        state.unsynced.clear();
    }

    fn handle(&self, inode: usize, life: u64) -> Arc<dyn DiskFile> {
        Arc::new(CrashFile { disk: self.clone(), inode, life })
    }
}

impl Disk for CrashDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state();
        let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let life = state.life;
        drop(state);
        Ok(self.handle(inode, life))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        if state.capacity.is_some_and(|capacity| state.used() >= capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.name(Operation::Create(name.to_owned(), inode))?;
        let life = state.life;
        drop(state);
        Ok(self.handle(inode, life))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state().name(Operation::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state().name(Operation::Remove(name.to_owned()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        state.durable_names = state.names.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/crash").join(name)
    }
}

impl DiskFile for CrashFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.state();
        state.is_on(self.life)?;
        let from = offset as usize;
        let bytes = state.inodes[self.inode].current.get(from..from + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.is_on(self.life)?;
        state.counts.writes += 1;
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let from = offset as usize;
        state.grow(self.inode, from + bytes.len())?;
        let content = &mut state.inodes[self.inode].current;
        content[from..from + bytes.len()].copy_from_slice(&bytes);
        // Spent last: the power may go when the write was made, and it survives by chance.
        state.spend()
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.is_on(self.life)?;
        state.spend()?;
        if state.budget == Some(0) {
            return Err(io::Error::other("the power is off"));
        }
        match &mut state.failing_sync {
            Some(0) => {
                state.failing_sync = None;
                let inode = &mut state.inodes[self.inode];
                inode.current = inode.durable.clone();
                return Err(io::Error::other("the disk failed"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        state.counts.syncs += 1;
        let inode = &mut state.inodes[self.inode];
        inode.durable = inode.current.clone();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.is_on(self.life)?;
        Ok(state.inodes[self.inode].current.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.is_on(self.life)?;
        state.grow(self.inode, len as usize)?;
        state.spend()
    }
}
