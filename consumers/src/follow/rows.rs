//! From a commit record to events: the rows it names are read, verified, shaped by their definitions, and sent on.

use std::sync::Arc;
use std::time::Instant;

use schemas::sluice::v1::{PartitionRange, TableVersion, Txn, TxnKind};
use tidb::ts::{CommitTs, StartTs};
use tracing::warn;

use super::{FollowError, Follower, REPORT, Stop};
use crate::align::{AlignError, AlignedTxn, Taken};
use crate::claims::ClaimError;
use crate::event::{Ddl, Event, Rows, is_sequence_value};
use crate::kafka::{Polled, ReadError, Record};
use crate::metrics;
use crate::position::Position;
use crate::schema::Table;
use crate::shape::{Assembler, Decoded, decode};
use crate::spill::RowLog;

impl Follower {
    /// Reads a range's records into the aligner, and past its end.
    pub(super) fn read_range(&mut self, index: usize, range: &PartitionRange) -> Result<(), Stop> {
        let PartitionRange { topic, partition, first, last, .. } = range;
        let partition = *partition;
        // Far behind: what lies between is not wanted.
        let far = |next: i64| next > *last || first.saturating_sub(next) > 10_000;
        if self.reader.next_offset(topic, partition).is_none_or(far) {
            self.reader.open(topic, partition, *first)?;
        }
        let began = Instant::now();
        let mut reported = began;
        // Set once the brokers said that the log ends past the range and reading began anew after that: if its end comes
        // again, what was not seen is not there.
        let mut confirmed = false;
        loop {
            match self.poll(topic, partition)? {
                Polled::Record(record) if record.offset < *first => {}
                Polled::Record(record) if record.offset > *last => {
                    self.reader.put_back(topic, partition, record);
                    break;
                }
                Polled::Record(record) => {
                    let Record { offset, key, value, meta } = record;
                    match self.aligner.row(index, offset, meta.as_deref(), key.as_deref(), value)? {
                        Taken::Row => {}
                        Taken::Stranger => metrics::stranger(topic),
                        Taken::Stale => {
                            metrics::stale_row(topic);
                            warn!(topic, partition, offset, "ignored a row of an epoch that was over");
                        }
                    }
                    if offset == *last {
                        break;
                    }
                }
                Polled::End if confirmed => break,
                Polled::End => {
                    let (_, end) = self.ask(topic, |reader| reader.bounds(topic, partition))?;
                    if end > *last {
                        let next = self.reader.next_offset(topic, partition).unwrap_or(*first).max(*first);
                        self.reader.open(topic, partition, next)?;
                        confirmed = true;
                    } else {
                        // The commit record can be read, so its rows were written: perhaps they cannot be read yet, but
                        // they must be there.
                        let end = self.ask(topic, |reader| reader.end_of_log(topic, partition))?;
                        if end <= *last {
                            let (topic, offset) = (topic.clone(), *last);
                            return Err(ReadError::Shorter { topic, partition, offset, end }.into());
                        }
                    }
                }
                Polled::Nothing => {}
            }
            if reported.elapsed() >= REPORT {
                reported = Instant::now();
                let what = format!("{topic} partition {partition} to be readable up to offset {last}");
                warn!(topic, partition, last, seconds = began.elapsed().as_secs(), "waiting for rows");
                self.progress.waiting(Some(what));
            }
        }
        self.progress.waiting(None);
        // An offset that is not there any more shows as a range that is not whole.
        if let Some((seen, expected)) = self.aligner.seen(index)
            && seen < expected
        {
            let (log_start, _) = self.ask(topic, |reader| reader.bounds(topic, partition))?;
            if log_start > *first {
                let (topic, first, last) = (topic.clone(), *first, *last);
                return Err(ReadError::Gap { topic, partition, first, last, log_start }.into());
            }
        }
        Ok(self.aligner.end_range(index)?)
    }

