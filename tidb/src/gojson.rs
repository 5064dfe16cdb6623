//! JSON as Go's `encoding/json` spells it, so that what we write of TiDB's schema model is what TiDB writes.
//!
//! Differences from serde_json's own spelling: `<`, `>`, `&`, U+2028 and U+2029 are escaped, backspace and form feed
//! are `\u0008` and `\u000c`, a nil slice or map is `null`, `[]byte` is base64 (Go `encoding/json`).

use std::{io, ops::Deref};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{
    ser::{CharEscape, Formatter},
    value::RawValue,
};

/// Compact JSON, as Go's `json.Marshal` gives.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, GoFormatter))?;
    Ok(out)
}

/// JSON indented by one blank a level, as TiDB's status port answers (`json.MarshalIndent(v, "", " ")`).
pub fn to_vec_indented<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    Ok(indent(&to_vec(value)?))
}

struct GoFormatter;

impl Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (plain, tail) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut chars = tail.chars();
            if let Some(c) = chars.next() {
                write!(writer, "\\u{:04x}", u32::from(c))?;
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        match escape {
            CharEscape::Quote => writer.write_all(b"\\\""),
            CharEscape::ReverseSolidus => writer.write_all(b"\\\\"),
            CharEscape::Solidus => writer.write_all(b"/"),
            CharEscape::Backspace => writer.write_all(b"\\u0008"),
            CharEscape::FormFeed => writer.write_all(b"\\u000c"),
            CharEscape::LineFeed => writer.write_all(b"\\n"),
            CharEscape::CarriageReturn => writer.write_all(b"\\r"),
            CharEscape::Tab => writer.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(writer, "\\u{byte:04x}"),
        }
    }
}

/// Calls `f` for each byte of `json` with whether it stands inside a string.
fn for_each_byte(json: &[u8], mut f: impl FnMut(u8, bool)) {
    let (mut inside, mut escaped) = (false, false);
    for &byte in json {
        let was_inside = inside;
        if inside {
            inside = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else {
            inside = byte == b'"';
        }
        f(byte, was_inside || inside);
    }
}

/// Removes white space between tokens.
pub fn compact(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    for_each_byte(json, |byte, inside| {
        if inside || !byte.is_ascii_whitespace() {
            out.push(byte);
        }
    });
    out
}

/// Indents compact JSON by one blank a level.
pub fn indent(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let mut depth = 0usize;
    let mut opened = false;
    let newline = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + depth, b' ');
    };
    for_each_byte(json, |byte, inside| {
        if !inside && byte.is_ascii_whitespace() {
            return;
        }
        let closes = !inside && matches!(byte, b'}' | b']');
        if opened && !closes {
            newline(&mut out, depth);
        }
        if closes {
            depth = depth.saturating_sub(1);
            if !opened {
                newline(&mut out, depth);
            }
        }
        opened = false;
        out.push(byte);
        if !inside {
            match byte {
                b'{' | b'[' => {
                    depth += 1;
                    opened = true;
                }
                b',' => newline(&mut out, depth),
                b':' => out.push(b' '),
                _ => {}
            }
        }
    });
    out
}

/// A part of TiDB's JSON that is carried along unread, in the words it came in (white space removed).
#[derive(Clone, Debug, Default)]
pub struct Raw(Option<Box<RawValue>>);

impl Raw {
    /// True for JSON `null`, which is also the default.
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// The JSON text.
    pub fn get(&self) -> &str {
        self.0.as_deref().map_or("null", RawValue::get)
    }

    /// Reads it as `T`.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.get())
    }

    /// From anything that serialises.
    pub fn of<T: Serialize>(value: &T) -> serde_json::Result<Self> {
        serde_json::from_slice(&to_vec(value)?)
    }
}

impl PartialEq for Raw {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Some(raw) = Option::<Box<RawValue>>::deserialize(deserializer)? else { return Ok(Self(None)) };
        if !raw.get().bytes().any(|b| b.is_ascii_whitespace()) {
            return Ok(Self(Some(raw)));
        }
        let text = String::from_utf8(compact(raw.get().as_bytes())).map_err(serde::de::Error::custom)?;
        RawValue::from_string(text).map(|raw| Self(Some(raw))).map_err(serde::de::Error::custom)
    }
}

/// A Go slice: `null` when nil, told apart from an empty one only in what is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct List<T>(Option<Vec<T>>);

impl<T> List<T> {
    /// The nil slice, written as `null`.
    pub const fn nil() -> Self {
        Self(None)
    }

    /// Appends an element.
    pub fn push(&mut self, item: T) {
        self.0.get_or_insert_default().push(item);
    }

    /// The elements, to change them.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self::nil()
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self(Some(items))
    }
}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Go's `[]byte`: base64 text, `null` when nil. For `#[serde(with)]`.
pub(crate) mod base64_bytes {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(|b| STANDARD.encode(b)).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|t| STANDARD.decode(t)).transpose().map_err(serde::de::Error::custom)
    }
}

/// For fields of newer TiDB versions: absent stays absent, `null` stays `null`.
pub(crate) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling() {
        // Go: json.Marshal("a<b>&\u2028\b\f\n\x01\"/é")
        let text = "a<b>&\u{2028}\u{8}\u{c}\n\u{1}\"/é";
        let expected = r#""a\u003cb\u003e\u0026\u2028\u0008\u000c\n\u0001\"/é""#;
        assert_eq!(String::from_utf8(to_vec(text).unwrap()).unwrap(), expected);
    }

    #[test]
    fn indents_as_marshal_indent() {
        let compact_text = r#"{"a":[1,{"b":"x, {\" :"}],"c":{},"d":[],"e":null}"#;
        let expected = "{\n \"a\": [\n  1,\n  {\n   \"b\": \"x, {\\\" :\"\n  }\n ],\n \"c\": {},\n \"d\": [],\n \"e\": null\n}";
        assert_eq!(String::from_utf8(indent(compact_text.as_bytes())).unwrap(), expected);
        assert_eq!(compact(expected.as_bytes()), compact_text.as_bytes());
    }

    #[test]
    fn nil_and_empty_lists_differ_in_writing_only() {
        let nil: List<i32> = serde_json::from_str("null").unwrap();
        let empty: List<i32> = serde_json::from_str("[]").unwrap();
        assert_eq!((nil.len(), empty.len()), (0, 0));
        assert_eq!(to_vec(&nil).unwrap(), b"null");
        assert_eq!(to_vec(&empty).unwrap(), b"[]");
    }
}
