//! From events to downstream transactions: folds while the one before runs.

use std::time::{Duration, Instant};

use node::shutdown::Shutdown;
use schemas::sluice::v1::{Gap, Origin};
use tokio::sync::mpsc;
use tracing::warn;

use super::fold::{Anomalies, Fold, FoldedTable};
use super::sql::{Renderer, Statement};
use crate::config::GapPolicy;
use crate::event::{Ddl, Event, Rows};
use crate::position::Position;
use crate::queue::EventReceiver;

/// How often a position without rows is stored.
const IDLE: Duration = Duration::from_secs(1);

/// Something to do downstream, in order.
#[derive(Debug)]
pub(crate) enum Work {
    /// Store the first position.
    Attach(Position),
    /// Apply rows.
    Batch(Box<Batch>),
    /// Run a schema change.
    Ddl(Box<Ddl>),
    /// Store the position and end.
    Finish(Position),
    /// Transactions are missing from here on, and the policy is to stop.
    Gap(Gap),
}

/// Net changes of a stretch of transactions, or a piece of one that is too large.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) statements: Vec<Statement>,
    pub(crate) folded: Vec<FoldedTable>,
    /// The position after it; `None`: the transaction goes on in the next piece.
    pub(crate) after: Option<Position>,
    pub(crate) first_seq: u64,
    pub(crate) transactions: u64,
    pub(crate) changes: u64,
    pub(crate) anomalies: Anomalies,
}

/// Limits of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) rows: u64,
    pub(crate) bytes: usize,
}

/// Nobody takes work any more.
#[derive(Debug, thiserror::Error)]
#[error("the applier ended")]
struct ApplierEnded;

/// Folds events into work until the queue ends.
pub(crate) struct Preparer {
    renderer: Renderer,
    limits: Limits,
    on_gap: GapPolicy,
    work: mpsc::Sender<Work>,
    fold: Fold,
    first_seq: u64,
    transactions: u64,
    /// Position after the last whole transaction in the fold.
    after: Option<Position>,
    /// The last transaction in the fold is not complete.
    open: bool,
    origin: Option<Origin>,
    last_sent: Instant,
}

impl Preparer {
    pub(crate) fn new(
        renderer: Renderer,
        limits: Limits,
        on_gap: GapPolicy,
        work: mpsc::Sender<Work>,
    ) -> Self {
        Self {
            renderer,
            limits,
            on_gap,
            work,
            fold: Fold::new(),
            first_seq: 0,
            transactions: 0,
            after: None,
            open: false,
            origin: None,
            last_sent: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self, mut events: EventReceiver, shutdown: Shutdown) -> anyhow::Result<()> {
        let result = self.prepare(&mut events, &shutdown).await;
        if matches!(&result, Err(error) if error.is::<ApplierEnded>()) {
            // Why is the applier's to say.
            shutdown.cancelled().await;
            return Ok(());
        }
        result
    }

    async fn prepare(&mut self, events: &mut EventReceiver, shutdown: &Shutdown) -> anyhow::Result<()> {
        loop {
            let full = self.fold.changes() >= self.limits.rows || self.fold.bytes() >= self.limits.bytes;
            if full {
                self.flush().await?;
            }
            let ready = !self.open && !self.fold.is_empty();
            let idle = !self.open && self.fold.is_empty() && self.after.is_some();
            let work = self.work.clone();
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                // The executor has room: what is folded goes now, so that nothing waits for company.
                permit = work.reserve(), if ready => {
                    let batch = self.take()?;
                    permit.map_err(|_| ApplierEnded)?.send(Work::Batch(Box::new(batch)));
                    continue;
                }
                event = events.recv() => event,
                () = tokio::time::sleep_until((self.last_sent + IDLE).into()), if idle => {
                    self.flush().await?;
                    continue;
                }
            };
            match event {
                Some(event) => self.event(event).await?,
                None => {
                    shutdown.cancelled().await;
                    return Ok(());
                }
            }
        }
    }

