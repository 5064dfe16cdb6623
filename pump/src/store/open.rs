//! Opening: recovers the log, then brings the index up to it.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tidb::ts::CommitTs;

use super::appender::Appender;
use super::checkpoint::{self, Checkpoint};
use super::disk::{Directory, Disk};
use super::index::{Index, Published};
use super::keeper::{Keeper, Pace, is_full};
use super::log::Log;
use super::pairing::Pairing;
use super::record::Kind;
use super::recover::{self, End, Survey, at};
use super::run::{self, Run};
use super::segment::{DATA, Position, Segments, segment_name};
use super::{Options, Pending, Reader, Recovered, StoreError};

/// Opens the store in `dir`, or begins one, and checks that nothing acknowledged is missing. The caller makes sure that
/// nobody else has it open.
///
/// # Errors
/// Acknowledged data is missing or damaged, or the disk fails. Nothing was repaired or dropped then.
pub fn open(dir: &Path, options: Options) -> Result<(Appender, Reader, Recovered), StoreError> {
    let read = |source| StoreError::Read { path: dir.to_owned(), source };
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {
            // The directory itself must survive a crash, with what it will hold.
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            std::fs::File::open(parent.unwrap_or(Path::new(".")))
                .and_then(|dir| dir.sync_all())
                .map_err(read)?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(read(error)),
    }
    open_on(Arc::new(Directory(dir.to_owned())), options, Pace::Thread)
}

/// Opens the store on a disk.
pub(super) fn open_on(
    disk: Arc<dyn Disk>,
    options: Options,
    pace: Pace,
) -> Result<(Appender, Reader, Recovered), StoreError> {
    if options.segment_bytes < 2 * DATA || !options.segment_bytes.is_multiple_of(DATA) {
        return Err(StoreError::Options("the segment size must be a multiple of 4096, and at least 8192"));
    }
    let mut survey = recover::survey(disk.as_ref(), &options)?;
    let segments = Arc::new(Segments::new(Arc::clone(&disk), survey.segments.clone()));
    let saved = usable_checkpoint(disk.as_ref(), &survey, &segments)?;
    if saved.is_none() {
        forget_checkpoint(disk.as_ref())?;
    }
    remove_other_files(disk.as_ref(), &survey, saved.as_ref())?;

    let rebuilt = saved.is_none() && !survey.segments.is_empty();
    let saved = saved.unwrap_or_else(|| {
        let first = survey.segments.first().map_or(survey.mark.first, |segment| segment.base);
        // Unless it was collected, the log begins at 1; otherwise its first record says where.
        let end = End { position: Position(first), sequence: u64::from(survey.mark.first == 0) };
        let pairing = Pairing::default();
        Checkpoint { end, runs: Vec::new(), spilled: Vec::new(), waiting: Vec::new(), pairing }
    });
    let collected = CommitTs::new(survey.mark.collected);
    let from = saved.end;
    let mut pairing = saved.pairing;
    // What was collected had been passed, even if the record that said so is gone.
    pairing.watermark = pairing.watermark.max(collected.0);
    let kept = |runs: Vec<Run>| runs.into_iter().filter(|run| run.last > collected).collect();
    let published =
        Published { runs: kept(saved.runs), spilled: kept(saved.spilled), collected, ..Published::default() };
    let mut index = Index::new(Arc::clone(&segments), published, options.waiting_bytes);
    index.add(saved.waiting.into_iter().filter(|waiting| waiting.commit_ts > collected));
    // There may be less memory for them than there was.
    written(disk.as_ref(), index.spill())?;

    let mut replayed = 0;
    let end = recover::replay(disk.as_ref(), &survey, from, |header, fact, position| {
        replayed += 1;
        let base = segments.at(position).map_or(0, |segment| segment.base);
        match pairing.apply(header, fact, position, base) {
            Ok(committed) => index.add(committed),
            // About a prewrite that was collected: its segment is gone, this one is not.
            Err(_) if rebuilt && header.stamp <= collected.get() => {}
            Err(_) => {
                return Err(StoreError::Corrupt {
                    path: disk.path(&segment_name(base)),
                    offset: position.get() - base,
                    what: "the record here contradicts those before it; restore the directory from a copy, or declare \
                           this pump lost with `binlogctl -cmd update-pump -node-id … -state offline`",
                });
            }
        }
        if header.kind == Kind::Watermark {
            written(disk.as_ref(), index.settle(pairing.watermark))?;
        }
        written(disk.as_ref(), index.spill())
    })?;

    let mut pending: Vec<_> = pairing
        .open
        .iter()
        .map(|(&start_ts, open)| Pending { start_ts, floor: open.floor, rollback_seen: open.rollback_seen })
        .collect();
    pending.sort_unstable_by_key(|pending| pending.start_ts);
    let recovered = Recovered {
        pending,
        watermark: pairing.watermark,
        newest_start: pairing.newest_start,
        newest: pairing.newest,
        empty: end.sequence <= 1,
        replayed,
        rebuilt,
    };

    let keeper = Keeper::start(
        Arc::clone(&segments),
        options,
        Arc::clone(&survey.mark_file),
        survey.mark,
        std::mem::take(&mut survey.spares),
        survey.newest_generation,
        pace,
    );
    let keeper = at(disk.as_ref(), "", keeper)?;
    let log = Log::resume(Arc::clone(&segments), keeper, options, end.position, end.sequence);
    let log = at(disk.as_ref(), "", log)?;
    let bases = survey.segments.iter().rev().map(|segment| segment.base);
    let last_base = bases.into_iter().find(|base| base + DATA < end.position.get()).unwrap_or(0);
    let pairing = Arc::new(Mutex::new(pairing));
    let reader = Reader {
        segments: Arc::clone(&segments),
        durable: log.durable(),
        published: Arc::clone(&index.published),
        pairing: Arc::clone(&pairing),
    };
    // What lies before the checkpoint was not read. An open prewrite will be needed for certain, so one that has rotted is
    // named now, not by a pump that ends whenever it comes to it.
    let open = pairing
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .open
        .values()
        .map(|open| open.place)
        .collect::<Vec<_>>();
    for place in open {
        reader.verify(place)?;
    }
    let checkpointed = (from.position.get(), 0);
    let mut appender = Appender { log, index, segments, pairing, checkpointed, options, last_base };
    if rebuilt {
        appender.save();
    }
    Ok((appender, reader, recovered))
}

