//! The drainer's pure cores and the consumers' reading, without anything between them but the records.

use std::sync::Arc;

use consumers::event::Change;
use consumers::schema::SchemaView;
use consumers::shape::{Assembler, Decoded, decode};
use consumers::spill;
use drainer_kafka::filter::{Filter, FilterRules};
use drainer_kafka::inflight::{HeldChange, InFlight};
use drainer_kafka::routing::Routing;
use drainer_kafka::schema::records::{self, SchemaReader, SchemaTopicRecord};
use drainer_kafka::schema::{Tracker, was_undone};
use drainer_kafka::sequence::{RowLayout, RowRecord};
use drainer_kafka::statement::renamed_columns;
use drainer_kafka::transaction::Transaction;
use drainer_kafka::translate::{LargeRow, Shape, TxnRows};
use prost::Message as _;
use tidb::model::Job;
use tidb::ts::CommitTs;

/// Small enough to cut most rows and definitions into several records.
const SHAPE: Shape = Shape { max_record: 48, large_row: LargeRow::Chunk };
const SCHEMA_LIMIT: usize = 700;
const HELD: usize = 64 << 20;

pub(crate) struct Pipeline {
    tracker: Tracker,
    inflight: InFlight,
    view: SchemaView,
    topic: Vec<SchemaTopicRecord>,
    /// What the pumps still have.
    sent: Vec<Transaction>,
}

fn routing() -> Arc<Routing> {
    let layout = RowLayout { topics: vec![("rows".to_owned(), 4)] };
    Arc::new(Routing::new(Filter::new(FilterRules::default()).unwrap(), layout))
}

impl Pipeline {
    pub(crate) fn new() -> Self {
        let mut pipeline = Self {
            tracker: Tracker::new(routing()),
            inflight: InFlight::new(HELD),
            view: SchemaView::default(),
            topic: Vec::new(),
            sent: Vec::new(),
        };
        pipeline.write_schema(records::of_all(&pipeline.tracker, SCHEMA_LIMIT));
        pipeline
    }

    pub(crate) fn transaction(&mut self, transaction: Transaction) -> Vec<Change> {
        let mut rows = TxnRows::new(&transaction, &self.tracker.definitions()).unwrap();
        let mut out = Vec::new();
        loop {
            let slice = rows.next_slice(&SHAPE, 100).unwrap();
            if slice.is_empty() {
                break;
            }
            out.extend(slice);
        }
        self.hold(transaction.commit_ts, rows.take_held());
        self.sent.push(transaction);
        self.read(&out)
    }

    pub(crate) fn ddl(&mut self, job: &Job, commit_ts: CommitTs) -> Vec<Change> {
        let effect = self.tracker.apply(job, commit_ts).unwrap();
        self.write_schema(records::of_effect(&effect, None, commit_ts, SCHEMA_LIMIT));
        let mut out = Vec::new();
        for before in &effect.before {
            let Some(after) = effect.after.iter().find(|after| after.id() == before.id()) else { continue };
            let updates = self.inflight.fulfil(before, after, &renamed_columns(&job.query)).unwrap();
            SHAPE.fulfilled(after, commit_ts, updates, &mut out).unwrap();
        }
        if was_undone(job) {
            self.inflight.dropped(job.table_id);
        }
        effect.dropped.iter().for_each(|(table_id, _)| self.inflight.dropped(*table_id));
        self.read(&out)
    }

    /// A successor knows what the schema topic says, and reads the pumps again from where values are held.
    pub(crate) fn restart(&mut self) {
        let mut reader = SchemaReader::default();
        for record in &self.topic {
            reader.push(&record.key, &record.meta, &record.value).unwrap();
        }
        self.tracker = reader.finish(routing()).unwrap();
        let from = self.inflight.oldest();
        self.inflight = InFlight::new(HELD);
        let again = self.sent.iter().filter(|sent| from.is_some_and(|from| sent.commit_ts >= from));
        let held: Vec<_> = again
            .map(|sent| {
                let mut rows = TxnRows::of_written(sent, &self.tracker.definitions()).unwrap();
                rows.skip(rows.changes()).unwrap();
                (sent.commit_ts, rows.take_held())
            })
            .collect();
        for (commit_ts, changes) in held {
            self.hold(commit_ts, changes);
        }
    }

    fn hold(&mut self, commit_ts: CommitTs, changes: Vec<HeldChange>) {
        for table_id in self.inflight.strangers(&changes) {
            self.inflight.learn(table_id, &changes, None);
        }
        self.inflight.take(commit_ts, changes).unwrap();
    }

    fn write_schema(&mut self, records: Vec<SchemaTopicRecord>) {
        for record in records {
            let meta = record.meta.encode_to_vec();
            let (key, value) = (record.key.as_bytes(), Some(record.value.clone()));
            self.view.apply(self.topic.len() as i64, Some(key), value, Some(&meta)).unwrap();
            self.topic.push(record);
        }
    }

    fn read(&self, records: &[RowRecord]) -> Vec<Change> {
        let mut assembler = Assembler::default();
        let mut changes = Vec::new();
        for record in records {
            let row = spill::RowRecord {
                seq: 1,
                change: record.change,
                record: record.record,
                records: record.records,
                table_id: record.table_id,
                schema_version: record.schema_version,
                checksum: record.checksum,
                value: record.value.clone(),
            };
            let Some(value) = assembler.push(&row) else { continue };
            let table =
                self.view.table(row.table_id, row.schema_version).expect("its definition came before it");
            match decode(&row, value, table).unwrap() {
                Decoded::Change(change) => changes.push(change),
                Decoded::Claim(claim) => panic!("nothing is put into files here: {claim:?}"),
            }
        }
        changes
    }
}
