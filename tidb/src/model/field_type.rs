//! Column types.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::List;

/// Type numbers, as MySQL's protocol has them.
#[allow(missing_docs, reason = "the names say it")]
pub mod tp {
    pub const TINY: u8 = 1;
    pub const SHORT: u8 = 2;
    pub const LONG: u8 = 3;
    pub const FLOAT: u8 = 4;
    pub const DOUBLE: u8 = 5;
    pub const NULL: u8 = 6;
    pub const TIMESTAMP: u8 = 7;
    pub const LONGLONG: u8 = 8;
    pub const INT24: u8 = 9;
    pub const DATE: u8 = 10;
    pub const DURATION: u8 = 11;
    pub const DATETIME: u8 = 12;
    pub const YEAR: u8 = 13;
    pub const NEW_DATE: u8 = 14;
    pub const VARCHAR: u8 = 15;
    pub const BIT: u8 = 16;
    pub const JSON: u8 = 245;
    pub const NEW_DECIMAL: u8 = 246;
    pub const ENUM: u8 = 247;
    pub const SET: u8 = 248;
    pub const TINY_BLOB: u8 = 249;
    pub const MEDIUM_BLOB: u8 = 250;
    pub const LONG_BLOB: u8 = 251;
    pub const BLOB: u8 = 252;
    pub const VAR_STRING: u8 = 253;
    pub const STRING: u8 = 254;
    pub const GEOMETRY: u8 = 255;
}

/// Bits of [`FieldType::flag`].
#[allow(missing_docs, reason = "the names say it")]
pub mod flag {
    pub const NOT_NULL: u64 = 1 << 0;
    pub const PRI_KEY: u64 = 1 << 1;
    pub const UNIQUE_KEY: u64 = 1 << 2;
    pub const MULTIPLE_KEY: u64 = 1 << 3;
    pub const BLOB: u64 = 1 << 4;
    pub const UNSIGNED: u64 = 1 << 5;
    pub const ZEROFILL: u64 = 1 << 6;
    pub const BINARY: u64 = 1 << 7;
    pub const ENUM: u64 = 1 << 8;
    pub const AUTO_INCREMENT: u64 = 1 << 9;
    pub const TIMESTAMP: u64 = 1 << 10;
    pub const SET: u64 = 1 << 11;
    pub const NO_DEFAULT: u64 = 1 << 12;
    pub const ON_UPDATE_NOW: u64 = 1 << 13;
}

/// The type of a column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct FieldType {
    /// Type number; see [`tp`].
    pub tp: u8,
    /// Flags; see [`flag`].
    pub flag: u64,
    /// Length: display width, characters, digits or bits. −1 (or, from old versions, 4294967295) is unspecified.
    pub flen: i64,
    /// Digits after the point, or of fractional seconds. −1 is unspecified.
    pub decimal: i64,
    /// Character set; `binary` for everything that is not character data.
    pub charset: String,
    /// Collation.
    pub collate: String,
    /// Elements of ENUM and SET.
    pub elems: List<String>,
    /// For each element, whether it was written as a binary literal.
    pub elems_is_binary_lit: List<bool>,
    /// The JSON array behind a multi-valued index: the values are JSON whatever `tp` says.
    pub array: bool,
}

impl Default for FieldType {
    fn default() -> Self {
        Self {
            tp: 0,
            flag: 0,
            flen: -1,
            decimal: -1,
            charset: String::new(),
            collate: String::new(),
            elems: List::nil(),
            elems_is_binary_lit: List::nil(),
            array: false,
        }
    }
}

impl FieldType {
    /// True if all bits of `flag` are set.
    pub fn has(&self, flag: u64) -> bool {
        self.flag & flag == flag
    }

    /// True for BINARY, VARBINARY and the BLOBs: strings without a character set. (Flags and charset alone do not
    /// tell: numbers and JSON carry `binary` too.)
    pub fn is_binary_string(&self) -> bool {
        self.charset == "binary"
            && matches!(
                self.tp,
                tp::VARCHAR | tp::TINY_BLOB | tp::MEDIUM_BLOB | tp::LONG_BLOB | tp::BLOB | tp::STRING
            )
    }

