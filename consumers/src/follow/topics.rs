//! The topics of a feed: opened where they must be, waited for, and checked to be still the same.

use std::time::{Duration, Instant};

use tracing::warn;

use super::{FollowError, Follower, LOOK, ONLY, REPORT, Stop};
use crate::chain::Start;
use crate::kafka::{LogReader, Polled, ReadError, Record};
use crate::schema::SchemaView;

/// How long a definition may be missing although rows that need it are visible.
const DEFINITION: Duration = Duration::from_secs(60);

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

    /// Waits until a topic is there. Before anything was taken from the feed, for ever (the drainer may not have begun).
    pub(super) fn await_topic(&mut self, topic: &str) -> Result<(), Stop> {
        let since = Instant::now();
        loop {
            match self.ask(topic, |reader| reader.partitions(topic))? {
                1 => return Ok(()),
                0 if self.position.is_some() && since.elapsed() >= REPORT => {
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

    pub(super) fn open_commits(&mut self) -> Result<i64, Stop> {
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
        self.reader.open(&topic, ONLY, offset)?;
        Ok(offset)
    }

    /// Reads all definitions there are.
    pub(super) fn open_schema(&mut self) -> Result<(), Stop> {
        let topic = self.schema_topic.clone();
        self.await_topic(&topic)?;
        let (log_start, _) = self.ask(&topic, |reader| reader.bounds(&topic, ONLY))?;
        self.reader.open(&topic, ONLY, log_start)?;
        loop {
            match self.poll(&topic, ONLY)? {
                Polled::Record(record) => self.schema_record(record)?,
                Polled::End => break,
                Polled::Nothing => self.progress.waiting(Some(format!("the definitions in {topic}"))),
            }
        }
        if let Some(position) = &self.position {
            self.schema.forget_before(position.commit_ts);
        }
        Ok(())
    }

    pub(super) fn schema_record(&mut self, record: Record) -> Result<(), Stop> {
        Ok(self.schema.apply(record.offset, record.key.as_deref(), record.value, record.meta.as_deref())?)
    }

    /// Nothing came for a while: is it still the same log?
    pub(super) fn still_there(&mut self) -> Result<(), Stop> {
        let topic = self.commits.clone();
        let Some(next) = self.reader.next_offset(&topic, ONLY) else { return Ok(()) };
        let (log_start, end) = match self.reader.bounds(&topic, ONLY) {
            Ok(bounds) => bounds,
            Err(error) if error.is_transient() => return Ok(()),
            Err(ReadError::NoTopic { .. }) => return self.await_topic(&topic),
            Err(error) => return Err(error.into()),
        };
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
