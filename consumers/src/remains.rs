//! Whether the schema topic holds what the feed wrote into it. Pure.
//!
//! Definitions are read by key, whatever their offsets, so a topic that lost some looks like one that never had them. The
//! commit stream says how far the topic goes and how many keys it has ([`SchemaExtent`]); here that is held against what
//! was read. Compaction takes repetitions and may let the topic begin later; it never moves the end back and never takes the
//! last record of a key.

use std::collections::HashSet;

use schemas::sluice::v1::{CommitRecord, SchemaExtent};

/// What the commit stream says of the schema topic, and the keys read there.
#[derive(Debug, Default)]
pub struct Remains {
    /// True once the feed has a record.
    begun: bool,
    epoch: u64,
    wanted: Option<SchemaExtent>,
    keys: HashSet<Box<[u8]>>,
}

/// What is missing of the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nothing.
    Nothing,
    /// What was written is not visible yet, but there.
    Yet,
    /// The log ends before an offset that was written.
    End {
        /// The last offset that was written.
        last: i64,
    },
    /// Keys that were written.
    Keys {
        /// Distinct keys found.
        held: u64,
        /// Distinct keys written.
        wanted: u64,
        /// The last offset that was written.
        last: i64,
    },
    /// Everything: nobody counted, but a feed that has begun has written something.
    Everything,
}

impl Remains {
    /// Takes what a commit record says; those of an epoch that was over say nothing. True if it spoke of the schema topic.
    pub fn told(&mut self, record: &CommitRecord) -> bool {
        if record.epoch < self.epoch {
            return false;
        }
        (self.begun, self.epoch) = (true, record.epoch);
        let Some(extent) = record.summary.as_ref().and_then(|summary| summary.schema) else { return false };
        // Whoever reads what lies behind reads of earlier extents.
        if self.wanted.is_none_or(|wanted| wanted.end <= extent.end) {
            self.wanted = Some(extent);
        }
        true
    }

    /// A record of the schema topic was read.
    pub fn saw(&mut self, key: &[u8]) {
        if !self.keys.contains(key) {
            self.keys.insert(key.into());
        }
    }

    /// The topic is going to be read from its beginning.
    pub fn count_anew(&mut self) {
        self.keys.clear();
    }

    /// True once the feed has a record: from then on its topics are there.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// True if nothing is missing, when the topic was read up to `next`.
    pub fn is_whole(&self, next: i64) -> bool {
        match self.wanted {
            None => !self.begun || !self.keys.is_empty(),
            Some(wanted) => next >= wanted.end && self.keys.len() as u64 >= wanted.keys,
        }
    }

    /// What is missing when everything that is visible was read up to `next`. The log's own end is `end`, and `visible` is the
    /// end under read_committed.
    pub fn missing(&self, next: i64, visible: i64, end: i64) -> Missing {
        if self.is_whole(next) {
            return Missing::Nothing;
        }
        // A build that did not count wrote this log.
        let Some(wanted) = self.wanted else { return Missing::Everything };
        let last = wanted.end - 1;
        if end < wanted.end {
            Missing::End { last }
        } else if visible < wanted.end {
            Missing::Yet
        } else {
            Missing::Keys { held: self.keys.len() as u64, wanted: wanted.keys, last }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use schemas::sluice::v1::Summary;

    use super::*;

    fn record(epoch: u64, schema: Option<(i64, u64)>) -> CommitRecord {
        let schema = schema.map(|(end, keys)| SchemaExtent { end, keys });
        CommitRecord { epoch, summary: Some(Summary { schema, ..Summary::default() }), ..Default::default() }
    }

    #[test]
    fn what_was_written_is_wanted() {
        let mut remains = Remains::default();
        assert!(remains.is_whole(0), "a feed that has not begun wrote nothing");
        assert!(remains.told(&record(3, Some((12, 2)))));
        assert_eq!(remains.missing(0, 0, 0), Missing::End { last: 11 });
        assert_eq!(remains.missing(0, 11, 12), Missing::Yet);
        assert_eq!(remains.missing(12, 13, 13), Missing::Keys { held: 0, wanted: 2, last: 11 });
        remains.saw(b"a");
        remains.saw(b"a");
        assert_eq!(remains.missing(12, 13, 13), Missing::Keys { held: 1, wanted: 2, last: 11 });
        remains.saw(b"b");
        assert_eq!(remains.missing(12, 13, 13), Missing::Nothing);
        // Read earlier, but not there any more.
        assert_eq!(remains.missing(5, 5, 5), Missing::End { last: 11 });
        // Neither what lies behind nor a writer that was fenced off lowers or raises it.
        remains.told(&record(3, Some((7, 1))));
        assert!(!remains.told(&record(2, Some((99, 50)))));
        assert!(remains.is_whole(12) && !remains.is_whole(11));
        remains.count_anew();
        assert!(!remains.is_whole(12));
    }

    #[test]
    fn a_log_of_a_build_that_did_not_count() {
        let mut remains = Remains::default();
        assert!(!remains.told(&record(1, None)));
        assert_eq!(remains.missing(0, 4, 4), Missing::Everything);
        remains.saw(b"a");
        assert!(remains.is_whole(1));
    }

    /// What happens to the topic.
    #[derive(Clone, Debug)]
    enum Happens {
        Write(Vec<u8>),
        Compact,
        Trim(usize),
        Recreate,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            6 => proptest::collection::vec(0..40_u8, 1..4).prop_map(Happens::Write),
            2 => Just(Happens::Compact),
            1 => (0..4_usize).prop_map(Happens::Trim),
            1 => Just(Happens::Recreate),
        ]
    }

    proptest! {
        /// Against a topic that knows what it lost: whoever reads all of it finds that it is whole only if every key ever
        /// written is there, and always if nobody but compaction touched it.
        #[test]
        fn a_loss_is_found(story in proptest::collection::vec(happens(), 0..12)) {
            let mut log: Vec<(i64, u8)> = Vec::new();
            let (mut end, mut extent, mut touched) = (0_i64, (0_i64, 0_u64), false);
            let mut written = BTreeSet::new();
            for step in story {
                match step {
                    // The drainer stops at a topic that ends too early.
                    Happens::Write(_) if end < extent.0 => {}
                    Happens::Write(keys) => {
                        for key in keys {
                            log.push((end, key));
                            end += 1;
                            written.insert(key);
                        }
                        extent = (end, written.len() as u64);
                        // The marker.
                        end += 1;
                    }
                    Happens::Compact => {
                        let last = |key: u8| log.iter().rposition(|(_, other)| *other == key);
                        let kept: Vec<_> =
                            (0..log.len()).filter(|place| last(log[*place].1) == Some(*place)).collect();
                        log = kept.into_iter().map(|place| log[place]).collect();
                    }
                    Happens::Trim(records) => {
                        touched |= records > 0;
                        log.drain(..records.min(log.len()));
                    }
                    Happens::Recreate => {
                        touched = true;
                        (log, end) = (Vec::new(), 0);
                    }
                }
            }
            let mut remains = Remains::default();
            remains.told(&record(1, Some(extent)));
            log.iter().for_each(|(_, key)| remains.saw(&[*key]));
            let next = log.last().map_or(0, |(offset, _)| offset + 1);
            let there: BTreeSet<u8> = log.iter().map(|(_, key)| *key).collect();
            let missing = remains.missing(next, end, end);
            prop_assert_eq!(missing == Missing::Nothing, there == written, "{:?}", missing);
            prop_assert!(touched || missing == Missing::Nothing, "{:?}", missing);
            prop_assert!(missing != Missing::Yet);
        }
    }
}