/// The checkpoint, if there is one and it fits what is on disk.
fn usable_checkpoint(
    disk: &dyn Disk,
    survey: &Survey,
    segments: &Arc<Segments>,
) -> Result<Option<Checkpoint>, StoreError> {
    let file = match disk.open(checkpoint::NAME) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Read { path: disk.path(checkpoint::NAME), source }),
    };
    let len = at(disk, checkpoint::NAME, file.len())?;
    let mut bytes = vec![0; len as usize];
    at(disk, checkpoint::NAME, file.read_exact_at(&mut bytes, 0))?;
    let Some(mut saved) = Checkpoint::decode(&bytes) else { return Ok(None) };
    let first = survey.segments.first().map_or(survey.mark.first, |segment| segment.base);
    let last = survey.segments.last().map_or(survey.mark.first, |segment| segment.end());
    // Of a part that was collected meanwhile, or that is missing, which reading the log will tell.
    if !(first..=last).contains(&saved.end.position.get()) {
        return Ok(None);
    }
    let collected = CommitTs::new(survey.mark.collected);
    for run in saved.runs.iter().chain(&saved.spilled).filter(|run| run.last > collected) {
        if !at(disk, &run.name(), run::is_there(segments, run))? {
            return Ok(None);
        }
    }
    for committed in &saved.waiting {
        saved.pairing.committed.insert(committed.start_ts, *committed);
    }
    Ok(Some(saved))
}

/// What became of a write to the index: as when it was written first, what has no place in a file waits in memory.
fn written(disk: &dyn Disk, result: io::Result<()>) -> Result<(), StoreError> {
    match result {
        Err(error) if !is_full(&error) => at(disk, "", Err(error)),
        _ => Ok(()),
    }
}

/// Removes a checkpoint that is of no use, for good, before the index is written again: which transactions are spilled is
/// chance, so it must not come to fit files that have its names and lengths, and other contents.
fn forget_checkpoint(disk: &dyn Disk) -> Result<(), StoreError> {
    match disk.remove(checkpoint::NAME) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => at(disk, checkpoint::NAME, Err(error)),
        // Whoever removed it before need not have synced that.
        _ => at(disk, "", disk.sync_dir()),
    }
}

/// Removes index files that no checkpoint rests on: they are written again from the log.
fn remove_other_files(
    disk: &dyn Disk,
    survey: &Survey,
    saved: Option<&Checkpoint>,
) -> Result<(), StoreError> {
    let files = saved.into_iter().flat_map(|saved| saved.runs.iter().chain(&saved.spilled));
    let used = files.filter(|run| run.last.get() > survey.mark.collected).map(Run::name);
    let used: HashSet<_> = used.collect();
    for name in survey.index.iter().filter(|name| !used.contains(*name)) {
        at(disk, name, disk.remove(name))?;
    }
    Ok(())
}