    async fn event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Attached(position) => self.send(Work::Attach(position)).await,
            Event::Rows(rows) => self.rows(rows).await,
            Event::Ddl(ddl) => {
                self.flush().await?;
                self.send(Work::Ddl(ddl)).await
            }
            Event::Passed(position) => {
                self.after = Some(position);
                Ok(())
            }
            Event::Gap { gap, after } => {
                if self.on_gap == GapPolicy::Stop {
                    // What came before it is applied first, so that the target is where the message says.
                    self.flush().await?;
                    return self.send(Work::Gap(gap)).await;
                }
                warn!(
                    from = gap.from,
                    to = gap.to,
                    cause = gap.cause,
                    "going on without the transactions of a gap"
                );
                if after.is_some() {
                    self.after = after;
                }
                Ok(())
            }
            Event::Reached(position) => {
                self.flush().await?;
                self.send(Work::Finish(position)).await
            }
        }
    }

    async fn rows(&mut self, rows: Rows) -> anyhow::Result<()> {
        let Rows { seq, origin, changes, after, .. } = rows;
        if origin != self.origin {
            // A downstream transaction has one origin.
            if !self.open {
                self.flush().await?;
            }
            self.origin = origin;
        }
        if !self.open {
            if self.transactions == 0 {
                self.first_seq = seq;
            }
            self.transactions += 1;
        }
        for change in changes {
            self.fold.add(change);
        }
        self.open = after.is_none();
        if after.is_some() {
            self.after = after;
        }
        Ok(())
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        if self.fold.is_empty() && (self.open || self.after.is_none()) {
            return Ok(());
        }
        let batch = self.take()?;
        self.send(Work::Batch(Box::new(batch))).await
    }

    fn take(&mut self) -> anyhow::Result<Batch> {
        let changes = self.fold.changes();
        let (folded, anomalies) = std::mem::take(&mut self.fold).finish();
        let statements = self.renderer.render(&folded)?;
        self.last_sent = Instant::now();
        // A piece of an unfinished transaction moves no position, not even over the whole ones before it: all of it is
        // one downstream transaction.
        let after = if self.open { None } else { self.after.take() };
        let batch = Batch {
            statements,
            folded,
            after,
            first_seq: self.first_seq,
            transactions: self.transactions,
            changes,
            anomalies,
        };
        self.transactions = 0;
        Ok(batch)
    }

    async fn send(&self, work: Work) -> anyhow::Result<()> {
        Ok(self.work.send(work).await.map_err(|_| ApplierEnded)?)
    }
}

impl Batch {
    /// Rows that its statements write.
    pub(crate) fn rows(&self) -> u64 {
        self.statements.iter().map(|statement| statement.rows).sum()
    }

    /// Tables touched, for messages.
    pub(crate) fn tables(&self) -> Vec<String> {
        let name = |folded: &FoldedTable| format!("{}.{}", folded.table.database(), folded.table.name());
        self.folded.iter().map(name).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schemas::sluice::v1::{Column, Key, TableDefinition};
    use tidb::ts::{CommitTs, StartTs};

    use super::*;
    use crate::event::{Change, ChangeKind, Value};
    use crate::mysql::session::Target;
    use crate::position::FeedId;
    use crate::queue;
    use crate::schema::Table;

    fn position(seq: u64) -> Position {
        let feed_id = FeedId::from_bytes(&[1; 16]).unwrap();
        Position { feed_id, epoch: 1, seq, commit_ts: CommitTs::new(seq * 10), commits_offset: seq as i64 }
    }

    /// The applier is busy, so rows and gap are read before it takes either.
    #[tokio::test]
    async fn what_came_before_a_gap_goes_before_it() {
        let table = Arc::new(Table::new(TableDefinition {
            table_id: 1,
            columns: vec![Column { id: 1, name: "id".into(), mysql_type: 3, ..Default::default() }],
            unique_keys: vec![Key { primary: true, column_ids: vec![1], ..Default::default() }],
            ..Default::default()
        }));
        let kind = ChangeKind::Insert { after: vec![Some(Value::Int(1))].into() };
        let rows = Rows {
            seq: 1,
            commit_ts: CommitTs::new(10),
            start_ts: StartTs::new(9),
            origin: None,
            first_change: 0,
            changes: vec![Change { table, kind, cost: 100 }],
            cost: 100,
            after: Some(position(1)),
        };
        let gap = Gap { from: 10, to: 20, cause: "a lost disk".into() };
        let events =
            [Event::Attached(position(0)), Event::Rows(rows), Event::Gap { gap, after: Some(position(2)) }];
        let shutdown = Shutdown::new();
        let (sender, receiver) = queue::channel(1 << 20, &shutdown);
        let sending = tokio::task::spawn_blocking(move || {
            events.into_iter().for_each(|event| sender.send(event, 1).unwrap())
        });
        sending.await.unwrap();
        let (work, mut todo) = mpsc::channel(1);
        let renderer =
            Renderer { target: Target::from_version("10.11.6-MariaDB"), rows: 100, bytes: 1 << 20 };
        let limits = Limits { rows: 100, bytes: 1 << 20 };
        let preparer = Preparer::new(renderer, limits, GapPolicy::Stop, work);
        let preparing = tokio::spawn(preparer.run(receiver, shutdown.clone()));
        // On this runtime of one thread it runs until it can send no more.
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(todo.recv().await, Some(Work::Attach(at)) if at == position(0)));
        let batch = todo.recv().await;
        assert!(matches!(&batch, Some(Work::Batch(batch)) if batch.after == Some(position(1))), "{batch:?}");
        assert!(matches!(todo.recv().await, Some(Work::Gap(gap)) if (gap.from, gap.to) == (10, 20)));
        shutdown.cancel();
        preparing.await.unwrap().unwrap();
    }
}
