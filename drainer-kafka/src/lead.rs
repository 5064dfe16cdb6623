//! Leading: one epoch of the log from its opening to its end.
//!
//! ```text
//!   open (fence, read tail, verify) ──▶ schema at the position ──▶ START ──▶ pull ▶ merge ▶ shape ▶ sink
//! ```
//!
//! Whatever fails, the whole pipeline of the epoch is torn down, and the next epoch begins from what the log says. That
//! is the only recovery there is; errors where beginning anew cannot help stop the process.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use node::config::Validate as _;
use node::data_dir::DataDir;
use node::kafka::Troubles;
use node::pd::Pd;
use node::registry::Registry;
use node::shutdown::Shutdown;
use node::tidb_status::TidbStatus;
use tidb::ts::Tso;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::beginning::Beginning;
use crate::claims::Claims;
use crate::config::Config;
use crate::feed::{FeedError, MergeTask, Merged, ShapeTask, SourceChange};
use crate::kafka::producer::ProducerOptions;
use crate::kafka::sink::{Sink, SinkError, SinkOptions};
use crate::kafka::start::{OpenLog, OpenOptions};
use crate::kafka::topics::{Creation, Topics};
use crate::kafka::{Kafka, LogError, readback, start, trim};
use crate::membership::{Membership, Refresh};
use crate::merge::MergeError;
use crate::pull::PullOptions;
use crate::routing::Routing;
use crate::schema::bootstrap::{BootstrapError, JobPlace, Jobs};
use crate::schema::history::StatusPort;
use crate::schema::{Tracker, records};
use crate::sequence::{Feed, RowLayout, Sequencer, hex};
use crate::status::Status;
use crate::translate::Shape;

/// Batches from pumps on their way to the merge.
const BATCHES: usize = 64;
/// Pieces on their way from the merge to the schema.
const MERGED: usize = 8;
/// Units being shaped or waiting for the sink.
const WORK: usize = 16;
/// How often old files of large values are looked for.
const FORGET: Duration = Duration::from_secs(600);
/// How long the parts of an epoch get to end once one has.
const TEARDOWN: Duration = Duration::from_secs(10);

/// Everything an epoch needs that outlives it.
#[derive(Debug)]
pub struct Leader {
    /// The configuration.
    pub config: Config,
    /// PD.
    pub pd: Pd,
    /// The registry.
    pub registry: Registry,
    /// This drainer's id.
    pub node_id: String,
    /// Where the savepoint lies.
    pub data_dir: Arc<DataDir>,
    /// What is shown.
    pub status: Status,
    /// Where joining pumps' questions go.
    pub refreshes: watch::Sender<Option<mpsc::Sender<Refresh>>>,
    /// The feed that this process writes, once it has.
    pub feed_id: OnceLock<Vec<u8>>,
    /// What its Kafka clients complain of.
    pub troubles: Troubles,
}

/// True if a new epoch may succeed where this error ended one.
pub fn is_retryable(error: &anyhow::Error) -> bool {
    error.chain().all(|cause| {
        let fatal = cause.downcast_ref::<MergeError>().is_some()
            || cause.downcast_ref::<FeedError>().is_some()
            || cause.downcast_ref::<LogError>().is_some_and(|e| !e.is_retryable())
            || cause.downcast_ref::<Fatal>().is_some()
            || cause.downcast_ref::<SinkError>().is_some_and(|e| !e.is_retryable())
            || cause.downcast_ref::<BootstrapError>().is_some_and(|e| match e {
                BootstrapError::History(history) => !history.is_retryable(),
                BootstrapError::Schema(_) | BootstrapError::Io(_) | BootstrapError::Unreadable { .. } => true,
            });
        !fatal
    })
}

/// Marks an error that only an operator can mend.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct Fatal(pub anyhow::Error);

