//! The store on a disk that rots: whatever happened to it before, a wrong bit in the log is named and never served.

use proptest::prelude::*;
use tidb::ts::{StartTs, Tso};

use super::StoreError;
use super::model::{World, open, steps, txn};
use super::segment::Name;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    /// A rotten bit anywhere in the log: everything is there, or the start or the read refuses and names the file.
    #[test]
    fn rot_is_never_silent(
        steps in steps(),
        seed in any::<u64>(),
        place in any::<prop::sample::Index>(),
        bit in 0u8..8,
        closed in any::<bool>(),
    ) {
        let mut world = World::new(seed);
        for step in &steps {
            world.step(step);
        }
        world.restart();
        world.disk.limit(None);
        let marked = world.end();
        let mut end = marked;
        if closed {
            world.appender.take().unwrap().close().unwrap();
        } else {
            // The mark lags behind these; but what lies before another group cannot rot unseen.
            for kinds in [[(0, 100), (6, 5)], [(0, 700), (0, 30)], [(13, 0), (13, 0)]] {
                end = world.end();
                world.append(&kinds);
            }
            world.appender = None;
        }
        world.disk.kill();
        let segments: Vec<_> = world
            .disk
            .files()
            .into_iter()
            .filter(|(name, _)| matches!(Name::parse(name), Name::Segment(_)))
            .collect();
        let total: usize = segments.iter().map(|(_, len)| len).sum();
        prop_assume!(total > 0);
        let mut offset = match (closed, world.dice.roll(2)) {
            (true, _) => place.index(total),
            (false, 0) => place.index(end),
            (false, _) => marked + place.index(end - marked),
        };
        let mut rotten = "";
        for (name, len) in &segments {
            if offset < *len {
                world.disk.damage(name, |bytes| bytes[offset] ^= 1 << bit);
                rotten = name;
                break;
            }
            offset -= len;
        }
        // Without a checkpoint every record is read at the start; with one, those before it when they are asked for.
        if world.dice.roll(2) == 0 && world.disk.files().iter().any(|(name, _)| name == "checkpoint") {
            world.disk.lose("checkpoint");
        }
        let (_appender, reader, _) = match open(&world.disk) {
            Ok(opened) => opened,
            Err(error) => {
                let text = error.to_string();
                let named = text.contains(rotten) || matches!(error, StoreError::LostTail { .. } | StoreError::Hole { .. });
                prop_assert!(named, "{text}");
                return Ok(());
            }
        };
        let mut after = Tso::new(world.model.collected);
        let upto = Tso::new(world.model.watermark);
        let mut found = Vec::new();
        let mut failed = None;
        while after < upto && failed.is_none() {
            match reader.scan(after, upto, 500) {
                Ok(scan) => {
                    after = scan.reached;
                    found.extend(scan.transactions.into_iter().map(txn));
                }
                Err(error) => failed = Some(error.to_string()),
            }
        }
        let expected = world.model.emitted();
        match failed {
            Some(text) => prop_assert!(text.contains(rotten), "{text}"),
            None => prop_assert_eq!(&found, &expected),
        }
        prop_assert!(expected.starts_with(&found));
        for (start, open) in &world.model.open {
            match reader.prewrite(StartTs::new(*start)) {
                Ok(payload) => prop_assert_eq!(payload, Some(open.payload.clone())),
                Err(error) => prop_assert!(error.to_string().contains(rotten), "{}", error),
            }
        }
    }
}