    /// True for strings with a character set.
    pub fn is_text(&self) -> bool {
        !self.is_binary_string()
            && matches!(
                self.tp,
                tp::VARCHAR
                    | tp::TINY_BLOB
                    | tp::MEDIUM_BLOB
                    | tp::LONG_BLOB
                    | tp::BLOB
                    | tp::VAR_STRING
                    | tp::STRING
            )
    }

    /// The length, if specified.
    pub fn length(&self) -> Option<u32> {
        u32::try_from(self.flen).ok().filter(|&n| n != u32::MAX)
    }

    /// Digits of fractional seconds, 0 to 6.
    pub fn fsp(&self) -> u8 {
        u8::try_from(self.decimal).map_or(0, |n| n.min(6))
    }

    /// Precision and scale of a DECIMAL; MySQL's defaults where unspecified.
    pub fn decimal_shape(&self) -> (u8, u8) {
        let precision = self.length().and_then(|n| u8::try_from(n).ok()).filter(|&n| n != 0).unwrap_or(10);
        (precision, u8::try_from(self.decimal).unwrap_or(0))
    }

    /// The type as SQL writes it, with UNSIGNED and ZEROFILL, without character set. Display widths of integers are
    /// left out as MySQL 8 does, except for `tinyint(1)` and under ZEROFILL, where they mean something.
    pub fn sql_type(&self) -> String {
        if self.array {
            return "json".into();
        }
        let mut out = String::from(self.base_name());
        let length = self.length();
        let decimal = u32::try_from(self.decimal).ok();
        // Writing to a String does not fail.
        let _ = match (self.tp, length, decimal) {
            (tp::TINY, Some(1), _) => write!(out, "(1)"),
            (tp::TINY | tp::SHORT | tp::INT24 | tp::LONG | tp::LONGLONG, Some(n), _)
                if self.has(flag::ZEROFILL) =>
            {
                write!(out, "({n})")
            }
            (tp::FLOAT | tp::DOUBLE, Some(n), Some(d)) => write!(out, "({n},{d})"),
            (tp::NEW_DECIMAL, _, _) => {
                let (precision, frac) = self.decimal_shape();
                write!(out, "({precision},{frac})")
            }
            (tp::BIT | tp::VARCHAR | tp::STRING | tp::VAR_STRING, Some(n), _) => write!(out, "({n})"),
            (tp::DATETIME | tp::TIMESTAMP | tp::DURATION, _, Some(fsp)) if fsp > 0 => write!(out, "({fsp})"),
            (tp::ENUM | tp::SET, _, _) => {
                for (i, elem) in self.elems.iter().enumerate() {
                    out.push_str(if i == 0 { "('" } else { "','" });
                    for c in elem.chars() {
                        match c {
                            '\'' => out.push_str("''"),
                            '\\' => out.push_str("\\\\"),
                            '\0' => out.push_str("\\0"),
                            c => out.push(c),
                        }
                    }
                }
                out.push_str(if self.elems.is_empty() { "('')" } else { "')" });
                Ok(())
            }
            _ => Ok(()),
        };
        let numeric = matches!(
            self.tp,
            tp::TINY
                | tp::SHORT
                | tp::INT24
                | tp::LONG
                | tp::LONGLONG
                | tp::FLOAT
                | tp::DOUBLE
                | tp::NEW_DECIMAL
        );
        if numeric && self.has(flag::UNSIGNED) {
            out.push_str(" unsigned");
        }
        if numeric && self.has(flag::ZEROFILL) {
            out.push_str(" zerofill");
        }
        out
    }