impl Leader {
    /// Runs one epoch until `shutdown`, or until something fails.
    pub async fn epoch(&self, shutdown: &Shutdown) -> anyhow::Result<()> {
        // Nothing is written before START is committed: until then the epoch may be given up at any moment.
        let Some(ready) = shutdown.unless(self.prepare()).await else { return Ok(()) };
        let Ready {
            kafka,
            topics,
            sink,
            history,
            tracker,
            routing,
            shape,
            schema_limit,
            commits_end,
            pull_from,
            declared,
        } = ready?;
        let (epoch, written) = (sink.epoch(), sink.watermark());
        self.status.role("leader");

        let (merged_in, merged_out) = mpsc::channel(MERGED);
        let (work_in, work_out) = mpsc::channel(WORK);
        let shaping = ShapeTask::new(
            tracker,
            history,
            routing.clone(),
            shape,
            schema_limit,
            written,
            self.status.clone(),
        );
        let running = shutdown.child();
        let (trimming, row_topics) = (kafka.clone(), routing.layout().topics.clone());
        let trim = trim::run(trimming, topics.commits.clone(), row_topics, running.child());
        let back = readback::follow(
            kafka,
            topics.commits.clone(),
            commits_end,
            epoch,
            self.status.clone(),
            running.child(),
        );
        let mut parts = Parts::new(running);
        parts.spawn("trim", async move {
            trim.await;
            Ok(())
        });
        parts.spawn("claims", self.forget_claims(sink.claims().cloned()));
        parts.spawn("shape", async move { Ok(shaping.run(merged_out, work_in).await?) });
        parts.spawn("sink", async move { Ok(sink.run(work_out).await?) });
        parts.spawn("readback", async move { Ok(back.await?) });
        let (refresh_in, refresh_out) = mpsc::channel(4);
        // Before the first list is read: a pump that registered too late for it finds somebody to notify.
        self.refreshes.send_replace(Some(refresh_in));
        self.sources(pull_from, declared, merged_in, refresh_out, &mut parts);
        let ended = parts.join().await;
        self.refreshes.send_replace(None);
        self.status.forget_pumps();
        ended
    }

    /// Opens the log, finds the schema at its end, and begins the epoch with START.
    async fn prepare(&self) -> anyhow::Result<Ready> {
        let cluster_id = self.pd.cluster_id();
        let topics = Topics::new(&self.config.topic(cluster_id));
        self.status.log(cluster_id, &topics.rows);
        let kafka = self.kafka()?;
        let options = self.open_options(&topics);
        let log = start::open(&kafka, &options).await?;
        let (filter, zone) = (self.config.syncer.filter()?, self.config.upstream_zone()?);
        let shape = Shape { max_record: log.row_limit, large_row: self.config.output.large_row.into() };
        let claims = self.config.output.claim_check_dir.as_ref().map(|base| Claims::new(base, &topics.rows));
        let history = Arc::new(StatusPort::new(TidbStatus::new(
            self.pd.etcd(),
            &self.config.tidb_status(),
            &self.config.security,
        )?));
        let routing = Arc::new(Routing::new(filter, log.layout.clone()).in_zone(zone));
        let begun = self.begin(log, &topics, routing, &history).await?;
        let Begun {
            producer,
            sequencer,
            tracker,
            routing,
            new_schema,
            commits_end,
            schema_limit,
            pull_from,
            declared,
            feed_id,
        } = begun;
        let sink_options = SinkOptions {
            row_topics: routing.layout().topics.iter().map(|(topic, _)| topic.clone()).collect(),
            topics: topics.clone(),
            commit_interval: self.config.output.commit_interval.get(),
            max_transaction: self.config.output.max_kafka_transaction.as_u64() as usize,
            shape,
            claims,
            in_flight_budget: self.config.in_flight_budget.as_u64() as usize,
        };
        let mut sink = Sink::new(producer, sequencer, sink_options, history.clone(), self.status.clone());
        sink.start(&new_schema).await?;
        // The same one as before, if there was one before.
        self.feed_id.get_or_init(|| feed_id);
        Ok(Ready {
            kafka,
            topics,
            sink,
            history,
            tracker,
            routing,
            shape,
            schema_limit,
            commits_end,
            pull_from,
            declared,
        })
    }

