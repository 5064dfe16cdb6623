//! How far the log goes: the newest watermark at its end, looked up now and then beside the following.
//!
//! Only for showing lag while much is still to be read; nothing rests on it.

use std::sync::Arc;
use std::time::Duration;

use node::shutdown::Shutdown;
use prost::Message as _;
use schemas::sluice::v1::CommitRecord;
use tidb::ts::CommitTs;
use tracing::debug;

use super::{FollowOptions, ONLY};
use crate::kafka::{LogReader, Polled, ReadError};
use crate::progress::FollowProgress;

/// How often.
const EVERY: Duration = Duration::from_secs(2);
/// How many offsets from the end: a record and its marker, twice.
const BACK: i64 = 4;
/// Memory for it.
const PREFETCH: usize = 64 * 1024;

/// Watches the end of the log until the shutdown, on the calling thread.
pub fn watch(
    options: &FollowOptions,
    progress: &Arc<FollowProgress>,
    shutdown: &Shutdown,
) -> Result<(), ReadError> {
    let topic = options.commits_topic();
    let mut reader = LogReader::new(&options.settings, PREFETCH, &options.troubles)?;
    let runtime = tokio::runtime::Handle::current();
    let mut seen = 0;
    while runtime.block_on(async { tokio::time::timeout(EVERY, shutdown.cancelled()).await }).is_err() {
        match look(&mut reader, &topic, seen, shutdown) {
            Ok((end, newest)) => {
                seen = end;
                if let Some(newest) = newest {
                    progress.saw(newest);
                }
            }
            // Whoever follows will say so.
            Err(error) => debug!(%error, "could not look at the end of the log"),
        }
    }
    Ok(())
}

/// The end of the log, and the newest watermark there if it moved.
fn look(
    reader: &mut LogReader,
    topic: &str,
    seen: i64,
    shutdown: &Shutdown,
) -> Result<(i64, Option<CommitTs>), ReadError> {
    let (log_start, end) = reader.bounds(topic, ONLY)?;
    if end <= seen || log_start == end {
        return Ok((end, None));
    }
    reader.open(topic, ONLY, (end - BACK).max(log_start))?;
    let mut newest = None;
    while !shutdown.is_cancelled() {
        match reader.poll(topic, ONLY, Duration::from_millis(500))? {
            Polled::Record(record) => {
                let commit = record.value.and_then(|value| CommitRecord::decode(value).ok());
                newest = newest.max(commit.map(|commit| CommitTs::new(commit.watermark)));
            }
            Polled::End | Polled::Nothing => break,
        }
    }
    Ok((end, newest))
}
