//! The promises of the Kafka contract, checked against a whole log.
//!
//! The commit stream is walked in order with the little state in [`Walk`]; every row record must be answered for by exactly
//! one commit record, and what that record says about it must be true.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use schemas::{
    MAX_COMMIT_RECORD,
    digest::TxnDigest,
    partition::by_table,
    sluice::v1::{
        CommitRecord, Layout, Part, PartitionRange, RowMeta, Start, Txn, TxnKind, Txns, commit_record::Body,
    },
};

use super::{Log, Report, Row};

/// At least one of so many records sums up what a successor must know.
const SUMMARY_EVERY: usize = 1000;

/// Where a row record stands in its feed: (seq, change, record).
type Place = (u64, u32, u32);

/// Judges a log from its first record on.
pub fn verify(log: &Log) -> Report {
    let mut walk = Walk::default();
    walk.take_rows(log);
    for commit in &log.commits {
        let at = format!("commit stream at {}", commit.offset);
        if commit.size > MAX_COMMIT_RECORD {
            walk.broken(format!("{at}: {} bytes, at most {MAX_COMMIT_RECORD} are allowed", commit.size));
        }
        if commit.keyed {
            walk.broken(format!("{at}: has a key"));
        }
        walk.record(log, &at, &commit.record);
    }
    walk.finish(log)
}

#[derive(Default)]
struct Walk<'a> {
    report: Report,
    rows: Rows<'a>,
    feed_id: Vec<u8>,
    epoch: u64,
    watermark: u64,
    last_seq: u64,
    last_commit_ts: u64,
    layout: Layout,
    rules_hash: u32,
    /// A large transaction whose last Part or closing entry has not come.
    open: Option<Open>,
    /// By (topic, partition): the greatest offset named so far.
    ends: BTreeMap<(String, i32), i64>,
    /// Records since the last one with a summary.
    without_summary: usize,
    /// Checked rows; a place is answered for once.
    named: BTreeSet<Place>,
}

/// A transaction that goes out in Parts.
struct Open {
    seq: u64,
    commit_ts: u64,
    start_ts: u64,
    parts: u32,
    changes: u32,
    digest: TxnDigest,
    complete: bool,
}

/// The row records by place. A place that occurs twice is a violation and keeps its first record.
#[derive(Default)]
struct Rows<'a> {
    by_place: BTreeMap<Place, &'a Row>,
}

impl<'a> Rows<'a> {
    fn of(&self, seq: u64) -> impl Iterator<Item = &'a Row> {
        self.by_place.range((seq, 0, 0)..=(seq, u32::MAX, u32::MAX)).map(|(_, row)| *row)
    }
}

impl<'a> Walk<'a> {
    fn broken(&mut self, what: String) {
        self.report.violations.push(what);
    }

    /// What every row record must be by itself and beside its neighbours.
    fn take_rows(&mut self, log: &'a Log) {
        let mut last: BTreeMap<(&str, i32), (i64, Place)> = BTreeMap::new();
        let mut identities: BTreeMap<(u64, u32, u32), &Row> = BTreeMap::new();
        for row in &log.rows {
            let (meta, at) = (&row.meta, place_text(row));
            let place = (meta.seq, meta.change, meta.record);
            if meta.checksum != row.checksum {
                self.broken(format!(
                    "{at}: checksum {:08x}, key and value give {:08x}",
                    meta.checksum, row.checksum
                ));
            }
            if row.commit_ts_header != meta.commit_ts.to_string() {
                self.broken(format!(
                    "{at}: header commit_ts is {:?}, meta says {}",
                    row.commit_ts_header, meta.commit_ts
                ));
            }
            if meta.change >= meta.changes || meta.record >= meta.records {
                let RowMeta { change, changes, record, records, .. } = *meta;
                self.broken(format!("{at}: change {change} of {changes}, record {record} of {records}"));
            }
            if !log.schema_keys.contains(&format!("table/{}/{}", meta.table_id, meta.schema_version)) {
                let (table, version) = (meta.table_id, meta.schema_version);
                self.broken(format!("{at}: no table/{table}/{version} in the schema topic"));
            }
            if let Some((offset, before)) = last.insert((&row.topic, row.partition), (row.offset, place))
                && (before >= place || offset >= row.offset)
            {
                self.broken(format!(
                    "{at}: {place:?} comes after {before:?} of offset {offset} in the same partition"
                ));
            }
            if let Entry::Vacant(entry) = self.rows.by_place.entry(place) {
                entry.insert(row);
            } else {
                self.broken(format!("{at}: a second record (seq, change, record) {place:?}"));
            }
            match identities.entry((meta.start_ts, meta.change, meta.record)) {
                Entry::Vacant(entry) => drop(entry.insert(row)),
                Entry::Occupied(entry) => {
                    let first = place_text(entry.get());
                    self.broken(format!(
                        "{at}: start_ts {} change {} is at {first} already",
                        meta.start_ts, meta.change
                    ));
                }
            }
            if let Some((database, table)) = &row.table {
                let places = self.report.by_table.entry(format!("{database}.{table}")).or_default();
                *places.entry((row.topic.clone(), row.partition)).or_default() += 1;
            }
        }
    }