    /// Sends a transaction on, unless it is past the end.
    pub(super) fn hand_over(&mut self, aligned: AlignedTxn) -> Result<(), Stop> {
        let AlignedTxn { txn, rows, before, mut after } = aligned;
        let commit_ts = CommitTs::new(txn.commit_ts);
        if self.position.is_none() {
            self.attached(before)?;
        }
        if let Some(until) = self.options.until {
            if commit_ts > until {
                return self.reached(until);
            }
            after.commit_ts = after.commit_ts.min(until);
        }
        let changes = rows.len();
        if txn.kind() == TxnKind::Ddl {
            let ddl = self.ddl(&txn, (changes == 0).then(|| after.clone()))?;
            self.events.send(Event::Ddl(Box::new(ddl)), 1024)?;
        }
        if changes > 0 || txn.kind() == TxnKind::Rows {
            self.rows(&txn, rows, &after)?;
        }
        metrics::transaction();
        self.progress.handed_over(&after);
        if txn.kind() == TxnKind::Ddl {
            self.schema.forget_before(CommitTs(commit_ts.0.prev()));
        }
        self.position = Some(after);
        Ok(())
    }

    pub(super) fn rows(&mut self, txn: &Txn, rows: RowLog, after: &Position) -> Result<(), Stop> {
        let slice = |first_change, changes, cost, after| Rows {
            seq: txn.seq,
            commit_ts: CommitTs::new(txn.commit_ts),
            start_ts: StartTs::new(txn.start_ts),
            origin: txn.origin,
            first_change,
            changes,
            cost,
            after,
        };
        let mut assembler = Assembler::default();
        let (mut changes, mut cost, mut first) = (Vec::new(), 0, 0);
        for row in rows.into_rows().map_err(AlignError::Spill)? {
            let row = row.map_err(AlignError::Spill)?;
            let Some(value) = assembler.push(&row) else { continue };
            let table = self.table(row.table_id, row.schema_version, txn.seq)?;
            let change = match decode(&row, value, &table)? {
                Decoded::Change(change) => change,
                Decoded::Claim(claim) => match decode(&row, self.options.claims.fetch(&claim)?, &table)? {
                    Decoded::Change(change) => change,
                    Decoded::Claim(again) => return Err(ClaimError::BadName { name: again.name }.into()),
                },
            };
            if cost + change.cost > self.slice && !changes.is_empty() {
                let next = row.change;
                let full = slice(first, std::mem::take(&mut changes), cost, None);
                self.events.send(Event::Rows(full), cost)?;
                (first, cost) = (next, 0);
            }
            cost += change.cost;
            metrics::row(change.kind.op());
            changes.push(change);
        }
        self.events.send(Event::Rows(slice(first, changes, cost, Some(after.clone()))), cost)?;
        Ok(())
    }

    pub(super) fn ddl(&mut self, txn: &Txn, after_position: Option<Position>) -> Result<Ddl, Stop> {
        let mut entry = txn.ddl.clone().unwrap_or_default();
        let mut tables = |versions: &[TableVersion]| -> Result<Vec<Arc<Table>>, Stop> {
            versions.iter().map(|v| self.table(v.table_id, v.version, txn.seq)).collect()
        };
        let (before, after) = (tables(&entry.before)?, tables(&entry.after)?);
        // The record is written with the entry; only a sequence's value has none.
        let job_id = entry.job_id;
        let record = self.wait_for(|schema| schema.ddl(job_id).cloned(), !is_sequence_value(&entry))?;
        if entry.statement.is_empty() {
            let missing = FollowError::NoStatement {
                job_id: entry.job_id,
                seq: txn.seq,
                topic: self.schema_topic.clone(),
            };
            entry.statement = record.as_ref().map(|record| record.statement.clone()).ok_or(missing)?;
        }
        Ok(Ddl {
            seq: txn.seq,
            commit_ts: CommitTs::new(txn.commit_ts),
            start_ts: StartTs::new(txn.start_ts),
            entry,
            before,
            after,
            job: record.map(|record| record.tidb_json.clone()).filter(|json| !json.is_empty()),
            after_position,
        })
    }

    pub(super) fn table(&mut self, table_id: i64, version: i64, seq: u64) -> Result<Arc<Table>, Stop> {
        let found = self.wait_for(|schema| schema.table(table_id, version).cloned(), true)?;
        found.ok_or_else(|| {
            FollowError::NoDefinition { table_id, version, seq, topic: self.schema_topic.clone() }.into()
        })
    }
}
