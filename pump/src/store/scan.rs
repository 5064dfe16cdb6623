//! Reading a segment from front to back: whole records, and what is left of records behind a damaged place.

use std::io;

use super::disk::DiskFile;
use super::record::{ALIGN, HEADER, Header, crc_of_header};
use super::segment::Segment;

const WINDOW: usize = 1 << 20;

/// Reads one segment in large steps. Holds at most [`WINDOW`] bytes, whatever a record's length is.
pub(super) struct Scan<'a> {
    file: &'a dyn DiskFile,
    segment: Segment,
    window: Vec<u8>,
    /// The file offset of the window's first byte.
    start: u64,
}

impl<'a> Scan<'a> {
    pub(super) fn new(file: &'a dyn DiskFile, segment: Segment) -> Self {
        Self { file, segment, window: Vec::new(), start: 0 }
    }

    /// The record at `offset`, if a whole one of this segment's generation is there.
    pub(super) fn record(&mut self, offset: u64) -> io::Result<Option<Header>> {
        let Some(bytes) = self.bytes(offset, HEADER)? else { return Ok(None) };
        let Ok(bytes) = <[u8; HEADER]>::try_from(bytes) else { return Ok(None) };
        let Some((header, crc)) = Header::decode(&bytes) else { return Ok(None) };
        if header.generation != self.segment.generation || header.record_len() > self.segment.size - offset {
            return Ok(None);
        }
        let mut actual = crc_of_header(&bytes);
        let mut at = offset + HEADER as u64;
        let end = offset + header.record_len();
        while at < end {
            let part = (end - at).min(WINDOW as u64);
            let Some(bytes) = self.bytes(at, part as usize)? else { return Ok(None) };
            actual = crc32c::crc32c_append(actual, bytes);
            at += part;
        }
        Ok((actual == crc).then_some(header))
    }

    /// The first whole record at or behind `offset`, wherever it begins.
    pub(super) fn find(&mut self, mut offset: u64) -> io::Result<Option<(u64, Header)>> {
        while offset + HEADER as u64 <= self.segment.size {
            let Some(bytes) = self.bytes(offset, HEADER)? else { break };
            let plausible = bytes.first_chunk().is_some_and(|bytes| Header::decode(bytes).is_some());
            if plausible && let Some(header) = self.record(offset)? {
                return Ok(Some((offset, header)));
            }
            offset += ALIGN as u64;
        }
        Ok(None)
    }

    /// The payload of a whole record, which the caller knows to be short.
    pub(super) fn payload(&mut self, offset: u64, header: &Header) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; header.len as usize];
        self.file.read_exact_at(&mut bytes, offset + HEADER as u64)?;
        Ok(bytes)
    }

    fn bytes(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let inside = |start: u64, have: usize| {
            offset.checked_sub(start).is_some_and(|skip| skip + len as u64 <= have as u64)
        };
        if !inside(self.start, self.window.len()) {
            let have = self.segment.size.saturating_sub(offset).min(WINDOW as u64) as usize;
            if have < len {
                return Ok(None);
            }
            self.window.resize(have, 0);
            self.start = offset;
            if let Err(error) = self.file.read_exact_at(&mut self.window, offset) {
                self.window.clear();
                return Err(error);
            }
        }
        let from = (offset - self.start) as usize;
        Ok(self.window.get(from..from + len))
    }
}