    /// Removes the files of large values with the rows that name them. Failing is no reason to stop.
    fn forget_claims(
        &self,
        claims: Option<Claims>,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (status, retention) = (self.status.clone(), self.config.output.retention.get());
        async move {
            loop {
                tokio::time::sleep(FORGET).await;
                let Some(claims) = claims.clone().filter(|_| !retention.is_zero()) else { continue };
                // A day longer than the rows: their retention is counted from when they were written.
                let kept = retention.as_millis() as u64 + 24 * 60 * 60 * 1000;
                let oldest = status.position().physical_ms().saturating_sub(kept);
                let removing =
                    tokio::task::spawn_blocking(move || claims.forget_before(Tso::from_parts(oldest, 0)));
                match removing.await? {
                    Ok(0) => {}
                    Ok(days) => info!(days, "removed files of large values"),
                    Err(error) => warn!(%error, "cannot remove old files of large values"),
                }
            }
        }
    }

    fn kafka(&self) -> anyhow::Result<Kafka> {
        let client_id = match self.config.syncer.to.kafka_client_id.as_str() {
            "" => "sluice-drainer",
            id => id,
        };
        let kafka = self.config.kafka();
        kafka.validate()?;
        Kafka::new(&kafka, client_id, &self.troubles)
    }

    fn open_options(&self, topics: &Topics) -> OpenOptions {
        let output = &self.config.output;
        let cluster_id = self.pd.cluster_id();
        OpenOptions {
            topics: topics.clone(),
            creation: Creation {
                partitions: output.partitions,
                replication_factor: output.replication_factor,
                retention: output.retention.get(),
            },
            producer: ProducerOptions {
                transactional_id: format!("sluice/{cluster_id}/{}", topics.rows),
                transaction_timeout: output.transaction_timeout.get(),
                compression: output.compression.clone(),
            },
            cluster_id,
            feed_id: self.feed_id.get().cloned(),
        }
    }

    /// Starts membership, pulls and merge behind `position`; what is missing up to `declared` is in the log.
    fn sources(
        &self,
        position: Tso,
        declared: Tso,
        merged: mpsc::Sender<Merged>,
        mut refreshes: mpsc::Receiver<Refresh>,
        parts: &mut Parts,
    ) {
        let (changes_in, changes_out) = mpsc::channel::<SourceChange>(16);
        let (batches_in, batches_out) = mpsc::channel(BATCHES);
        let merge = MergeTask::new(position, declared, self.status.clone());
        let template = PullOptions {
            source: crate::merge::SourceId::new(""),
            generation: 0,
            cluster_id: self.pd.cluster_id(),
            node_id: self.node_id.clone(),
            budget: self.config.pull_budget.as_u64(),
            max_message: self.config.max_message_size.as_u64(),
            security: self.config.security.clone(),
        };
        let membership = Membership::new(
            self.registry.clone(),
            template,
            self.config.detect_interval.get(),
            position,
            self.status.clone(),
            changes_in,
            batches_in,
        );
        parts.spawn("membership", async move {
            membership.run(&mut refreshes).await.map_err(|error| anyhow::Error::new(Fatal(error)))
        });
        parts.spawn("merge", async move { Ok(merge.run(batches_out, changes_out, merged).await?) });
    }

