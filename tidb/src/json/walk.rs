//! Walking a document: a flat sequence of events, with everything checked on the way.

use super::{HEADER, KEY_ENTRY, VALUE_ENTRY, extent, tp, u16_at, u32_at, u64_at};
use crate::{
    DecodeError,
    time::{Duration, Time},
    varint,
};

/// One step through a document.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// An object with this many members follows: for each a key and a value.
    BeginObject(usize),
    /// A key of the innermost object.
    Key(&'a [u8]),
    /// The innermost object ends.
    EndObject,
    /// An array with this many elements follows.
    BeginArray(usize),
    /// The innermost array ends.
    EndArray,
    /// A value that is no container.
    Scalar(Scalar<'a>),
}

/// A value that is no container.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// A double.
    Double(f64),
    /// A string; UTF-8 as far as TiDB checks.
    String(&'a [u8]),
    /// Bytes of a MySQL type that JSON has no place for.
    Opaque {
        /// MySQL type number.
        tp: u8,
        /// The value's bytes.
        bytes: &'a [u8],
    },
    /// A date.
    Date(Time),
    /// A date and time.
    Datetime(Time),
    /// An instant.
    Timestamp(Time),
    /// A time of day or span.
    Duration(Duration),
}

struct Frame<'a> {
    /// The container's value, exactly.
    value: &'a [u8],
    object: bool,
    count: usize,
    /// The next member.
    next: usize,
    /// Objects: the next event is the value of member `next`.
    key_done: bool,
    /// Where the last key, and the last value, ended.
    keys_end: usize,
    values_end: usize,
}

/// The events of a document; ends after the first error.
pub struct Events<'a> {
    start: Option<(u8, &'a [u8])>,
    stack: Vec<Frame<'a>>,
}

impl<'a> Events<'a> {
    pub(super) fn new(tp: u8, value: &'a [u8]) -> Self {
        Self { start: Some((tp, value)), stack: Vec::new() }
    }

    /// Depth of the containers entered so far.
    pub fn depth(&self) -> usize {
        self.stack.len()
    }

    fn value(&mut self, tp: u8, value: &'a [u8]) -> Result<Event<'a>, DecodeError> {
        let object = tp == tp::OBJECT;
        if !object && tp != tp::ARRAY {
            return scalar(tp, value).map(Event::Scalar);
        }
        let count = u32_at(value, 0)? as usize;
        let entry = if object { KEY_ENTRY + VALUE_ENTRY } else { VALUE_ENTRY };
        let entries_end = count.checked_mul(entry).and_then(|n| n.checked_add(HEADER)).unwrap_or(usize::MAX);
        if entries_end > value.len() {
            return Err(DecodeError::Json("a container smaller than its entries"));
        }
        self.stack.push(Frame {
            value,
            object,
            count,
            next: 0,
            key_done: false,
            keys_end: entries_end,
            values_end: entries_end,
        });
        Ok(if object { Event::BeginObject(count) } else { Event::BeginArray(count) })
    }

    fn step(&mut self) -> Option<Result<Event<'a>, DecodeError>> {
        if let Some((tp, value)) = self.start.take() {
            return Some(self.value(tp, value));
        }
        let frame = self.stack.last_mut()?;
        if frame.next == frame.count {
            let object = frame.object;
            self.stack.pop();
            return Some(Ok(if object { Event::EndObject } else { Event::EndArray }));
        }
        if frame.object && !frame.key_done {
            frame.key_done = true;
            return Some(frame.key());
        }
        let item = frame.item();
        frame.next += 1;
        frame.key_done = false;
        Some(item.and_then(|(tp, value)| self.value(tp, value)))
    }
}

impl<'a> Frame<'a> {
    fn key(&mut self) -> Result<Event<'a>, DecodeError> {
        let entry = HEADER + self.next * KEY_ENTRY;
        let offset = u32_at(self.value, entry)? as usize;
        let end = offset + usize::from(u16_at(self.value, entry + 4)?);
        if offset < self.keys_end {
            return Err(DecodeError::Json("parts of a container overlap"));
        }
        self.keys_end = end;
        self.value
            .get(offset..end)
            .map(Event::Key)
            .ok_or(DecodeError::Json("an offset outside its container"))
    }

    /// Type and bytes of the next member.
    fn item(&mut self) -> Result<(u8, &'a [u8]), DecodeError> {
        let keys = if self.object { self.count * KEY_ENTRY } else { 0 };
        let entry = HEADER + keys + self.next * VALUE_ENTRY;
        let tp = *self.value.get(entry).ok_or(DecodeError::Truncated("JSON"))?;
        if tp == tp::LITERAL {
            let literal = self.value.get(entry + 1..entry + 2).ok_or(DecodeError::Truncated("JSON"))?;
            return Ok((tp, literal));
        }
        let offset = u32_at(self.value, entry + 1)? as usize;
        if offset < self.values_end {
            return Err(DecodeError::Json("parts of a container overlap"));
        }
        let rest = self.value.get(offset..).filter(|rest| !rest.is_empty());
        let rest = rest.ok_or(DecodeError::Json("an offset outside its container"))?;
        let len = extent(tp, rest)?;
        self.values_end = offset + len;
        Ok((tp, &rest[..len]))
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if matches!(step, Some(Err(_))) {
            self.stack.clear();
        }
        step
    }
}

fn scalar(tp: u8, value: &[u8]) -> Result<Scalar<'_>, DecodeError> {
    Ok(match tp {
        tp::LITERAL => match value.first() {
            Some(0) => Scalar::Null,
            Some(1) => Scalar::Bool(true),
            Some(2) => Scalar::Bool(false),
            Some(_) => return Err(DecodeError::Json("an unknown literal")),
            None => return Err(DecodeError::Truncated("JSON")),
        },
        tp::INT => Scalar::Int(u64_at(value, 0)? as i64),
        tp::UINT => Scalar::Uint(u64_at(value, 0)?),
        tp::DOUBLE => {
            let v = f64::from_bits(u64_at(value, 0)?);
            if !v.is_finite() {
                return Err(DecodeError::Json("a number that is not finite"));
            }
            Scalar::Double(v)
        }
        tp::STRING => Scalar::String(sized_bytes(value, 0)?),
        tp::OPAQUE => Scalar::Opaque {
            tp: *value.first().ok_or(DecodeError::Truncated("JSON"))?,
            bytes: sized_bytes(value, 1)?,
        },
        tp::DATE => Scalar::Date(Time::from_core_time(u64_at(value, 0)?, 0)?),
        tp::DATETIME => Scalar::Datetime(Time::from_core_time(u64_at(value, 0)?, 6)?),
        tp::TIMESTAMP => Scalar::Timestamp(Time::from_core_time(u64_at(value, 0)?, 6)?),
        tp::DURATION => {
            Scalar::Duration(Duration::new(u64_at(value, 0)? as i64, u32_at(value, 8)?.min(6) as u8))
        }
        other => return Err(DecodeError::JsonType(other)),
    })
}

fn sized_bytes(value: &[u8], skip: usize) -> Result<&[u8], DecodeError> {
    let rest = value.get(skip..).ok_or(DecodeError::Truncated("JSON"))?;
    let (len, width) = varint::uvarint(rest)?;
    let end = usize::try_from(len).ok().and_then(|len| len.checked_add(width));
    end.and_then(|end| rest.get(width..end)).ok_or(DecodeError::Truncated("JSON"))
}
