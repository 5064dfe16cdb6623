//! A row change as records: its key, and its value whole, in pieces, or in a file.

use bytes::Bytes;
use prost::Message as _;
use schemas::digest::record_checksum;
use schemas::sluice::v1 as proto;
use tidb::ts::CommitTs;

use super::{TranslateFault, row_change};
use crate::claims::{self, Claim};
use crate::inflight::Fulfilled;
use crate::schema::Definition;
use crate::sequence::RowRecord;

/// What to do with a row whose record would be larger than the broker takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LargeRow {
    /// Cut its value into several records.
    #[default]
    Chunk,
    /// Put its value into a file and name that in the record.
    ClaimCheck,
    /// Stop the feed, naming it.
    Stop,
}

/// How records are made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The most bytes of key and value that one record may hold.
    pub max_record: usize,
    /// What happens to larger ones.
    pub large_row: LargeRow,
}

/// Which change of which transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) commit_ts: CommitTs,
    pub(super) change: u32,
}

/// Where a value goes that is too large for a record. The name says which change it is, so that a successor that writes
/// the change again writes the same file; by day, so that old ones can be removed.
fn claim_check(place: &Place, content: &Bytes) -> proto::ClaimCheck {
    let day = claims::day(place.commit_ts.0);
    proto::ClaimCheck {
        name: format!("{day}/{}-{}", place.commit_ts.get(), place.change),
        length: content.len() as u64,
        checksum: crc32c::crc32c(content),
    }
}

impl Shape {
    /// The records of the updates that follow a DDL.
    pub fn fulfilled(
        &self,
        definition: &Definition,
        commit_ts: CommitTs,
        updates: Vec<Fulfilled>,
        out: &mut Vec<RowRecord>,
    ) -> Result<(), TranslateFault> {
        let first = out.last().map_or(0, |last| last.change + 1);
        for (change, Fulfilled { before, after }) in (first..).zip(updates) {
            let update = row_change(definition, proto::Op::Update, before, after);
            self.records(definition, update, Place { commit_ts, change }, out)?;
        }
        Ok(())
    }

    /// Appends the records of one change.
    pub(super) fn records(
        &self,
        definition: &Definition,
        row: proto::RowChange,
        place: Place,
        out: &mut Vec<RowRecord>,
    ) -> Result<(), TranslateFault> {
        let image = if row.op() == proto::Op::Delete { &row.before } else { &row.after };
        let key = row_key(definition, image);
        let mut value = Bytes::from(row.encode_to_vec());
        let Some(partition) = definition.place else { return Ok(()) };
        let key_bytes = key.as_ref().map_or(0, Bytes::len);
        let bytes = key_bytes + value.len();
        let large = bytes > self.max_record;
        let too_large = || TranslateFault::TooLarge {
            table: format!("{}.{}", definition.database, definition.table()),
            bytes,
            limit: self.max_record,
        };
        let mut claim = None;
        match self.large_row {
            LargeRow::Stop if large => return Err(too_large()),
            LargeRow::ClaimCheck if large => {
                let check = claim_check(&place, &value);
                let named = proto::RowChange {
                    before: Vec::new(),
                    after: Vec::new(),
                    claim: Some(check.clone()),
                    ..row
                };
                let content = std::mem::replace(&mut value, named.encode_to_vec().into());
                claim = Some(Claim { name: check.name, content });
            }
            LargeRow::Chunk | LargeRow::ClaimCheck | LargeRow::Stop => {}
        }
        // A key that leaves no room for a value (a primary key over megabytes of text) is left out: the value has it.
        let (key, room) = match key {
            Some(key) if key.len() * 2 <= self.max_record => (Some(key), self.max_record - key_bytes),
            _ => (None, self.max_record),
        };
        let room = room.max(1);
        let records = u32::try_from(value.len().div_ceil(room).max(1)).map_err(|_| too_large())?;
        for record in 0..records {
            let from = record as usize * room;
            let slice = value.slice(from..value.len().min(from + room));
            out.push(RowRecord {
                place: partition,
                checksum: record_checksum(key.as_deref(), Some(&slice)),
                key: key.clone(),
                value: slice,
                claim: claim.take(),
                change: place.change,
                record,
                records,
                table_id: definition.id(),
                schema_version: definition.version,
            });
        }
        Ok(())
    }
}

/// The record's key, if the image has every column of it.
pub(super) fn row_key(definition: &Definition, image: &[proto::Field]) -> Option<Bytes> {
    if definition.key.is_empty() {
        return None;
    }
    let fields: Option<Vec<proto::Field>> = definition
        .key
        .iter()
        .map(|at| {
            let id = definition.info.cols.get(*at)?.id;
            image.iter().find(|field| field.column_id == id).cloned()
        })
        .collect();
    Some(proto::RowKey { fields: fields? }.encode_to_vec().into())
}
