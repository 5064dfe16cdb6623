//! The topics of a feed: opened where they must be, waited for, and checked to be still the same.

use std::time::{Duration, Instant};

use prost::Message as _;
use schemas::sluice::v1::CommitRecord;
use tracing::{info, warn};

use super::{FollowError, Follower, LOOK, ONLY, REPORT, Stop};
use crate::chain::Start;
use crate::kafka::{LogReader, Polled, ReadError, Record};
use crate::remains::Missing;
use crate::schema::SchemaView;

/// How long a definition may be missing although rows that need it are visible.
const DEFINITION: Duration = Duration::from_secs(60);
/// How far before the end of the commit stream the first look for a summary goes: offsets, markers included.
const WINDOW: i64 = 250;
/// How long after one question about a topic's end the next is put.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Follower {
    /// Asks the brokers until they answer. A topic they do not know may only be one they have not loaded yet.
    pub(super) fn ask<T>(
        &mut self,
        what: &str,
        ask: impl Fn(&mut LogReader) -> Result<T, ReadError>,
    ) -> Result<T, Stop> {
        let began = Instant::now();
        loop {
            match ask(&mut self.reader) {
                Err(error)
                    if error.is_transient()
                        || matches!(error, ReadError::NoTopic { .. }) && began.elapsed() < REPORT =>
                {
                    warn!(%error, what, "the brokers did not answer, asking again");
                    self.progress.waiting(Some(format!("the brokers ({what}): {error}")));
                    self.pause()?;
                }
                other => return Ok(other?),
            }
        }
    }

    /// Waits a second, or for the shutdown.
    pub(super) fn pause(&self) -> Result<(), Stop> {
        let second = Duration::from_secs(1);
        let runtime = tokio::runtime::Handle::current();
        match runtime.block_on(async { tokio::time::timeout(second, self.shutdown.cancelled()).await }) {
            Ok(()) => Err(Stop::Ended),
            Err(_) => Ok(()),
        }
    }

    /// Waits until a topic is there: for ever, while the feed may not have begun.
    pub(super) fn await_topic(&mut self, topic: &str) -> Result<(), Stop> {
        let since = Instant::now();
        loop {
            match self.ask(topic, |reader| reader.partitions(topic))? {
                1 => return Ok(()),
                0 if (self.position.is_some() || self.remains.has_begun()) && since.elapsed() >= REPORT => {
                    return Err(ReadError::NoTopic { topic: topic.to_owned(), partition: ONLY }.into());
                }
                0 => {
                    self.progress.waiting(Some(format!("topic {topic} to be created")));
                    self.pause()?;
                }
                found => return Err(FollowError::Partitions { topic: topic.to_owned(), found }.into()),
            }
        }
    }

    /// Where the commit stream is to be read from, if it still goes on from there.
    pub(super) fn find_commits(&mut self) -> Result<i64, Stop> {
        let topic = self.commits.clone();
        self.await_topic(&topic)?;
        let (log_start, end) = self.ask(&topic, |reader| reader.bounds(&topic, ONLY))?;
        if log_start == end && end > 0 {
            return Err(ReadError::Emptied { topic, partition: ONLY, end }.into());
        }
        let offset = match &self.start {
            Start::Attach { .. } => log_start,
            Start::Resume(position) => position.commits_offset,
        };
        if offset < log_start {
            let (first, last) = (offset, log_start - 1);
            return Err(ReadError::Gap { topic, partition: ONLY, first, last, log_start }.into());
        }
        if offset > end {
            return Err(ReadError::Shorter { topic, partition: ONLY, offset: offset - 1, end }.into());
        }
        Ok(offset)
    }

    /// Reads what the end of the commit stream says of the schema topic, wherever following begins: this consumer may be
    /// behind, or stand at the end where nothing comes any more.
    pub(super) fn read_newest_summary(&mut self) -> Result<(), Stop> {
        let topic = self.commits.clone();
        let (log_start, end) = self.ask(&topic, |reader| reader.bounds(&topic, ONLY))?;
        let (mut window, mut told) = (WINDOW, false);
        while !told && log_start < end {
            let from = (end - window).max(log_start);
            self.reader.open(&topic, ONLY, from)?;
            loop {
                match self.poll(&topic, ONLY)? {
                    Polled::Record(record) if record.offset >= end => break,
                    // What cannot be read, or is another feed's, is named by whoever comes to it.
                    Polled::Record(Record { value: Some(value), .. }) => {
                        let ours = |commit: &CommitRecord| {
                            let feed = self.position.as_ref().map(|position| position.feed_id);
                            feed.is_none_or(|feed| feed.as_bytes() == commit.feed_id.as_ref())
                        };
                        if let Some(commit) = CommitRecord::decode(value).ok().filter(ours) {
                            told |= self.remains.told(&commit);
                        }
                    }
                    Polled::Record(_) => {}
                    Polled::End => break,
                    Polled::Nothing => self.progress.waiting(Some(format!("the end of {topic}"))),
                }
            }
            if from == log_start {
                break;
            }
            window *= 8;
        }
        Ok(())
    }

    /// Reads all definitions there are, and makes sure that they are all there were.
    pub(super) fn open_schema(&mut self) -> Result<(), Stop> {
        let topic = self.schema_topic.clone();
        self.await_topic(&topic)?;
        let (log_start, _) = self.ask(&topic, |reader| reader.bounds(&topic, ONLY))?;
        self.schema_start = log_start;
        self.remains.count_anew();
        self.reader.open(&topic, ONLY, log_start)?;
        loop {
            match self.poll(&topic, ONLY)? {
                Polled::Record(record) => self.schema_record(record)?,
                Polled::End => break,
                Polled::Nothing => self.progress.waiting(Some(format!("the definitions in {topic}"))),
            }
        }
        self.hold_schema()?;
        if let Some(position) = &self.position {
            self.schema.forget_before(position.commit_ts);
        }
        Ok(())
    }

    /// Reads on in the schema topic until it holds what the commit stream says, and ends with an error if it never will.
    pub(super) fn hold_schema(&mut self) -> Result<(), Stop> {
        let topic = self.schema_topic.clone();
        // Set once everything was visible and reading began anew after that: its end is the end.
        let mut confirmed = false;
        let mut asked: Option<Instant> = None;
        loop {
            let next = self.reader.next_offset(&topic, ONLY).unwrap_or_default();
            if self.remains.is_whole(next) {
                return Ok(());
            }
            match self.poll(&topic, ONLY)? {
                Polled::Record(record) => {
                    self.schema_record(record)?;
                    continue;
                }
                // The end shows once; whoever came to it before sees nothing.
                Polled::Nothing if confirmed || asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) => {
                    continue;
                }
                Polled::Nothing | Polled::End => asked = Some(Instant::now()),
            }
            let (log_start, visible) = self.ask(&topic, |reader| reader.bounds(&topic, ONLY))?;
            let end = self.ask(&topic, |reader| reader.end_of_log(&topic, ONLY))?;
            match self.remains.missing(next, visible, end) {
                Missing::Nothing => return Ok(()),
                Missing::Yet => {
                    confirmed = false;
                    self.progress.waiting(Some(format!("the definitions in {topic} to be readable")));
                }
                Missing::End { last: offset } => {
                    return Err(ReadError::Shorter { topic, partition: ONLY, offset, end }.into());
                }
                Missing::Keys { .. } | Missing::Everything if !confirmed => {
                    confirmed = true;
                    self.reader.open(&topic, ONLY, next.max(log_start))?;
                }
                Missing::Keys { held, wanted, last } => {
                    let gone = FollowError::DefinitionsDeleted { topic, log_start, held, wanted, last };
                    return Err(gone.into());
                }
                Missing::Everything => {
                    return Err(ReadError::Emptied { topic, partition: ONLY, end }.into());
                }
            }
        }
    }

    /// The offset at which a topic is read on, and its bounds. `None` if it is not read, if the brokers do not answer just
    /// now, or if they had to be waited for until they knew it again.
    fn look_at(&mut self, topic: &str) -> Result<Option<(i64, i64, i64)>, Stop> {
        let Some(next) = self.reader.next_offset(topic, ONLY) else { return Ok(None) };
        match self.reader.bounds(topic, ONLY) {
            Ok((log_start, end)) => Ok(Some((next, log_start, end))),
            Err(error) if error.is_transient() => Ok(None),
            Err(ReadError::NoTopic { .. }) => self.await_topic(topic).map(|()| None),
            Err(error) => Err(error.into()),
        }
    }

    /// Now and then: is the schema topic still the one that was read? What was read of it is kept; but nobody could go on
    /// from here after a restart.
    pub(super) fn schema_still_there(&mut self) -> Result<(), Stop> {
        let topic = self.schema_topic.clone();
        let Some((next, log_start, end)) = self.look_at(&topic)? else { return Ok(()) };
        if next > end {
            return Err(ReadError::Shorter { topic, partition: ONLY, offset: next - 1, end }.into());
        }
        if log_start > self.schema_start {
            // Compaction does that, too: the keys tell.
            info!(
                topic,
                from = self.schema_start,
                to = log_start,
                "the schema topic begins later, reading it anew"
            );
            return self.open_schema();
        }
        Ok(())
    }

    pub(super) fn schema_record(&mut self, record: Record) -> Result<(), Stop> {
        if record.value.is_some() {
            self.remains.saw(record.key.as_deref().unwrap_or_default());
        }
        Ok(self.schema.apply(record.offset, record.key.as_deref(), record.value, record.meta.as_deref())?)
    }

    /// Nothing came for a while: is it still the same log?
    pub(super) fn still_there(&mut self) -> Result<(), Stop> {
        let topic = self.commits.clone();
        let Some((next, log_start, end)) = self.look_at(&topic)? else { return Ok(()) };
        let partition = ONLY;
        if log_start == end && end > 0 {
            return Err(ReadError::Emptied { topic, partition, end }.into());
        }
        if next < log_start {
            return Err(
                ReadError::Gap { topic, partition, first: next, last: log_start - 1, log_start }.into()
            );
        }
        if next > end {
            return Err(ReadError::Shorter { topic, partition, offset: next - 1, end }.into());
        }
        Ok(())
    }

    /// A look at a partition; notices the shutdown.
    pub(super) fn poll(&mut self, topic: &str, partition: i32) -> Result<Polled, Stop> {
        if self.shutdown.is_cancelled() {
            return Err(Stop::Ended);
        }
        Ok(self.reader.poll(topic, partition, LOOK)?)
    }

    /// Looks something up in the schema topic, reading on there if need be. What is not there at the topic's end may not
    /// be visible yet: markers of one Kafka transaction show at different times. `must` waits for it.
    pub(super) fn wait_for<T>(
        &mut self,
        look: impl Fn(&SchemaView) -> Option<T>,
        must: bool,
    ) -> Result<Option<T>, Stop> {
        if let Some(found) = look(&self.schema) {
            return Ok(Some(found));
        }
        let topic = self.schema_topic.clone();
        let began = Instant::now();
        loop {
            match self.poll(&topic, ONLY)? {
                Polled::Record(record) => {
                    self.schema_record(record)?;
                    if let Some(found) = look(&self.schema) {
                        return Ok(Some(found));
                    }
                }
                Polled::End | Polled::Nothing if !must || began.elapsed() >= DEFINITION => return Ok(None),
                Polled::End | Polled::Nothing => {
                    self.progress.waiting(Some(format!("a definition in {topic}")));
                }
            }
        }
    }
}
