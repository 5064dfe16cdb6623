//! Why bytes could not be read.

/// Bytes that are not what TiDB writes. Errors of a codec without context; [`crate::row::RowError`] adds table and
/// column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends inside an item.
    #[error("the bytes end inside {0}")]
    Truncated(&'static str),
    /// A variable-length integer does not fit 64 bits.
    #[error("a variable-length integer is longer than 64 bits")]
    VarintOverflow,
    /// A datum starts with a flag byte that TiDB does not write in this place.
    #[error("flag byte {0:#04x} does not start a datum")]
    UnknownFlag(u8),
    /// A length is negative or larger than what follows.
    #[error("a declared length of {0} does not fit the bytes that follow")]
    Length(i64),
    /// A memcomparable group has a marker or padding that no encoder writes.
    #[error("a memcomparable byte group has a bad marker or padding")]
    Padding,
    /// A decimal's precision or scale is out of range.
    #[error("a decimal of precision {precision} and scale {frac} does not exist")]
    DecimalShape {
        /// Digits in total.
        precision: u8,
        /// Digits after the point.
        frac: u8,
    },
    /// A group of a decimal holds more digits than it has places for.
    #[error("a decimal holds a digit group out of range")]
    DecimalDigits,
    /// A packed time has a field out of range.
    #[error("{0:#018x} is not a packed date or time")]
    Time(u64),
    /// Binary JSON is malformed.
    #[error("malformed binary JSON: {0}")]
    Json(&'static str),
    /// A JSON type byte that TiDB does not write.
    #[error("JSON type {0:#04x} is unknown")]
    JsonType(u8),
    /// Something else stands where a certain byte or structure is required.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// Bytes are left over where the item must end.
    #[error("{0} bytes left over after the item")]
    Trailing(usize),
}
