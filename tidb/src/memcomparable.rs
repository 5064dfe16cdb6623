//! Byte strings encoded so that comparing the encodings compares the strings (TiDB `util/codec`).
//!
//! Groups of eight bytes, each followed by `0xff - padding`; the last group is padded with zeros. A string whose
//! length is a multiple of eight (the empty one too) ends with an all-zero group. TiKV's region keys and the byte
//! strings of index keys use it.

use crate::DecodeError;

const GROUP: usize = 8;
const FULL: u8 = 0xff;

/// Appends the encoding of `data`.
pub fn encode(out: &mut Vec<u8>, data: &[u8]) {
    out.reserve((data.len() / GROUP + 1) * (GROUP + 1));
    let groups = data.chunks_exact(GROUP);
    let rest = groups.remainder();
    for group in groups {
        out.extend_from_slice(group);
        out.push(FULL);
    }
    out.extend_from_slice(rest);
    let pad = GROUP - rest.len();
    out.resize(out.len() + pad, 0);
    out.push(FULL - pad as u8);
}

/// Reads one encoded string from the front of `data`; returns it and how many bytes its encoding took.
pub fn decode(data: &[u8]) -> Result<(Vec<u8>, usize), DecodeError> {
    let mut out = Vec::new();
    let mut at = 0;
    loop {
        let group = data.get(at..at + GROUP + 1).ok_or(DecodeError::Truncated("a memcomparable string"))?;
        at += GROUP + 1;
        let pad = usize::from(FULL - group[GROUP]);
        if pad > GROUP {
            return Err(DecodeError::Padding);
        }
        let (bytes, padding) = group[..GROUP].split_at(GROUP - pad);
        if padding.iter().any(|&b| b != 0) {
            return Err(DecodeError::Padding);
        }
        out.extend_from_slice(bytes);
        if pad != 0 {
            return Ok((out, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn enc(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, data);
        out
    }

    #[test]
    fn vectors() {
        assert_eq!(enc(b""), [0, 0, 0, 0, 0, 0, 0, 0, 0xf7]);
        assert_eq!(enc(&[1, 2, 3]), [1, 2, 3, 0, 0, 0, 0, 0, 0xfa]);
        assert_eq!(
            enc(&[1, 2, 3, 4, 5, 6, 7, 8]),
            [1, 2, 3, 4, 5, 6, 7, 8, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0xf7]
        );
        assert_eq!(
            enc(&[1, 2, 3, 4, 5, 6, 7, 8, 9]),
            [1, 2, 3, 4, 5, 6, 7, 8, 0xff, 9, 0, 0, 0, 0, 0, 0, 0, 0xf8]
        );
    }

    #[test]
    fn refuses() {
        assert_eq!(decode(&[0; 8]), Err(DecodeError::Truncated("a memcomparable string")));
        assert_eq!(decode(&[0, 0, 0, 0, 0, 0, 0, 0, 0xf6]), Err(DecodeError::Padding));
        assert_eq!(decode(&[1, 0, 0, 0, 0, 0, 0, 1, 0xf8]), Err(DecodeError::Padding));
    }

    proptest! {
        #[test]
        fn round_trip_and_order(a: Vec<u8>, b: Vec<u8>, tail: Vec<u8>) {
            let (ea, eb) = (enc(&a), enc(&b));
            prop_assert_eq!(a.cmp(&b), ea.cmp(&eb));
            let len = ea.len();
            let mut with_tail = ea;
            with_tail.extend_from_slice(&tail);
            prop_assert_eq!(decode(&with_tail), Ok((a, len)));
        }
    }
}