    fn record(&mut self, log: &Log, at: &str, record: &CommitRecord) {
        let CommitRecord { feed_id, epoch, watermark, body, .. } = record;
        if let Some(Body::Start(start)) = body {
            self.start(at, record, start);
        } else if self.epoch == 0 {
            self.broken(format!("{at}: the stream does not begin with START"));
        }
        if *feed_id != self.feed_id {
            self.broken(format!("{at}: belongs to another feed"));
        }
        if *epoch != self.epoch {
            self.broken(format!("{at}: epoch {epoch} after START of epoch {}", self.epoch));
        }
        if *watermark < self.watermark {
            self.broken(format!("{at}: watermark falls from {} to {watermark}", self.watermark));
        }
        match body {
            Some(Body::Start(_)) => {}
            Some(Body::Txns(txns)) => self.txns(log, at, record, txns),
            Some(Body::Part(part)) => self.part(at, record, part),
            Some(Body::Tick(_)) => self.report.ticks += 1,
            Some(Body::Layout(layout)) => self.layout = layout.clone(),
            Some(Body::Gap(gap)) => {
                // It stands where it begins: before everything in its range, after everything before that.
                if gap.from != *watermark || gap.to <= gap.from {
                    self.broken(format!(
                        "{at}: gap ({}, {}] in a record whose watermark is {watermark}",
                        gap.from, gap.to
                    ));
                }
                self.report.gaps.push((gap.from, gap.to, gap.cause.clone()));
            }
            None => self.broken(format!("{at}: has no body, or one of a later contract")),
        }
        self.watermark = self.watermark.max(*watermark);
        self.outlook(at, record);
    }

    /// What a record says about how the stream goes on.
    fn outlook(&mut self, at: &str, record: &CommitRecord) {
        let next = self.next_seq();
        if record.next_seq != next {
            self.broken(format!("{at}: says that seq {} is next, {next} is", record.next_seq));
        }
        self.without_summary += 1;
        match &record.summary {
            Some(summary) => {
                self.without_summary = 0;
                let ends: BTreeMap<(String, i32), i64> =
                    summary.ends.iter().map(|end| ((end.topic.clone(), end.partition), end.last)).collect();
                if ends != self.ends {
                    self.broken(format!("{at}: sums up the ends {ends:?}, named were {:?}", self.ends));
                }
                let unfinished = (
                    summary.unfinished.as_ref().map(|part| part.seq),
                    self.open.as_ref().map(|open| open.seq),
                );
                if unfinished.0 != unfinished.1 {
                    self.broken(format!("{at}: unfinished transaction (summed up, found) {unfinished:?}"));
                }
                if summary.layout.as_ref() != Some(&self.layout) || summary.rules_hash != self.rules_hash {
                    self.broken(format!(
                        "{at}: sums up another layout or other rules than START and LAYOUT gave"
                    ));
                }
            }
            None if matches!(record.body, Some(Body::Start(_))) || self.without_summary >= SUMMARY_EVERY => {
                self.broken(format!(
                    "{at}: has no summary, {} records after the last one",
                    self.without_summary
                ));
            }
            None => {}
        }
    }

