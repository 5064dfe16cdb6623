//! Opening a log that may have been cut short.
//!
//! What a crash can leave: the last batch in part, in any mixture of its sectors; files half created, renamed or
//! removed. That is put in order. Everything else is damage, and refused with the place: a record that is gone although a
//! later batch is there (a later batch was begun only when that record was synced), a log that ends before its mark, a
//! segment that is missing or has a broken first block.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::disk::{Disk, DiskFile};
use super::keeper::Spare;
use super::mark::{self, Mark};
use super::record::Header;
use super::scan::Scan;
use super::segment::{DATA, Name, Position, Segment, read_header, write_zeros};
use super::{Options, StoreError};

/// What is on disk.
pub(super) struct Survey {
    pub mark: Mark,
    pub mark_file: Arc<dyn DiskFile>,
    /// In log order, without gaps.
    pub segments: Vec<Segment>,
    pub spares: VecDeque<Spare>,
    /// Names of the index files.
    pub index: Vec<String>,
    /// No segment or spare carries a greater generation.
    pub newest_generation: u64,
}

/// Where the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Behind the last record.
    pub position: Position,
    /// The sequence number that the next record gets.
    pub sequence: u64,
}

/// Names the file that an operation failed on.
pub(super) fn at<T>(disk: &dyn Disk, name: &str, result: io::Result<T>) -> Result<T, StoreError> {
    result.map_err(|source| StoreError::Read { path: disk.path(name), source })
}

/// Lists the directory, removes what a crash left half made, and checks that the segments join up.
pub(super) fn survey(disk: &dyn Disk, options: &Options) -> Result<Survey, StoreError> {
    let mut names = at(disk, "", disk.list())?;
    names.sort_unstable();

    let has_segments = names.iter().any(|name| matches!(Name::parse(name), Name::Segment(_)));
    if !names.iter().any(|name| name == mark::NAME) {
        if has_segments {
            return Err(StoreError::NoMark { path: disk.path(mark::NAME) });
        }
        remove_temporary(disk, &names)?;
        at(disk, mark::NAME, Mark::create(disk))?;
    } else {
        remove_temporary(disk, &names)?;
    }
    let mark_file = at(disk, mark::NAME, disk.open(mark::NAME))?;
    let Some(mark) = at(disk, mark::NAME, Mark::read(mark_file.as_ref()))? else {
        return Err(StoreError::NoMark { path: disk.path(mark::NAME) });
    };

    // A process that died may have left it in memory only; what is removed below must not come to be missed.
    at(disk, mark::NAME, mark_file.sync())?;

    let mut survey = Survey {
        mark,
        mark_file,
        segments: vec![],
        spares: VecDeque::new(),
        index: vec![],
        newest_generation: 0,
    };
    for name in &names {
        match Name::parse(name) {
            Name::Segment(base) if base < mark.first => {
                // Its collection had been decided and was not finished.
                at(disk, name, disk.remove(name))?;
            }
            Name::Segment(base) => {
                let file = at(disk, name, disk.open(name))?;
                let Some((generation, size)) = at(disk, name, read_header(file.as_ref()))? else {
                    return Err(StoreError::BadSegment { path: disk.path(name) });
                };
                survey.newest_generation = survey.newest_generation.max(generation);
                survey.segments.push(Segment { base, size, generation });
            }
            Name::Spare(named) => {
                let file = at(disk, name, disk.open(name))?;
                // Counted even if it is not kept: its removal might not last.
                survey.newest_generation = survey.newest_generation.max(named);
                match at(disk, name, read_header(file.as_ref()))? {
                    Some((generation, size)) => {
                        survey.newest_generation = survey.newest_generation.max(generation);
                        let wanted = survey.spares.len() < options.spares + options.recycled;
                        // With another generation it holds records that would be taken for new ones.
                        if generation == named && size == options.segment_bytes && wanted {
                            // As when it was made: a process that died in between may not have come to it.
                            at(disk, name, file.sync())?;
                            survey.spares.push_back(Spare { name: name.clone(), generation, size, file });
                        } else {
                            at(disk, name, disk.remove(name))?;
                        }
                    }
                    None => at(disk, name, disk.remove(name))?,
                }
            }
            Name::Index => survey.index.push(name.clone()),
            Name::Temporary | Name::Other => {}
        }
    }

    let mut expected = mark.first;
    for segment in &survey.segments {
        if segment.base != expected {
            return Err(StoreError::MissingSegment {
                from: Position(expected),
                to: Position(segment.base),
                next: disk.path(&segment.name()),
            });
        }
        expected = segment.end();
    }
    if survey.segments.is_empty() && (mark.sequence > 1 || mark.first > 0) {
        return Err(StoreError::AllMissing { dir: disk.path(""), sequence: mark.sequence });
    }
    Ok(survey)
}