    /// The bare name of the type.
    pub fn base_name(&self) -> &'static str {
        let binary = self.is_binary_string();
        match self.tp {
            tp::TINY => "tinyint",
            tp::SHORT => "smallint",
            tp::LONG => "int",
            tp::FLOAT => "float",
            tp::DOUBLE => "double",
            tp::NULL => "null",
            tp::TIMESTAMP => "timestamp",
            tp::LONGLONG => "bigint",
            tp::INT24 => "mediumint",
            tp::DATE | tp::NEW_DATE => "date",
            tp::DURATION => "time",
            tp::DATETIME => "datetime",
            tp::YEAR => "year",
            tp::VARCHAR if binary => "varbinary",
            tp::VARCHAR => "varchar",
            tp::BIT => "bit",
            tp::JSON => "json",
            tp::NEW_DECIMAL => "decimal",
            tp::ENUM => "enum",
            tp::SET => "set",
            tp::TINY_BLOB if binary => "tinyblob",
            tp::TINY_BLOB => "tinytext",
            tp::MEDIUM_BLOB if binary => "mediumblob",
            tp::MEDIUM_BLOB => "mediumtext",
            tp::LONG_BLOB if binary => "longblob",
            tp::LONG_BLOB => "longtext",
            tp::BLOB if binary => "blob",
            tp::BLOB => "text",
            tp::VAR_STRING => "var_string",
            tp::STRING if binary => "binary",
            tp::STRING => "char",
            tp::GEOMETRY => "geometry",
            _ => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(tp: u8, flag: u64, flen: i64, decimal: i64, charset: &str) -> FieldType {
        FieldType { tp, flag, flen, decimal, charset: charset.into(), ..FieldType::default() }
    }

    #[test]
    fn sql_types() {
        let cases = [
            (field(tp::LONGLONG, flag::UNSIGNED, 20, 0, "binary"), "bigint unsigned"),
            (field(tp::TINY, 0, 1, 0, "binary"), "tinyint(1)"),
            (field(tp::TINY, 0, 4, 0, "binary"), "tinyint"),
            (field(tp::LONG, flag::UNSIGNED | flag::ZEROFILL, 8, 0, "binary"), "int(8) unsigned zerofill"),
            (field(tp::FLOAT, 0, 12, -1, "binary"), "float"),
            (field(tp::FLOAT, 0, 7, 3, "binary"), "float(7,3)"),
            (field(tp::NEW_DECIMAL, flag::UNSIGNED, 20, 6, "binary"), "decimal(20,6) unsigned"),
            (field(tp::VARCHAR, 0, 20, 0, "utf8mb4"), "varchar(20)"),
            (field(tp::VARCHAR, flag::BINARY, 300, 0, "binary"), "varbinary(300)"),
            (field(tp::STRING, 0, 8, 0, "binary"), "binary(8)"),
            (field(tp::BLOB, 0, 65535, 0, "utf8mb4"), "text"),
            (field(tp::LONG_BLOB, 0, 4_294_967_295, 0, "binary"), "longblob"),
            (field(tp::DATETIME, 0, 23, 3, "binary"), "datetime(3)"),
            (field(tp::TIMESTAMP, 0, 19, 0, "binary"), "timestamp"),
            (field(tp::DURATION, 0, 10, -1, "binary"), "time"),
            (field(tp::YEAR, 0, 4, 0, "binary"), "year"),
            (field(tp::BIT, flag::UNSIGNED, 33, 0, "binary"), "bit(33)"),
            (field(tp::JSON, flag::BINARY, 4_294_967_295, 0, "binary"), "json"),
        ];
        for (field, expected) in cases {
            assert_eq!(field.sql_type(), expected);
        }
        let mut e = field(tp::ENUM, 0, 1, 0, "utf8mb4");
        e.elems = vec!["a".to_owned(), "o'x\\".to_owned()].into();
        assert_eq!(e.sql_type(), "enum('a','o''x\\\\')");
        let array = FieldType { array: true, ..field(tp::LONGLONG, 0, 20, 0, "binary") };
        assert_eq!(array.sql_type(), "json");
    }
}
