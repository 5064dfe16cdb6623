//! The keeper: everything the writer must not wait for. It prepares the next segments, writes the mark, saves
//! checkpoints, and gives back the space of collected segments.
//!
//! It runs on a thread of its own; tests on a simulated disk run its work in place instead, so that a seed decides
//! everything. A failed write or sync here is kept and stops the writer (a disk that failed once is not believed
//! again); a full disk is not such a failure: nothing was lost, and the next attempt may succeed.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Options;
use super::disk::{Disk, DiskFile};
use super::mark::Mark;
use super::segment::{DATA, Segment, Segments, encode_header, spare_name, write_at, write_zeros};

/// How often the mark is written while the log grows.
const MARK_INTERVAL: Duration = Duration::from_secs(1);

/// A prepared segment that is not part of the log yet.
pub(super) struct Spare {
    pub name: String,
    pub generation: u64,
    pub size: u64,
    pub file: Arc<dyn DiskFile>,
}

/// A checkpoint to save: first the index files it rests on, then itself.
pub(super) struct Save {
    /// Index files that were appended to.
    pub runs: Vec<Arc<dyn DiskFile>>,
    /// The checkpoint's bytes.
    pub bytes: Vec<u8>,
}

/// Collected files to give back. In this order: the mark says that nobody may read them; the checkpoint no longer needs
/// them; the mark says where the log begins; they go.
pub(super) struct Discard {
    pub collected: u64,
    pub checkpoint: Save,
    pub first: u64,
    pub segments: Vec<Segment>,
    pub runs: Vec<String>,
}

enum Job {
    Save(Save),
    Discard(Discard),
}

#[derive(Default)]
struct Desk {
    spares: VecDeque<Spare>,
    jobs: VecDeque<Job>,
    /// Set when a spare could not be made for lack of space; cleared by the next tick or request.
    full: bool,
    /// Why the disk is not believed any more.
    failed: Option<Arc<str>>,
    stop: bool,
    /// Something is being done just now.
    busy: bool,
}

struct Shared {
    segments: Arc<Segments>,
    options: Options,
    mark_file: Arc<dyn DiskFile>,
    /// The sequence number after the last durable record; written by the log.
    durable: AtomicU64,
    ordinal: AtomicU64,
    /// How large a batch of the last full segment was, in the mean.
    batch_bytes: AtomicU64,
    mark: Mutex<Mark>,
    /// When the mark was last looked after.
    ticked: Mutex<Instant>,
    desk: Mutex<Desk>,
    wake: Condvar,
    idle: Condvar,
}

/// How the keeper's work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// By a thread, beside the writer.
    Thread,
    /// By the writer, at the moment it asks.
    #[cfg(test)]
    Inline,
}

