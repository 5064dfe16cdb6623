//! TiDB's encodings, both ways, and its schema model.
//!
//! Owns: the datum, row and key codecs of TiDB's binlog ([`datum`], [`row`], [`key`], [`binlog`]), the values they
//! hold ([`value`], [`decimal`], [`time`], [`json`]) and how TiDB prints them ([`text`]), the schema as TiDB's JSON
//! spells it ([`model`], [`schema_api`]), and timestamps ([`ts`]).
//!
//! Pure: no clock, no channel, no disk, no randomness. Every decoder takes arbitrary bytes: it returns an error that
//! says what is wrong, never panics, and allocates in proportion to the bytes it was given (at most 128 times as much),
//! never to a length they declare. What a decoder accepts from TiDB, the encoder writes back byte for byte.

pub mod binlog;
pub mod datum;
pub mod decimal;
pub mod error;
pub mod gojson;
pub mod json;
pub mod key;
pub mod memcomparable;
pub mod model;
pub mod row;
pub mod schema_api;
pub mod text;
pub mod time;
pub mod ts;
pub mod value;
pub mod varint;

pub use error::DecodeError;
