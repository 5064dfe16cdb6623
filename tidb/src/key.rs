//! TiKV keys: records, indexes and TiDB's meta data (TiDB `tablecodec`, `structure`, `meta`). Raw, without TiKV's own
//! region encoding.

use crate::{
    DecodeError,
    datum::{Datum, int8, read_int8},
    memcomparable,
};

const TABLE: u8 = b't';
const META: u8 = b'm';
const RECORD_SEPARATOR: &[u8; 2] = b"_r";
const INDEX_SEPARATOR: &[u8; 2] = b"_i";
/// Shortest handle of a clustered key that is no integer.
const MIN_COMMON_HANDLE: usize = 9;

/// The handle by which a row is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Handle {
    /// An integer primary key (unsigned ones reinterpreted) or `_tidb_rowid`.
    Int(i64),
    /// The key form of a clustered primary key's columns, as [`common_handle`] makes it.
    Common(Vec<u8>),
}

/// The handle of a clustered primary key: its datums in key form, padded to nine bytes.
pub fn common_handle(datums: &[Datum]) -> Handle {
    let mut out = Vec::new();
    for datum in datums {
        datum.encode_key(&mut out);
    }
    out.resize(out.len().max(MIN_COMMON_HANDLE), 0);
    Handle::Common(out)
}

/// The key of a row. `table_id` is the physical one: a partition's, where there are partitions.
pub fn record(table_id: i64, handle: &Handle) -> Vec<u8> {
    let mut key = prefix(table_id, RECORD_SEPARATOR);
    match handle {
        Handle::Int(v) => key.extend_from_slice(&int8(*v)),
        Handle::Common(bytes) => key.extend_from_slice(bytes),
    }
    key
}

/// The key of an index entry. `handle` is given where the entry needs it to be unique: indexes that are not unique, and
/// unique ones with a NULL.
pub fn index(table_id: i64, index_id: i64, datums: &[Datum], handle: Option<&Handle>) -> Vec<u8> {
    let mut key = prefix(table_id, INDEX_SEPARATOR);
    key.extend_from_slice(&int8(index_id));
    for datum in datums {
        datum.encode_key(&mut key);
    }
    match handle {
        Some(Handle::Int(v)) => Datum::Int(*v).encode_key(&mut key),
        Some(Handle::Common(bytes)) => key.extend_from_slice(bytes),
        None => {}
    }
    key
}

fn prefix(table_id: i64, separator: &[u8; 2]) -> Vec<u8> {
    let mut key = vec![TABLE];
    key.extend_from_slice(&int8(table_id));
    key.extend_from_slice(separator);
    key
}

/// The physical table id of a record or index key; None for other keys.
pub fn table_id(key: &[u8]) -> Option<i64> {
    let (&first, rest) = key.split_first()?;
    if first == TABLE { rest.first_chunk().copied().map(read_int8) } else { None }
}

/// True for keys of TiDB's meta data.
pub fn is_meta(key: &[u8]) -> bool {
    key.first() == Some(&META)
}

/// The key of a string in the meta data, such as `SchemaVersionKey`, `NextGlobalID` or `Diff:7`.
pub fn meta_string(name: &[u8]) -> Vec<u8> {
    meta(name, b's')
}

/// The key of a field of a hash in the meta data.
pub fn meta_hash(name: &[u8], field: &[u8]) -> Vec<u8> {
    let mut key = meta(name, b'h');
    memcomparable::encode(&mut key, field);
    key
}

/// The prefix of all fields of a hash in the meta data.
pub fn meta_hash_prefix(name: &[u8]) -> Vec<u8> {
    meta(name, b'h')
}

/// The key of an item of a list in the meta data.
pub fn meta_list(name: &[u8], index: i64) -> Vec<u8> {
    let mut key = meta(name, b'l');
    key.extend_from_slice(&int8(index));
    key
}

/// The key of a list's bounds: left and right index, eight big-endian bytes each.
pub fn meta_list_bounds(name: &[u8]) -> Vec<u8> {
    meta(name, b'L')
}

/// The key of a finished DDL job.
pub fn ddl_history(job_id: i64) -> Vec<u8> {
    meta_hash(b"DDLJobHistory", &job_id.to_be_bytes())
}

/// The key of a database's definition.
pub fn database(id: i64) -> Vec<u8> {
    meta_hash(b"DBs", format!("DB:{id}").as_bytes())
}