/// The writer's handle.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Takes over the mark and the spares found on disk, and starts to work.
    pub(super) fn start(
        segments: Arc<Segments>,
        options: Options,
        mark_file: Arc<dyn DiskFile>,
        mark: Mark,
        spares: VecDeque<Spare>,
        newest_generation: u64,
        pace: Pace,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            segments,
            options,
            mark_file,
            durable: AtomicU64::new(mark.sequence),
            ordinal: AtomicU64::new(newest_generation >> 32),
            batch_bytes: AtomicU64::new(0),
            mark: Mutex::new(mark),
            ticked: Mutex::new(Instant::now()),
            desk: Mutex::new(Desk { spares, ..Desk::default() }),
            wake: Condvar::new(),
            idle: Condvar::new(),
        });
        let thread = match pace {
            Pace::Thread => {
                let shared = Arc::clone(&shared);
                Some(std::thread::Builder::new().name("log-keeper".into()).spawn(move || shared.run())?)
            }
            #[cfg(test)]
            Pace::Inline => None,
        };
        Ok(Self { shared, thread })
    }

    /// The log, whose end was found to be at `sequence`, will be written to: it is not closed any more. Must be durable
    /// before the first write, or a torn write behind the same end would be taken for nothing.
    pub(super) fn opened(&self, sequence: u64) -> io::Result<()> {
        self.durable(sequence);
        self.shared.write_mark(|_| {})?;
        self.wake();
        Ok(())
    }

    /// Why the disk is not believed any more, if it failed here.
    pub(super) fn failed(&self) -> Option<Arc<str>> {
        self.shared.desk().failed.clone()
    }

    /// Says how far the log is durable.
    pub(super) fn durable(&self, sequence: u64) {
        self.shared.durable.store(sequence, Ordering::Release);
    }

    /// Says that a segment took `bytes` in so many batches and is full.
    pub(super) fn filled(&self, bytes: u64, batches: u64) {
        self.shared.batch_bytes.store(bytes / batches.max(1), Ordering::Relaxed);
    }

    /// The oldest prepared segment whose records may be `data` bytes long, if one is ready; the keeper makes another.
    pub(super) fn take_spare(&self, data: u64) -> Option<Spare> {
        let spare = {
            let mut desk = self.shared.desk();
            let at = desk.spares.iter().position(|spare| spare.size - DATA >= data)?;
            desk.spares.remove(at)
        };
        self.wake();
        spare
    }

    /// Bytes of records that fit into the prepared segments.
    pub(super) fn spare_bytes(&self) -> u64 {
        self.shared.desk().spares.iter().map(|spare| spare.size - DATA).sum()
    }

    /// Prepares a segment now, for records of `data` bytes: reserved on disk, but not written over, which is quick.
    pub(super) fn prepare(&self, data: u64) -> io::Result<Spare> {
        let size = (DATA + data).next_multiple_of(DATA).max(self.shared.options.segment_bytes);
        self.shared.create_spare(size, Fill::Reserved)
    }

    /// Puts a prepared segment back that was not needed.
    pub(super) fn put_back(&self, spare: Spare) {
        self.shared.desk().spares.push_front(spare);
    }

    /// Hands over a checkpoint. One that still waits is replaced: the newer one says all.
    pub(super) fn save(&self, mut save: Save) {
        let mut desk = self.shared.desk();
        if let Some(Job::Save(older)) = desk.jobs.pop_back_if(|job| matches!(job, Job::Save(_))) {
            save.runs.extend(older.runs);
        }
        desk.jobs.push_back(Job::Save(save));
        drop(desk);
        self.wake();
    }

    /// Hands over collected files.
    pub(super) fn discard(&self, discard: Discard) {
        self.shared.desk().jobs.push_back(Job::Discard(discard));
        self.wake();
    }

    /// Waits until there is no work.
    pub(super) fn finish(&self) {
        let desk = self.shared.desk();
        let working = |desk: &mut Desk| desk.busy || self.shared.has_work(desk);
        drop(self.shared.idle.wait_while(desk, working).unwrap_or_else(PoisonError::into_inner));
    }

    /// Finishes all work and writes the mark of an orderly close.
    pub(super) fn close(mut self, closed_at: u64) -> io::Result<()> {
        self.stop();
        while self.shared.work() {}
        if let Some(reason) = self.failed() {
            return Err(io::Error::other(reason.to_string()));
        }
        self.shared.write_mark(|mark| mark.closed_at = closed_at)
    }

    /// Lets time pass: the mark is written as it is every second.
    #[cfg(test)]
    pub(super) fn tick(&self) {
        self.shared.tick();
    }

    fn wake(&self) {
        if self.thread.is_some() {
            self.shared.wake.notify_one();
        } else {
            while self.shared.work() {}
            self.shared.desk().busy = false;
        }
    }

    fn stop(&mut self) {
        self.shared.desk().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic in it was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
    }
}

/// Batches of this size on the average and larger are better off without zeros: a sync of one costs a little more, but
/// there are few, and the disk would write everything twice.
const ZEROS_BELOW: u64 = 256 << 10;

/// Between two looks at whether the mark is due, while a segment is filled.
const FILL_STEP: u64 = 1 << 20;