    /// The unfinished transaction, else the one after the last.
    fn next_seq(&self) -> u64 {
        self.open.as_ref().map_or(self.last_seq + 1, |open| open.seq)
    }

    fn start(&mut self, at: &str, record: &CommitRecord, start: &Start) {
        if self.report.epochs == 0 {
            self.feed_id = record.feed_id.clone().into();
            if self.feed_id.len() != 16 {
                self.broken(format!("{at}: a feed id of {} bytes, not 16", self.feed_id.len()));
            }
            if start.next_seq != 1 {
                self.broken(format!("{at}: a new feed begins with seq {}", start.next_seq));
            }
            self.watermark = start.resumed_from;
        } else {
            if record.epoch <= self.epoch {
                self.broken(format!("{at}: START of epoch {} after epoch {}", record.epoch, self.epoch));
            }
            if start.resumed_from != self.watermark {
                self.broken(format!(
                    "{at}: resumed from {}, the watermark is {}",
                    start.resumed_from, self.watermark
                ));
            }
            let next = self.next_seq();
            if start.next_seq != next {
                self.broken(format!("{at}: next seq {}, {next} was due", start.next_seq));
            }
            if start.layout.as_ref() != Some(&self.layout) {
                self.broken(format!("{at}: another layout without a LAYOUT record"));
            }
            if self.open.is_some() && start.rules_hash != self.rules_hash {
                self.broken(format!("{at}: other rules inside transaction {next}"));
            }
        }
        if start.contract_version != schemas::CONTRACT_VERSION {
            self.broken(format!("{at}: contract version {}", start.contract_version));
        }
        if start.value_format != "protobuf" {
            self.broken(format!("{at}: value format {:?}", start.value_format));
        }
        self.layout = start.layout.clone().unwrap_or_default();
        self.rules_hash = start.rules_hash;
        self.epoch = record.epoch;
        self.report.epochs += 1;
    }

    fn txns(&mut self, log: &Log, at: &str, record: &CommitRecord, txns: &Txns) {
        let mut answered = Vec::new();
        for txn in &txns.txns {
            let at = format!("{at}, seq {}", txn.seq);
            if txn.seq != self.last_seq + 1 {
                self.broken(format!("{at}: follows seq {}", self.last_seq));
            }
            self.last_seq = txn.seq;
            if txn.commit_ts <= self.last_commit_ts.max(self.watermark) || txn.commit_ts > record.watermark {
                let (after, until) = (self.last_commit_ts.max(self.watermark), record.watermark);
                self.broken(format!("{at}: commit_ts {} outside ({after}, {until}]", txn.commit_ts));
            }
            self.last_commit_ts = txn.commit_ts;
            if txn.start_ts >= txn.commit_ts {
                self.broken(format!(
                    "{at}: start_ts {} is not below commit_ts {}",
                    txn.start_ts, txn.commit_ts
                ));
            }
            match txn.kind() {
                TxnKind::Rows => {
                    self.report.transactions += 1;
                    if txn.ddl.is_some() || txn.changes == 0 {
                        self.broken(format!(
                            "{at}: said to have rows, but names {} and perhaps a DDL",
                            txn.changes
                        ));
                    }
                }
                TxnKind::Ddl => {
                    self.report.ddls += 1;
                    match &txn.ddl {
                        None => self.broken(format!("{at}: a DDL entry without its DDL")),
                        // A sequence's new value is a statement alone: TiDB has no job for it.
                        Some(ddl) if ddl.statement.to_lowercase().starts_with("select setval(") => {
                            if ddl.action != 0 || !(ddl.before.is_empty() && ddl.after.is_empty()) {
                                self.broken(format!("{at}: a sequence's value that changes definitions"));
                            }
                        }
                        Some(ddl) if !log.schema_keys.contains(&format!("ddl/{}", ddl.job_id)) => {
                            self.broken(format!("{at}: no ddl/{} in the schema topic", ddl.job_id));
                        }
                        Some(_) => {}
                    }
                }
                TxnKind::Unspecified => self.broken(format!("{at}: of no known kind")),
            }
            // A DDL's rows are updates that follow its statement.
            self.rows_txn(&at, record.epoch, txn, &mut answered);
        }
        if let Some(open) = self.open.take() {
            self.broken(format!("{at}: transaction {} was left open", open.seq));
        }
        self.ranges(at, &txns.ranges, &answered);
    }