/// The key of a table's definition.
pub fn table(database_id: i64, id: i64) -> Vec<u8> {
    meta_hash(format!("DB:{database_id}").as_bytes(), format!("Table:{id}").as_bytes())
}

fn meta(name: &[u8], tag: u8) -> Vec<u8> {
    let mut key = vec![META];
    memcomparable::encode(&mut key, name);
    key.extend_from_slice(&u64::from(tag).to_be_bytes());
    key
}

/// What a meta key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaKey {
    /// The name of the string, hash or list.
    pub name: Vec<u8>,
    /// `s`, `h`, `l` or `L`.
    pub tag: u8,
    /// Of a hash: the field.
    pub field: Option<Vec<u8>>,
}

/// Reads a meta key.
pub fn read_meta(key: &[u8]) -> Result<MetaKey, DecodeError> {
    let rest = key.strip_prefix(&[META]).ok_or(DecodeError::Malformed("meta key"))?;
    let (name, len) = memcomparable::decode(rest)?;
    let (tag, rest) = rest[len..].split_first_chunk().ok_or(DecodeError::Truncated("a meta key"))?;
    let tag = u8::try_from(u64::from_be_bytes(*tag)).map_err(|_| DecodeError::Malformed("meta key"))?;
    let field = if tag == b'h' {
        let (field, len) = memcomparable::decode(rest)?;
        if len != rest.len() {
            return Err(DecodeError::Trailing(rest.len() - len));
        }
        Some(field)
    } else {
        None
    };
    Ok(MetaKey { name, tag, field })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn vectors() {
        assert_eq!(record(104, &Handle::Int(7)), hex("7480000000000000685f728000000000000007"));
        let bob = Datum::Bytes(Bytes::from_static(b"bob"));
        let unique = "7480000000000000685f69800000000000000101626f620000000000fa";
        assert_eq!(index(104, 1, std::slice::from_ref(&bob), None), hex(unique));
        let plain = format!("{unique}038000000000000007");
        assert_eq!(index(104, 1, &[bob], Some(&Handle::Int(7))), hex(&plain));
        assert_eq!(
            ddl_history(93),
            hex("6d44444c4a6f624869ff73746f7279000000fc0000000000000068000000000000005dff0000000000000000f7")
        );
        assert_eq!(database(2), hex("6d4442730000000000fa000000000000006844423a3200000000fb"));
        assert_eq!(
            table(2, 104),
            hex("6d44423a3200000000fb00000000000000685461626c653a3130ff3400000000000000f8")
        );
        assert_eq!(
            meta_string(b"SchemaVersionKey"),
            hex("6d536368656d615665ff7273696f6e4b6579ff0000000000000000f70000000000000073")
        );
        // Table B: ('ab ', 2024-02-29) by utf8mb4_bin.
        let handle =
            common_handle(&[Datum::Bytes(Bytes::from_static(b"ab")), Datum::Uint(0x19b2_ba00_0000_0000)]);
        assert_eq!(handle, Handle::Common(hex("016162000000000000f90419b2ba0000000000")));
        assert_eq!(record(105, &handle), hex("7480000000000000695f72016162000000000000f90419b2ba0000000000"));
    }

    #[test]
    fn short_handles_are_padded() {
        let Handle::Common(bytes) = common_handle(&[Datum::Null]) else { panic!("not common") };
        assert_eq!(bytes, [0; 9]);
    }

    #[test]
    fn reads_back() {
        assert_eq!(table_id(&record(-5, &Handle::Int(7))), Some(-5));
        assert_eq!(table_id(&ddl_history(93)), None);
        assert!(is_meta(&ddl_history(93)));
        let meta = read_meta(&ddl_history(93)).unwrap();
        assert_eq!((&meta.name[..], meta.tag), (&b"DDLJobHistory"[..], b'h'));
        assert_eq!(meta.field, Some(93i64.to_be_bytes().to_vec()));
        assert_eq!(read_meta(&meta_string(b"NextGlobalID")).unwrap().name, b"NextGlobalID");
        assert_eq!(read_meta(&meta_list(b"DDLJobList", -3)).unwrap().tag, b'l');
        assert_eq!(read_meta(&meta_list_bounds(b"DDLJobList")).unwrap().tag, b'L');
        assert!(ddl_history(93).starts_with(&meta_hash_prefix(b"DDLJobHistory")));
    }

    proptest! {
        #[test]
        fn any_bytes(key: Vec<u8>) {
            let _ = (table_id(&key), read_meta(&key));
        }
    }
}