/// What a prepared segment's bytes are on disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// Written with zeros: a sync of later records changes no metadata, which makes it about twice as fast.
    Zeros,
    /// Space is reserved only.
    Reserved,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> &dyn Disk {
        self.segments.disk.as_ref()
    }

    fn run(&self) {
        loop {
            while self.work() {
                self.tick_when_due();
            }
            let mut desk = self.desk();
            desk.busy = false;
            self.idle.notify_all();
            if desk.stop {
                return;
            }
            let idle = |desk: &mut Desk| !desk.stop && !self.has_work(desk);
            let waited = self.wake.wait_timeout_while(desk, self.until_tick(), idle);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            self.tick_when_due();
        }
    }

    fn has_work(&self, desk: &Desk) -> bool {
        desk.failed.is_none() && (!desk.jobs.is_empty() || self.wants_spare(desk))
    }

    fn wants_spare(&self, desk: &Desk) -> bool {
        !desk.full && desk.spares.len() < self.options.spares
    }

    fn until_tick(&self) -> Duration {
        MARK_INTERVAL.saturating_sub(self.ticked.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }

    /// Between pieces of work too: the mark must not lag by however much there is to do.
    fn tick_when_due(&self) {
        if self.until_tick().is_zero() {
            self.tick();
        }
    }

    fn tick(&self) {
        *self.ticked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        {
            let mut desk = self.desk();
            desk.full = false;
            if desk.failed.is_some() {
                return;
            }
        }
        let marked = self.mark.lock().unwrap_or_else(PoisonError::into_inner).sequence;
        if marked != self.durable.load(Ordering::Acquire) {
            let written = self.write_mark(|_| {});
            self.note("write the mark", written);
        }
    }

    /// Does one piece of work; false if there was none.
    fn work(&self) -> bool {
        let mut desk = self.desk();
        if desk.failed.is_some() {
            return false;
        }
        if let Some(job) = desk.jobs.pop_front() {
            desk.busy = true;
            drop(desk);
            match job {
                Job::Save(save) => self.note("save a checkpoint", self.save(save)),
                Job::Discard(discard) => self.note("give back collected segments", self.discard(discard)),
            }
            return true;
        }
        if !desk.stop && self.wants_spare(&desk) {
            desk.busy = true;
            drop(desk);
            let small = self.batch_bytes.load(Ordering::Relaxed) < ZEROS_BELOW;
            let fill = if small { Fill::Zeros } else { Fill::Reserved };
            match self.create_spare(self.options.segment_bytes, fill) {
                Ok(spare) => self.desk().spares.push_back(spare),
                result => {
                    self.desk().full = true;
                    self.note("prepare a segment", result.map(drop));
                }
            }
            return true;
        }
        false
    }

    /// Keeps a failure for the writer to find, unless it is only a full disk.
    fn note(&self, what: &str, result: io::Result<()>) {
        if let Err(error) = result
            && !is_full(&error)
        {
            self.desk().failed.get_or_insert_with(|| format!("could not {what}: {error}").into());
        }
    }

    fn next_generation(&self) -> u64 {
        // The lower half is unpredictable: nobody who writes binlogs can make a payload look like our records.
        let ordinal = self.ordinal.fetch_add(1, Ordering::Relaxed) + 1;
        (ordinal << 32) | (RandomState::new().build_hasher().finish() >> 32)
    }

    fn create_spare(&self, size: u64, fill: Fill) -> io::Result<Spare> {
        let generation = self.next_generation();
        let name = spare_name(generation);
        let file = self.disk().create(&name)?;
        let filled = (|| {
            file.allocate(size)?;
            write_at(file.as_ref(), &encode_header(generation, size), 0)?;
            if fill == Fill::Zeros {
                let mut at = DATA;
                while at < size {
                    let next = size.min(at + FILL_STEP);
                    write_zeros(file.as_ref(), at, next)?;
                    at = next;
                    self.tick_when_due();
                }
            }
            // Synced in either case: a file that is named as part of the log has a whole first block, or is damaged.
            file.sync()
        })();
        if let Err(error) = filled {
            // The space it took may be what the writer needs. If it cannot be removed, the next start will.
            let _ = self.disk().remove(&name);
            return Err(error);
        }
        Ok(Spare { name, generation, size, file })
    }

    fn write_mark(&self, change: impl FnOnce(&mut Mark)) -> io::Result<()> {
        let mut current = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        let mut mark = Mark { sequence: self.durable.load(Ordering::Acquire), closed_at: 0, ..*current };
        change(&mut mark);
        mark.write(self.mark_file.as_ref())?;
        self.mark_file.sync()?;
        *current = mark;
        Ok(())
    }

    fn save(&self, save: Save) -> io::Result<()> {
        for run in &save.runs {
            super::index::sync(run.as_ref())?;
        }
        replace(self.disk(), super::checkpoint::NAME, &save.bytes)?;
        self.write_mark(|_| {})
    }

    fn discard(&self, discard: Discard) -> io::Result<()> {
        self.write_mark(|mark| mark.collected = mark.collected.max(discard.collected))?;
        // Without space for it the next start reads the whole log; to give space back is then the more urgent.
        self.note("save a checkpoint", self.save(discard.checkpoint));
        self.write_mark(|mark| mark.first = mark.first.max(discard.first))?;
        for run in &discard.runs {
            self.segments.forget(run);
            self.disk().remove(run)?;
        }
        for segment in &discard.segments {
            let name = segment.name();
            let unused = self.segments.forget(&name);
            let keep = self.options.spares + self.options.recycled;
            if unused && segment.size == self.options.segment_bytes && self.desk().spares.len() < keep {
                let generation = self.next_generation();
                let spare = spare_name(generation);
                // Under its old name it is no part of the log either, whatever its header: the mark says so. Under the new
                // one it has the new generation for certain.
                let file = self.disk().open(&name)?;
                write_at(file.as_ref(), &encode_header(generation, segment.size), 0)?;
                file.sync()?;
                self.disk().rename(&name, &spare)?;
                self.desk().spares.push_back(Spare { name: spare, generation, size: segment.size, file });
            } else {
                self.disk().remove(&name)?;
            }
        }
        self.disk().sync_dir()
    }
}

/// Replaces a small file as a whole: after a crash there is the old one or the new one.
pub(super) fn replace(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&temporary)?;
    write_at(file.as_ref(), bytes, 0)?;
    file.sync()?;
    disk.rename(&temporary, name)?;
    disk.sync_dir()
}

/// True if an error says that the disk has no space left, not that it failed.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