    /// One transaction's rows; those that this commit record answers for are added to `answered`.
    fn rows_txn(&mut self, at: &str, epoch: u64, txn: &Txn, answered: &mut Vec<&'a Row>) {
        if txn.parted {
            match self.open.take() {
                Some(open)
                    if (open.seq, open.commit_ts, open.start_ts)
                        == (txn.seq, txn.commit_ts, txn.start_ts) =>
                {
                    if !open.complete || open.changes != txn.changes || open.digest.value() != txn.digest {
                        self.broken(format!(
                            "{at}: closes with {} changes and digest {:08x}; its parts end with {} and {:08x}{}",
                            txn.changes,
                            txn.digest,
                            open.changes,
                            open.digest.value(),
                            if open.complete { "" } else { ", and the last is missing" }
                        ));
                    }
                }
                _ => self
                    .broken(format!("{at}: said to be in parts, but these are of another one or not there")),
            }
            return;
        }
        let rows: Vec<&Row> = self.rows.of(txn.seq).collect();
        let facts =
            Facts { epoch, commit_ts: txn.commit_ts, start_ts: txn.start_ts, changes: Some(txn.changes) };
        let digest = self.changes(at, &facts, 0..txn.changes, &rows, TxnDigest::default());
        if digest.value() != txn.digest {
            self.broken(format!("{at}: digest {:08x}, its rows give {:08x}", txn.digest, digest.value()));
        }
        answered.extend(rows);
    }

    fn part(&mut self, at: &str, record: &CommitRecord, part: &Part) {
        self.report.parts += 1;
        let at = format!("{at}, seq {} part {}", part.seq, part.part);
        if record.watermark >= part.commit_ts {
            self.broken(format!("{at}: the watermark {} is not before it", record.watermark));
        }
        let mut open = match self.open.take() {
            Some(open) if open.seq == part.seq => open,
            other => {
                if other.is_some() || part.seq != self.last_seq + 1 || part.commit_ts <= self.watermark {
                    self.broken(format!("{at}: not the next transaction"));
                }
                Open {
                    seq: part.seq,
                    commit_ts: part.commit_ts,
                    start_ts: part.start_ts,
                    parts: 0,
                    changes: 0,
                    digest: TxnDigest::default(),
                    complete: false,
                }
            }
        };
        if open.complete || part.part != open.parts || part.changes_so_far <= open.changes {
            let changes = open.changes;
            self.broken(format!(
                "{at}: {} changes so far, after part {} with {changes}",
                part.changes_so_far, open.parts
            ));
        }
        let new = open.changes..part.changes_so_far;
        let rows: Vec<&Row> = self.rows.of(part.seq).filter(|row| new.contains(&row.meta.change)).collect();
        let facts =
            Facts { epoch: record.epoch, commit_ts: open.commit_ts, start_ts: open.start_ts, changes: None };
        open.digest = self.changes(&at, &facts, new, &rows, open.digest);
        if open.digest.value() != part.digest_so_far {
            self.broken(format!(
                "{at}: digest {:08x}, the rows give {:08x}",
                part.digest_so_far,
                open.digest.value()
            ));
        }
        self.ranges(&at, &part.ranges, &rows);
        open.parts = part.part + 1;
        open.changes = part.changes_so_far;
        open.complete = part.last;
        self.open = Some(open);
    }

    /// Checks that `rows` are the changes `expected`, each with all of its records, and carries the digest on.
    fn changes(
        &mut self,
        at: &str,
        facts: &Facts,
        expected: std::ops::Range<u32>,
        rows: &[&Row],
        mut digest: TxnDigest,
    ) -> TxnDigest {
        let mut due = (expected.start, 0);
        for row in rows {
            let meta = &row.meta;
            if (meta.change, meta.record) != due {
                self.broken(format!("{at}: change {} record {} is missing", due.0, due.1));
            }
            due = if meta.record + 1 < meta.records {
                (meta.change, meta.record + 1)
            } else {
                (meta.change + 1, 0)
            };
            let told = Facts {
                epoch: meta.epoch,
                commit_ts: meta.commit_ts,
                start_ts: meta.start_ts,
                changes: facts.changes.map(|_| meta.changes),
            };
            if told != *facts {
                self.broken(format!("{at}: {} is of {told:?}, not {facts:?}", place_text(row)));
            }
            digest.push(meta.table_id, meta.change, row.checksum);
        }
        if due != (expected.end, 0) {
            self.broken(format!(
                "{at}: ends before change {} record {}; {} changes are named",
                due.0, due.1, expected.end
            ));
        }
        digest
    }