fn remove_temporary(disk: &dyn Disk, names: &[String]) -> Result<(), StoreError> {
    for name in names.iter().filter(|name| Name::parse(name) == Name::Temporary) {
        at(disk, name, disk.remove(name))?;
    }
    Ok(())
}

/// Reads every record from `from` on, in order, then makes sure that the log really ends where records end, and makes
/// that end durable. `from.sequence` 0 stands for unknown: the first record decides.
///
/// # Errors
/// Of `visit`, or that records are missing; nothing was changed then.
pub(super) fn replay(
    disk: &dyn Disk,
    survey: &Survey,
    from: End,
    mut visit: impl FnMut(&Header, &[u8], Position) -> Result<(), StoreError>,
) -> Result<End, StoreError> {
    let mut expected = from.sequence;
    let mut end = from.position;
    let first = survey.segments.partition_point(|segment| segment.end() <= from.position.0);
    let segments = survey.segments.get(first..).unwrap_or_default();
    let mut strays: Vec<(Segment, u64, u64)> = Vec::new();

    for (index, &segment) in segments.iter().enumerate() {
        let name = segment.name();
        let file = at(disk, &name, disk.open(&name))?;
        let mut scan = Scan::new(file.as_ref(), segment);
        let mut offset = from.position.0.saturating_sub(segment.base).max(DATA);
        while let Some(header) = at(disk, &name, scan.record(offset))? {
            let fits = if expected == 0 { index == 0 } else { header.sequence == expected };
            if !fits {
                break;
            }
            let fact = match header.kind.has_fact() {
                true => at(disk, &name, scan.payload(offset, &header))?,
                false => Vec::new(),
            };
            visit(&header, &fact, Position(segment.base + offset))?;
            expected = header.sequence + 1;
            offset += header.stride();
        }
        // A segment without records counts as the end only if it is the last: then the next record goes there.
        let last = index + 1 == segments.len();
        if offset > DATA || last {
            end = Position(segment.base + offset);
        }
        if last && survey.mark.closed_at == end.0 && survey.mark.sequence == expected {
            break;
        }

        let mut search = offset;
        while let Some((found, header)) = at(disk, &name, scan.find(search))? {
            // Records of the batch that was being written when the crash came are there by chance.
            let torn = last && header.batch_first() <= expected.max(1);
            if !torn {
                return Err(StoreError::Hole {
                    path: disk.path(&name),
                    offset,
                    from: expected,
                    to: header.sequence.saturating_sub(1),
                });
            }
            search = found + header.stride();
            strays.push((segment, offset, search));
        }
    }

    expected = expected.max(1);
    if survey.mark.sequence > expected {
        let segment = segments.last().copied();
        return Err(StoreError::LostTail {
            path: disk.path(&segment.map(|segment| segment.name()).unwrap_or_default()),
            offset: segment.map_or(0, |segment| end.0.saturating_sub(segment.base)),
            from: expected,
            to: survey.mark.sequence - 1,
        });
    }

    if let Some(&segment) = segments.last() {
        let name = segment.name();
        let file = at(disk, &name, disk.open(&name))?;
        for (_, from, to) in strays {
            at(disk, &name, write_zeros(file.as_ref(), from, to.min(segment.size)))?;
        }
        // What was read may so far be in memory only.
        at(disk, &name, file.sync())?;
        at(disk, "", disk.sync_dir())?;
    }
    Ok(End { position: end, sequence: expected })
}
