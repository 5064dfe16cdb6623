//! Bytes that TiDB does not send: recordings with bytes changed, cut or repeated, and noise, through every decoder that
//! `fuzz/` has a target for. Nothing panics, nothing grows past a multiple of what was put in, and whatever is accepted
//! is written and read back the same.

use proptest::{prelude::*, sample::Index, test_runner::TestRunner};
use tidb::{datum::Datum, row};

use self::entry::ENTRIES;

#[path = "../../../fuzz/src/entry.rs"]
#[allow(unreachable_pub, reason = "public in the fuzzer's library")]
mod entry;
#[path = "../../../fuzz/src/seeds.rs"]
#[allow(unreachable_pub, reason = "public in the fuzzer's library")]
mod seeds;

type Edit = (u8, Index, u8);

/// A few changes: a byte replaced, inserted or removed, a bit flipped, the end cut off, a stretch repeated.
fn mutate(seed: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for (kind, at, byte) in edits {
        let at = at.index(bytes.len() + 1);
        match kind % 6 {
            0 if at < bytes.len() => bytes[at] = *byte,
            1 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
            2 => bytes.insert(at, *byte),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            4 => bytes.truncate(at),
            _ => {
                let again = bytes[at..(at + usize::from(*byte)).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

fn check(cases: u32, strategy: impl Strategy<Value = Vec<u8>>, entry: fn(&[u8])) {
    let mut runner =
        TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) });
    runner
        .run(&strategy, |bytes| {
            entry(&bytes);
            Ok(())
        })
        .unwrap();
}

#[test]
fn mutated_seeds() {
    let seeds = seeds::seeds();
    for (name, entry) in ENTRIES {
        let inputs = seeds[name].clone();
        let edits = prop::collection::vec(any::<Edit>(), 1..4);
        let strategy = (prop::sample::select(inputs), edits).prop_map(|(seed, edits)| mutate(&seed, &edits));
        check(2000, strategy, entry);
    }
}

#[test]
fn noise() {
    for (_, entry) in ENTRIES {
        check(1000, any::<Vec<u8>>(), entry);
    }
}

#[test]
fn seeds_and_their_beginnings() {
    let seeds = seeds::seeds();
    for (name, entry) in ENTRIES {
        let inputs = &seeds[name];
        println!("{name}: {} seeds", inputs.len());
        for input in inputs {
            entry(input);
        }
        for input in inputs.iter().filter(|input| input.len() < 300).take(60) {
            (0..input.len()).for_each(|end| entry(&input[..end]));
        }
    }
    // Decoders that refuse everything must not pass.
    assert!(seeds["row_v1"].len() > 150 && seeds["row_v2"].len() > 50 && seeds["job"].len() > 15);
    assert!(seeds["row_meta"].len() > 20);
}

#[test]
fn more_columns_than_a_table_has() {
    let table = seeds::tables().into_iter().find(|t| t.pk_is_handle).unwrap();
    // A handle, then 300,000 NULLs of unknown columns.
    let mut blob = vec![8, 2];
    for id in 1000..301_000i64 {
        Datum::Int(id).encode_value(&mut blob);
        blob.push(0);
    }
    let error = row::decode_insert(&table, &blob.into()).unwrap_err();
    assert_eq!(error.fault, row::RowFault::TooManyColumns);
}
