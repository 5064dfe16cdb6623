//! Which partition a table's rows go to: Kafka's murmur2 of `<db>` 0x00 `<table>`, modulo the partition count.

/// The partition of a table's rows under the rule "table". Names as they stand in the shaping definition
/// (original case). `partitions` must be positive; 0 is taken as 1.
pub fn by_table(database: &str, table: &str, partitions: u32) -> u32 {
    let mut name = Vec::with_capacity(database.len() + 1 + table.len());
    name.extend_from_slice(database.as_bytes());
    name.push(0);
    name.extend_from_slice(table.as_bytes());
    // Kafka's default partitioner clears the sign bit the same way.
    (murmur2(&name) & 0x7FFF_FFFF) % partitions.max(1)
}

/// MurmurHash2, 32 bits, with the seed that Kafka's Java client uses, so that any Kafka library can recompute it.
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_B28C;
    const M: u32 = 0x5BD1_E995;
    let mix = |word: u32| {
        let word = word.wrapping_mul(M);
        (word ^ (word >> 24)).wrapping_mul(M)
    };
    let mut words = data.chunks_exact(4);
    let mut hash = words.by_ref().fold(SEED ^ data.len() as u32, |hash, word| {
        hash.wrapping_mul(M) ^ mix(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
    });
    let rest = words.remainder();
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail, byte| (tail << 8) | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of Apache Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn kafka_vectors() {
        let vectors: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (data, expected) in vectors {
            assert_eq!(murmur2(data) as i32, expected, "{}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn stays_in_range_and_separates_names() {
        assert_eq!(by_table("shop", "orders", 1), 0);
        assert!((1..64).all(|n| by_table("shop", "orders", n) < n));
        assert_ne!(murmur2(b"a\0bc"), murmur2(b"ab\0c"));
    }
}
