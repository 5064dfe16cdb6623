//! Checksums of the Kafka contract: CRC-32C (Castagnoli) of a record, and of a transaction's records in order.

/// CRC-32C over a record's key and value, each preceded by its length as a big-endian `u32`; an absent key or value
/// counts as the length `0xFFFF_FFFF` with no bytes. Goes into `RowMeta.checksum`.
pub fn record_checksum(key: Option<&[u8]>, value: Option<&[u8]>) -> u32 {
    [key, value].into_iter().fold(0, |crc, part| {
        let length = part.map_or(u32::MAX, |bytes| bytes.len() as u32);
        let crc = crc32c::crc32c_append(crc, &length.to_be_bytes());
        crc32c::crc32c_append(crc, part.unwrap_or_default())
    })
}

/// The digest of one transaction: CRC-32C over (table id `i64`, change number `u32`, checksum `u32`), all big-endian,
/// of its records in order of change and record number. It can be carried on from a stored value, so that a
/// transaction cut into parts by a restart has the same digest as an uncut one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxnDigest(u32);

impl TxnDigest {
    /// Carries on from [`Self::value`] of the records so far.
    pub fn resume(value: u32) -> Self {
        Self(value)
    }

    /// Adds the next record.
    pub fn push(&mut self, table_id: i64, change: u32, checksum: u32) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&table_id.to_be_bytes());
        bytes[8..12].copy_from_slice(&change.to_be_bytes());
        bytes[12..].copy_from_slice(&checksum.to_be_bytes());
        self.0 = crc32c::crc32c_append(self.0, &bytes);
    }

    /// The digest of the records so far.
    pub fn value(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bitwise CRC-32C, to check the library's against the definition.
    fn slow_crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0x82F6_3B78 } else { c >> 1 })
        })
    }

    #[test]
    fn golden() {
        // The check value of the CRC-32C catalogue entry, then vectors worked out bit by bit from the definition.
        assert_eq!(slow_crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(record_checksum(Some(b"k"), Some(b"v")), slow_crc32c(b"\0\0\0\x01k\0\0\0\x01v"));
        assert_eq!(record_checksum(None, Some(b"v")), slow_crc32c(b"\xff\xff\xff\xff\0\0\0\x01v"));
        assert_eq!(record_checksum(Some(b""), None), slow_crc32c(b"\0\0\0\0\xff\xff\xff\xff"));
        let mut digest = TxnDigest::default();
        digest.push(104, 0, 0xDEAD_BEEF);
        digest.push(-1, 1, 1);
        let bytes =
            b"\0\0\0\0\0\0\0\x68\0\0\0\0\xde\xad\xbe\xef\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\x01\0\0\0\x01";
        assert_eq!(digest.value(), slow_crc32c(bytes));
    }

    proptest! {
        #[test]
        fn absent_differs_from_empty(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_ne!(record_checksum(None, Some(&value)), record_checksum(Some(b""), Some(&value)));
        }

        #[test]
        fn resumes_anywhere(records in proptest::collection::vec(any::<(i64, u32, u32)>(), 0..20), cut in 0..20_usize) {
            let mut whole = TxnDigest::default();
            records.iter().for_each(|(t, i, c)| whole.push(*t, *i, *c));
            let cut = cut.min(records.len());
            let mut first = TxnDigest::default();
            records[..cut].iter().for_each(|(t, i, c)| first.push(*t, *i, *c));
            let mut second = TxnDigest::resume(first.value());
            records[cut..].iter().for_each(|(t, i, c)| second.push(*t, *i, *c));
            prop_assert_eq!(whole, second);
        }
    }
}
