//! Variable-length integers: LEB128, and zigzag over it for signed ones (TiDB `util/codec`).

use crate::DecodeError;

/// Most bytes a 64-bit integer takes.
pub const MAX_LEN: usize = 10;

/// Appends an unsigned integer, seven bits a byte, lowest first.
pub fn put_uvarint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Appends a signed integer in zigzag form.
pub fn put_varint(out: &mut Vec<u8>, v: i64) {
    put_uvarint(out, ((v << 1) ^ (v >> 63)) as u64);
}

/// Reads an unsigned integer from the front of `data`; returns it and how many bytes it took.
pub fn uvarint(data: &[u8]) -> Result<(u64, usize), DecodeError> {
    let mut value = 0u64;
    for (i, &byte) in data.iter().enumerate().take(MAX_LEN) {
        if i == MAX_LEN - 1 && byte > 1 {
            return Err(DecodeError::VarintOverflow);
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Ok((value, i + 1));
        }
    }
    Err(if data.len() >= MAX_LEN {
        DecodeError::VarintOverflow
    } else {
        DecodeError::Truncated("an integer")
    })
}

/// Reads a signed (zigzag) integer from the front of `data`; returns it and how many bytes it took.
pub fn varint(data: &[u8]) -> Result<(i64, usize), DecodeError> {
    let (v, len) = uvarint(data)?;
    Ok(((v >> 1) as i64 ^ -((v & 1) as i64), len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signed(v: i64) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, v);
        out
    }

    #[test]
    fn vectors() {
        assert_eq!(signed(0), [0x00]);
        assert_eq!(signed(1), [0x02]);
        assert_eq!(signed(-1), [0x01]);
        assert_eq!(signed(64), [0x80, 0x01]);
        assert_eq!(signed(300), [0xd8, 0x04]);
        assert_eq!(signed(i64::MIN), [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        let mut out = Vec::new();
        put_uvarint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
    }

    #[test]
    fn refuses() {
        assert_eq!(uvarint(&[]), Err(DecodeError::Truncated("an integer")));
        assert_eq!(uvarint(&[0x80; 9]), Err(DecodeError::Truncated("an integer")));
        assert_eq!(uvarint(&[0xff; 11]), Err(DecodeError::VarintOverflow));
        // Bit 64 set.
        assert_eq!(
            uvarint(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02]),
            Err(DecodeError::VarintOverflow)
        );
    }

    proptest! {
        #[test]
        fn round_trip(v: i64, u: u64, tail: Vec<u8>) {
            let mut out = signed(v);
            let len = out.len();
            out.extend_from_slice(&tail);
            prop_assert_eq!(varint(&out), Ok((v, len)));
            let mut out = Vec::new();
            put_uvarint(&mut out, u);
            let len = out.len();
            out.extend_from_slice(&tail);
            prop_assert_eq!(uvarint(&out), Ok((u, len)));
        }
    }
}
