//! One function per decoder. Each takes any bytes, fails only by panicking, and checks what must hold of whatever was
//! accepted: writing it and reading it again gives the same, and it is not larger than its input allows.

use std::sync::LazyLock;

use bytes::Bytes;
use prost::Message;
use schemas::sluice::v1::RowMeta;
use tidb::{
    binlog::{self, Header},
    datum::{self, Datum},
    decimal::Decimal,
    gojson,
    json::Json,
    model::{Job, TableInfo},
    row::{self, RowImage, v2},
    time::{Duration, Time},
    value::Value,
};

use super::seeds;

/// A decoder's name, which is that of cargo-fuzz's target, and the function to call.
pub type Entry = (&'static str, fn(&[u8]));

/// All decoders.
pub const ENTRIES: [Entry; 9] = [
    ("row_v1", row_v1),
    ("row_v2", row_v2),
    ("datums", datums),
    ("json", json),
    ("decimal", decimal),
    ("time", time),
    ("binlog", binlog),
    ("row_meta", row_meta),
    ("job", job),
];

static TABLES: LazyLock<Vec<TableInfo>> = LazyLock::new(seeds::tables);

/// Most bytes that what was read from `len` bytes may take, or be printed in: a NULL is one byte and becomes a datum of
/// 48, in a vector that may be half empty.
fn limit(len: usize) -> usize {
    128 * len + 4096
}

/// Splits off the first byte, which picks a table of the recordings.
fn with_table(data: &[u8]) -> Option<(&'static TableInfo, Bytes)> {
    let (&first, rest) = data.split_first()?;
    Some((&TABLES[usize::from(first) % TABLES.len()], Bytes::copy_from_slice(rest)))
}

/// Rows of the binlog, read as each kind of change: a byte that picks the table, then the row.
pub fn row_v1(data: &[u8]) {
    let Some((table, blob)) = with_table(data) else { return };
    if let Ok(image) = row::decode_insert(table, &blob) {
        check_image(table, &image, blob.len());
        assert_eq!(row::decode_insert(table, &row::encode_insert(&image).into()).unwrap(), image);
    }
    if let Ok((before, after)) = row::decode_update(table, &blob) {
        check_image(table, &before, blob.len());
        check_image(table, &after, blob.len());
        let again = row::decode_update(table, &row::encode_update(&before, &after).into()).unwrap();
        assert_eq!(again, (before, after));
    }
    if let Ok(image) = row::decode_delete(table, &blob) {
        check_image(table, &image, blob.len());
        assert_eq!(row::decode_delete(table, &row::encode_delete(&image).into()).unwrap(), image);
    }
}

fn check_image(table: &TableInfo, image: &RowImage, len: usize) {
    let columns = image.columns.capacity() * size_of::<(i64, Value)>();
    let unknown = image.unknown.capacity() * size_of::<row::Unknown>();
    assert!(columns + unknown <= limit(len), "{len} bytes became {}", columns + unknown);
    for (id, value) in &image.columns {
        assert!(value.to_string().len() <= limit(len));
        let column = table.column(*id).unwrap();
        if let Ok(Some(text)) = value.to_text(&column.field_type) {
            assert!(text.len() <= limit(len));
        }
    }
}

/// Rows of TiKV: a byte that picks the table, then the row.
pub fn row_v2(data: &[u8]) {
    let Some((table, blob)) = with_table(data) else { return };
    let Ok(row) = v2::Row::decode(&blob) else { return };
    assert_eq!(v2::Row::decode(&row.encode().into()).unwrap(), row);
    for column in &table.cols {
        if let Ok(id) = u32::try_from(column.id) {
            let _ = row.get(id, &column.field_type);
        }
    }
}

/// Datums in both forms.
pub fn datums(data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    let Ok(datums) = datum::decode_all(&data) else { return };
    assert!(datums.capacity() * size_of::<Datum>() <= limit(data.len()));
    for encode in [Datum::encode_value, Datum::encode_key] {
        let mut out = Vec::new();
        datums.iter().for_each(|datum| encode(datum, &mut out));
        assert_eq!(datum::decode_all(&out.into()).unwrap(), datums);
    }
}

/// Binary JSON, type byte first; and JSON text.
pub fn json(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok((json, len)) = Json::decode(&bytes, 0) {
        let mut out = Vec::new();
        json.encode(&mut out);
        assert_eq!(out, data[..len]);
        let text = json.to_string();
        assert!(text.len() <= limit(len), "{len} bytes became {}", text.len());
        // serde_json reads 127 levels.
        if json.text_is_lossless() && text.bytes().filter(|b| matches!(b, b'[' | b'{')).count() < 100 {
            Json::parse(&text).unwrap();
        }
    }
    if let Ok(Ok(json)) = std::str::from_utf8(data).map(Json::parse) {
        assert_eq!(Json::new(json.type_byte(), json.value_bytes().clone()).unwrap(), json);
    }
}

/// Decimals: bytes, and text.
pub fn decimal(data: &[u8]) {
    if let Ok((decimal, len)) = Decimal::decode(data) {
        let mut out = Vec::new();
        decimal.encode(&mut out);
        assert_eq!(out, data[..len]);
        let text = decimal.to_string();
        let again = Decimal::parse(&text, decimal.precision(), decimal.frac()).unwrap().to_string();
        // A negative zero, which nobody writes, loses its sign.
        assert_eq!(again.trim_start_matches('-'), text.trim_start_matches('-'));
    }
    if let [precision, frac, text @ ..] = data
        && let Ok(Ok(decimal)) = std::str::from_utf8(text).map(|t| Decimal::parse(t, *precision, *frac))
    {
        let mut out = Vec::new();
        decimal.encode(&mut out);
        assert_eq!(Decimal::decode(&out).unwrap(), (decimal, out.len()));
    }
}

/// Packed times, durations, and their texts.
pub fn time(data: &[u8]) {
    if let Some((head, _)) = data.split_first_chunk::<8>() {
        let number = u64::from_le_bytes(*head);
        if let Ok(time) = Time::from_packed(number, 6) {
            assert_eq!(time.packed(), number);
            assert_eq!(Time::parse(&time.to_string(), 6).unwrap(), time);
        }
        if let Ok(time) = Time::from_core_time(number, 6) {
            assert_eq!(time.core_time(), number & !0xf);
        }
        assert!(Duration::new(number as i64, 6).to_string().len() <= 24);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(time) = Time::parse(text, 6) {
            assert_eq!(Time::from_packed(time.packed(), 6).unwrap(), time);
        }
        if let Ok(duration) = Duration::parse(text, 6) {
            assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        }
    }
}

/// Binlog records, with their changes.
pub fn binlog(data: &[u8]) {
    let Ok(header) = Header::decode(Bytes::copy_from_slice(data)) else { return };
    assert_eq!(Header::decode(header.encode()).unwrap(), header);
    let _ = (header.is_ddl(), header.is_sequence_value(), tidb::key::read_meta(&header.prewrite_key));
    let Ok(value) = binlog::decode_value(header.prewrite_value) else { return };
    assert_eq!(binlog::decode_value(binlog::encode_value(&value)).unwrap(), value);
    for mutation in &value.mutations {
        let rows = mutation.inserted_rows.len() + mutation.updated_rows.len() + mutation.deleted_rows.len();
        assert!(binlog::changes(mutation).count() <= rows + 1);
    }
}

/// The header of row records in Kafka.
pub fn row_meta(data: &[u8]) {
    if let Ok(meta) = RowMeta::decode(data) {
        assert_eq!(RowMeta::decode(&meta.encode_to_vec()[..]).unwrap(), meta);
    }
}

/// DDL jobs as JSON, definitions included.
pub fn job(data: &[u8]) {
    let Ok(job) = Job::parse(data) else { return };
    assert_eq!(Job::parse(&gojson::to_vec(&job).unwrap()).unwrap(), job);
    for column in job.binlog.table_info.iter().flat_map(|table| &table.cols) {
        let _ = (column.sql_type(), column.absent_value());
    }
}