    /// The schema at the position, and the sequencer that goes on from there.
    async fn begin(
        &self,
        log: OpenLog,
        topics: &Topics,
        routing: Arc<Routing>,
        history: &Arc<StatusPort>,
    ) -> anyhow::Result<Begun> {
        let rules_hash = routing.rules_hash();
        let feed = |feed_id: Bytes, layout: RowLayout| Feed {
            feed_id,
            cluster_id: self.pd.cluster_id(),
            layout,
            rules_hash,
            schema_topic: topics.schema.clone(),
        };
        let (feed_id, sequencer, tracker, new_schema) = match &log.tail {
            Some(tail) => {
                if tail.unfinished.is_some() && tail.rules_hash != rules_hash {
                    return Err(anyhow::Error::new(LogError::Refused(format!(
                        "the log of {} ends within a large transaction, and the filter rules changed since: run once with the \
                         old rules to finish it",
                        topics.rows
                    ))));
                }
                let tracker =
                    log.schema.finish(routing.clone()).map_err(|e| LogError::Refused(e.to_string()))?;
                let feed = feed(Bytes::from(tail.feed_id.clone()), log.layout.clone());
                let sequencer = Sequencer::resume(feed, tail, log.schema_extent);
                self.status.epoch(hex(&tail.feed_id), tail.epoch);
                (tail.feed_id.clone(), sequencer, tracker, Vec::new())
            }
            None => {
                let position = self.first_position().await?;
                let tracker = self.first_schema(history, routing.clone(), position).await?;
                let feed_id = uuid::Uuid::new_v4().as_bytes().to_vec();
                info!(feed = hex(&feed_id), %position, tables = tracker.definitions().tables().count(), "beginning a new feed");
                self.status.epoch(hex(&feed_id), 0);
                let new_schema = records::of_all(&tracker, log.schema_limit);
                let feed = feed(Bytes::from(feed_id.clone()), log.layout.clone());
                (feed_id, Sequencer::fresh(feed, position), tracker, new_schema)
            }
        };
        let pull_from = log.tail.as_ref().map_or(sequencer.watermark(), |tail| tail.pull_from);
        // Behind the watermark nothing is missing that the log does not name.
        let declared = log.tail.as_ref().map_or(Tso::ZERO, |tail| tail.declared_to.max(tail.watermark));
        Ok(Begun {
            feed_id,
            pull_from,
            declared,
            producer: log.producer,
            sequencer,
            tracker,
            routing,
            new_schema,
            commits_end: log.commits_end,
            schema_limit: log.schema_limit,
        })
    }

    /// Where a feed without a log begins.
    async fn first_position(&self) -> anyhow::Result<Tso> {
        let (initial, directory) = (self.config.initial_commit_ts, self.data_dir.path().to_owned());
        let choice = tokio::task::spawn_blocking(move || {
            Beginning::choose(initial, || node::savepoint::read(&directory))
        });
        let choice = choice.await?.map_err(|e| Fatal(e.into()))?;
        info!(?choice, "a feed without a log");
        match choice {
            Beginning::Given(position) | Beginning::Saved(position) => Ok(position.0),
            Beginning::Now => Ok(self.pd.tso().await?),
        }
    }

    async fn first_schema(
        &self,
        history: &Arc<StatusPort>,
        routing: Arc<Routing>,
        position: Tso,
    ) -> anyhow::Result<Tracker> {
        let jobs = Jobs::load(history.as_ref(), self.data_dir.path()).await?;
        let undecided = jobs.undecided(position).to_vec();
        let first_after = match undecided.as_slice() {
            [] => None,
            jobs => self.first_job_after(position, jobs).await?,
        };
        info!(jobs = jobs.len(), undecided = undecided.len(), "read the DDL history");
        let replayed =
            tokio::task::spawn_blocking(move || jobs.replay(routing, position, first_after)).await??;
        let tracker = replayed.complete(history.as_ref()).await?;
        // Before anything is in the log: what goes into it now is what consumers make tables of.
        match tracker.unread_default() {
            Some(unread) => Err(anyhow::Error::new(Fatal(unread.into()))),
            None => Ok(tracker),
        }
    }

    /// Looks at the pumps' streams after `position` for the first of these jobs; `None` if none of them comes.
    async fn first_job_after(&self, position: Tso, jobs: &[JobPlace]) -> anyhow::Result<Option<i64>> {
        let all_committed = jobs.iter().map(|job| job.finished).max().unwrap_or_default();
        info!(jobs = jobs.len(), until = %all_committed, "looking for the place of recent DDL jobs");
        let (merged_in, mut merged) = mpsc::channel(MERGED);
        let mut parts = Parts::new(Shutdown::new());
        let (_refresh_in, refresh_out) = mpsc::channel(1);
        self.sources(position, position, merged_in, refresh_out, &mut parts);
        let search = async {
            while let Some(item) = merged.recv().await {
                match item {
                    Merged::Transactions(transactions) => {
                        let ids = transactions
                            .iter()
                            .filter_map(|t| Some(t.ddl.as_ref()?).filter(|d| d.schema_state != 1));
                        let found = ids.map(|ddl| ddl.job_id).find(|id| jobs.iter().any(|job| job.id == *id));
                        if found.is_some() {
                            return found;
                        }
                        if transactions.last().is_some_and(|last| last.commit_ts.0 >= all_committed) {
                            return None;
                        }
                    }
                    Merged::Resolved(watermark) if watermark >= all_committed => return None,
                    Merged::Resolved(_) | Merged::Gap(_) => {}
                }
            }
            None
        };
        let found = tokio::select! {
            found = search => Ok(found),
            ended = parts.ended() => Err(ended),
        };
        parts.set.shutdown().await;
        self.status.forget_pumps();
        found
    }
}

