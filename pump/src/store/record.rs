//! One record: a header of 48 bytes and a payload, checked together.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | CRC-32C of everything after it, payload included |
//! | 4 | 4 | length of the payload |
//! | 8 | 8 | sequence number, contiguous over the whole log |
//! | 16 | 8 | generation of the segment when it was written |
//! | 24 | 4 | how many records of the same batch precede it |
//! | 28 | 1 | kind |
//! | 29 | 1 | version, 1 |
//! | 30 | 2 | magic |
//! | 32 | 8 | start_ts; of a watermark record the watermark |
//! | 40 | 8 | floor, commit_ts or end of a gap, by kind; else 0 |
//!
//! Numbers are little-endian. A record begins at a multiple of [`ALIGN`]; the bytes between are zero or stale.

use bytes::BufMut;

/// Bytes of a header.
pub(super) const HEADER: usize = 48;
/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 8;

const VERSION: u8 = 1;
const MAGIC: u16 = 0x5ea1;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A prewrite binlog, open from here on; the stamp is its floor.
    Prewrite = 1,
    /// An open prewrite has another floor (the stamp).
    Floor = 2,
    /// The same, and TiDB sent a rollback binlog for it.
    RollbackSeen = 3,
    /// A prewrite has committed at the stamp; the payload is the commit binlog.
    Commit = 4,
    /// A prewrite is never emitted; the stamp is its floor, the payload says why.
    Dropped = 5,
    /// Every commit at or below precedes this record.
    Watermark = 7,
    /// A transaction that cannot be delivered: it committed at or below the stamp, above the number (8 bytes) with which
    /// the payload begins; the cause follows. (6 was a gap with one place, never released.)
    Gap = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Prewrite,
            2 => Self::Floor,
            3 => Self::RollbackSeen,
            4 => Self::Commit,
            5 => Self::Dropped,
            7 => Self::Watermark,
            8 => Self::Gap,
            _ => return None,
        })
    }

    /// The payload is a short fact that replaying the log needs.
    pub(super) fn has_fact(self) -> bool {
        matches!(self, Self::Dropped | Self::Gap)
    }
}

/// A record's header without its CRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Length of the payload.
    pub len: u32,
    /// Contiguous over the whole log.
    pub sequence: u64,
    /// The segment's when this was written.
    pub generation: u64,
    /// How many records of the same batch precede it.
    pub in_batch: u32,
    /// What the record says.
    pub kind: Kind,
    /// start_ts, or the watermark.
    pub start_ts: u64,
    /// Floor, commit_ts or end of a gap.
    pub stamp: u64,
}

impl Header {
    /// Bytes of header and payload.
    pub(super) fn record_len(&self) -> u64 {
        HEADER as u64 + u64::from(self.len)
    }

    /// Bytes until the next record may begin.
    pub(super) fn stride(&self) -> u64 {
        padded(self.len as usize)
    }

    /// The first record of the batch this one was written with: everything before that was synced by then.
    pub(super) fn batch_first(&self) -> u64 {
        self.sequence.saturating_sub(u64::from(self.in_batch))
    }

    /// Appends the header to `out`, its CRC over `payload` included.
    pub(super) fn encode(&self, payload: &[u8], out: &mut Vec<u8>) {
        let at = out.len();
        out.put_u32_le(0);
        out.put_u32_le(self.len);
        out.put_u64_le(self.sequence);
        out.put_u64_le(self.generation);
        out.put_u32_le(self.in_batch);
        out.put_u8(self.kind as u8);
        out.put_u8(VERSION);
        out.put_u16_le(MAGIC);
        out.put_u64_le(self.start_ts);
        out.put_u64_le(self.stamp);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out[at + 4..]), payload);
        out[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header and the CRC it claims; `None` if these bytes cannot begin a record.
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Option<(Self, u32)> {
        if u16::from_le_bytes([bytes[30], bytes[31]]) != MAGIC || bytes[29] != VERSION {
            return None;
        }
        let header = Self {
            len: u32_at(bytes, 4),
            sequence: u64_at(bytes, 8),
            generation: u64_at(bytes, 16),
            in_batch: u32_at(bytes, 24),
            kind: Kind::from_byte(bytes[28])?,
            start_ts: u64_at(bytes, 32),
            stamp: u64_at(bytes, 40),
        };
        Some((header, u32_at(bytes, 0)))
    }
}

/// The CRC a record with these header bytes has before its payload is added.
pub(super) fn crc_of_header(bytes: &[u8; HEADER]) -> u32 {
    crc32c::crc32c(&bytes[4..])
}

/// Bytes that a record with a payload of `len` takes up, the gap to the next one included.
pub(super) fn padded(len: usize) -> u64 {
    (HEADER as u64 + len as u64).next_multiple_of(ALIGN as u64)
}

/// A little-endian number; zero past the end, which no caller reads.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// A little-endian number; zero past the end, which no caller reads.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 7] = [
        Kind::Prewrite,
        Kind::Floor,
        Kind::RollbackSeen,
        Kind::Commit,
        Kind::Dropped,
        Kind::Watermark,
        Kind::Gap,
    ];

    fn any_header() -> impl Strategy<Value = Header> {
        (any::<u64>(), any::<u64>(), any::<u32>(), 0..KINDS.len(), any::<u64>(), any::<u64>()).prop_map(
            |(sequence, generation, in_batch, kind, start_ts, stamp)| Header {
                len: 0,
                sequence,
                generation,
                in_batch,
                kind: KINDS[kind],
                start_ts,
                stamp,
            },
        )
    }

    proptest! {
        #[test]
        fn round_trip(mut header in any_header(), payload in prop::collection::vec(any::<u8>(), 0..200)) {
            header.len = payload.len() as u32;
            let mut bytes = Vec::new();
            header.encode(&payload, &mut bytes);
            let bytes: [u8; HEADER] = bytes.try_into().unwrap();
            let (read, crc) = Header::decode(&bytes).unwrap();
            prop_assert_eq!(read, header);
            prop_assert_eq!(crc, crc32c::crc32c_append(crc_of_header(&bytes), &payload));
        }

        #[test]
        fn one_flipped_bit_is_seen(mut header in any_header(), payload in prop::collection::vec(any::<u8>(), 0..64), bit in any::<prop::sample::Index>()) {
            header.len = payload.len() as u32;
            let mut bytes = Vec::new();
            header.encode(&payload, &mut bytes);
            bytes.extend_from_slice(&payload);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let head: [u8; HEADER] = bytes[..HEADER].try_into().unwrap();
            let intact = Header::decode(&head)
                .is_some_and(|(_, crc)| crc == crc32c::crc32c_append(crc_of_header(&head), &bytes[HEADER..]));
            prop_assert!(!intact);
        }
    }

    /// The layout is a promise to the next version: these bytes were computed by hand from the table above (the CRC by an
    /// independent implementation).
    #[test]
    fn golden() {
        let header = Header {
            len: 3,
            sequence: 2,
            generation: 7,
            in_batch: 1,
            kind: Kind::Commit,
            start_ts: 5,
            stamp: 9,
        };
        let mut bytes = Vec::new();
        header.encode(b"abc", &mut bytes);
        assert_eq!(bytes[4..8], [3, 0, 0, 0]);
        assert_eq!(bytes[8..16], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..32], [1, 0, 0, 0, 4, 1, 0xa1, 0x5e]);
        assert_eq!(bytes[32..48], [5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[0..4], 0x1dd2_ccda_u32.to_le_bytes());
    }
}