    /// Checks the offset ranges against the rows that they answer for.
    fn ranges(&mut self, at: &str, ranges: &[PartitionRange], rows: &[&Row]) {
        let mut found: BTreeMap<(&str, i32), (i64, i64, u64)> = BTreeMap::new();
        for row in rows {
            let range = found.entry((&row.topic, row.partition)).or_insert((row.offset, row.offset, 0));
            *range = (range.0.min(row.offset), range.1.max(row.offset), range.2 + 1);
            self.placed(at, row);
            if self.named.insert((row.meta.seq, row.meta.change, row.meta.record)) {
                self.report.rows += 1;
            } else {
                self.broken(format!("{at}: {} is named twice", place_text(row)));
            }
        }
        let named: BTreeMap<(&str, i32), (i64, i64, u64)> = ranges
            .iter()
            .map(|range| ((range.topic.as_str(), range.partition), (range.first, range.last, range.count)))
            .collect();
        if named.len() != ranges.len() {
            self.broken(format!("{at}: names a partition twice"));
        }
        for range in ranges {
            let key = (range.topic.clone(), range.partition);
            if let Some(end) = self.ends.get(&key).copied().filter(|end| *end >= range.first) {
                self.broken(format!(
                    "{at}: {key:?} from {} on, but an earlier record named up to {end}",
                    range.first
                ));
            }
            let end = self.ends.entry(key).or_insert(range.last);
            *end = range.last.max(*end);
        }
        for key in named.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
            let (named, found) = (named.get(key), found.get(key));
            if named != found {
                let (topic, partition) = key;
                self.broken(format!(
                    "{at}: {topic}/{partition} is named (first, last, count) {named:?}, holds {found:?}"
                ));
            }
        }
    }

    /// Checks that a row is in the partition that the layout gives it.
    fn placed(&mut self, at: &str, row: &Row) {
        let partitions = self
            .layout
            .topics
            .iter()
            .find(|layout| layout.topic == row.topic)
            .map(|layout| layout.partitions);
        let Some(partitions) = partitions.and_then(|count| u32::try_from(count).ok()) else {
            return self.broken(format!("{at}: the layout does not know topic {}", row.topic));
        };
        if let Some((database, table)) = &row.table
            && (self.layout.partition_by.as_str(), self.layout.hash.as_str()) == ("table", "murmur2")
            && i64::from(row.partition) != i64::from(by_table(database, table, partitions))
        {
            let due = by_table(database, table, partitions);
            self.broken(format!(
                "{at}: {} of {database}.{table} belongs into partition {due}",
                place_text(row)
            ));
        }
    }

    fn finish(mut self, log: &Log) -> Report {
        let newest = self.open.as_ref().map_or(self.last_seq, |open| open.seq);
        for row in &log.rows {
            let place = (row.meta.seq, row.meta.change, row.meta.record);
            if row.meta.seq > newest {
                self.report.ahead += 1;
            } else if !self.named.contains(&place) {
                self.broken(format!("{}: {place:?} is named by no commit record", place_text(row)));
            }
        }
        if log.commits.is_empty() {
            self.broken("the commit stream is empty".into());
        }
        self.report.watermark = self.watermark;
        self.report
    }
}

/// What every row record of a transaction says alike.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    epoch: u64,
    commit_ts: u64,
    start_ts: u64,
    /// Not known while parts are coming.
    changes: Option<u32>,
}

fn place_text(row: &Row) -> String {
    format!("{}/{}@{}", row.topic, row.partition, row.offset)
}

#[cfg(test)]
mod tests;