/// An epoch that has begun in the log.
struct Ready {
    kafka: Kafka,
    topics: Topics,
    sink: Sink<StatusPort>,
    history: Arc<StatusPort>,
    tracker: Tracker,
    routing: Arc<Routing>,
    shape: Shape,
    schema_limit: usize,
    commits_end: i64,
    /// Where the pumps are read from.
    pull_from: Tso,
    /// What is missing up to here is in the log.
    declared: Tso,
}

/// An epoch about to begin.
struct Begun {
    feed_id: Vec<u8>,
    producer: crate::kafka::producer::Producer,
    sequencer: Sequencer,
    tracker: Tracker,
    routing: Arc<Routing>,
    new_schema: Vec<records::SchemaTopicRecord>,
    commits_end: i64,
    schema_limit: usize,
    /// Where the pumps are read from.
    pull_from: Tso,
    /// What is missing up to here is in the log.
    declared: Tso,
}

/// The tasks of an epoch. When one ends, all end; the first error that says something is kept.
#[derive(Debug)]
struct Parts {
    shutdown: Shutdown,
    set: tokio::task::JoinSet<(&'static str, anyhow::Result<()>)>,
    /// What comes before the sink, to be stopped first.
    upstream: Vec<tokio::task::AbortHandle>,
}

impl Parts {
    fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, set: tokio::task::JoinSet::new(), upstream: Vec::new() }
    }

    fn spawn(&mut self, name: &'static str, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let task = self.set.spawn(async move { (name, part.await) });
        if !matches!(name, "sink" | "readback") {
            self.upstream.push(task);
        }
    }

    /// Waits for the first part to end; its error, or that it ended at all.
    async fn ended(&mut self) -> anyhow::Error {
        match self.set.join_next().await {
            Some(Ok((name, Err(error)))) => error.context(name),
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("{name} ended"),
            Some(Err(error)) => error.into(),
            None => anyhow::anyhow!("nothing runs"),
        }
    }

    /// Runs until the shutdown or the first end. At a shutdown the sources go first, and the sink ends by itself when it has
    /// written what it holds; after a failure the rest is given up, and the successor pulls it again.
    async fn join(mut self) -> anyhow::Result<()> {
        let mut errors = Vec::new();
        let mut sink_ended = false;
        let mut take = |ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>| {
            let sink = matches!(ended, Ok(("sink", _)));
            errors.extend(Self::error(ended));
            sink
        };
        let stopped = tokio::select! {
            () = self.shutdown.cancelled() => true,
            Some(first) = self.set.join_next() => {
                sink_ended = take(first);
                false
            }
        };
        self.upstream.iter().for_each(tokio::task::AbortHandle::abort);
        let teardown = async {
            while !sink_ended {
                let Some(ended) = self.set.join_next().await else { break };
                sink_ended = take(ended);
            }
        };
        let _ = tokio::time::timeout(TEARDOWN, teardown).await;
        self.shutdown.cancel();
        self.set.shutdown().await;
        // A part that fails takes its neighbours' channels away; they end without an error of their own.
        match errors.into_iter().next() {
            Some(error) => Err(error),
            None if stopped => Ok(()),
            None => Err(anyhow::anyhow!("a part of the pipeline ended by itself")),
        }
    }

    fn error(
        ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>,
    ) -> Option<anyhow::Error> {
        match ended {
            Ok((_, Ok(()))) => None,
            Ok((name, Err(error))) => {
                warn!(part = name, error = %format!("{error:#}"), "a part of the pipeline failed");
                Some(error)
            }
            Err(error) if error.is_cancelled() => None,
            Err(error) => Some(error.into()),
        }
    }
}
