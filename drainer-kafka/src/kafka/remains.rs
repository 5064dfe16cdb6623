//! Whether the topics hold what a feed left in them. Pure.
//!
//! A feed goes on only if all of its topics do. Whatever was deleted, emptied, trimmed or made anew stops it, with the topic
//! and what is missing: to go on without would leave something out, or begin a second feed over the rows of the first.

use super::topics::Topics;
use crate::sequence::{Tail, TopicPartition, hex};

/// What was found of the schema topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaTopic {
    /// There is no such topic.
    Missing,
    /// What it holds.
    There {
        /// One past its last offset, markers included.
        end: i64,
        /// Distinct keys that can be read.
        keys: u64,
    },
}

/// How a feed goes on without what is gone.
const WAY_OUT: &str = "Restore it, or begin a new feed under another topic name and load the targets anew";

/// Checks what was found beside the end of the commit stream, `None` if that holds nothing. `rows` are the ends of the row
/// topic's partitions; those that a tail names are checked where they are read.
///
/// # Errors
/// Why the feed cannot begin or go on, with the topic and the way out.
pub fn check(
    topics: &Topics,
    tail: Option<&Tail>,
    schema: &SchemaTopic,
    rows: &[(TopicPartition, i64)],
) -> Result<(), String> {
    match tail {
        Some(tail) => check_schema(&topics.schema, tail, schema),
        None => check_beginning(topics, schema, rows),
    }
}

/// Compaction may remove repetitions and let the topic begin later; what it never does is to move the end back or to take
/// the last record of a key.
fn check_schema(topic: &str, tail: &Tail, found: &SchemaTopic) -> Result<(), String> {
    let (end, keys) = match found {
        SchemaTopic::Missing => {
            return Err(format!(
                "topic {topic} is gone, though the feed has begun: the definitions of its tables are lost. {WAY_OUT}"
            ));
        }
        SchemaTopic::There { end, keys } => (*end, *keys),
    };
    let Some(wanted) = tail.schema else {
        // A build that did not count wrote this log; of what it must have written only the least is known.
        if keys == 0 {
            return Err(format!(
                "topic {topic} is empty, though the feed has begun: it was emptied. {WAY_OUT}"
            ));
        }
        return Ok(());
    };
    if end < wanted.end {
        return Err(format!(
            "topic {topic} partition 0 ends at offset {end}, but the feed wrote up to offset {} in it: the topic was \
             deleted and created again, or truncated. Offsets {end} to {} are lost. {WAY_OUT}",
            wanted.end - 1,
            wanted.end - 1
        ));
    }
    if keys < wanted.keys {
        return Err(format!(
            "topic {topic} holds {keys} of the {} definitions and DDLs that the feed wrote up to offset {}: records were \
             deleted (compaction takes repetitions only). {WAY_OUT}",
            wanted.keys,
            wanted.end - 1
        ));
    }
    Ok(())
}

/// A feed begins only where no other one was.
fn check_beginning(
    topics: &Topics,
    schema: &SchemaTopic,
    rows: &[(TopicPartition, i64)],
) -> Result<(), String> {
    let stream = &topics.commits;
    if let SchemaTopic::There { keys: 1.., .. } = schema {
        return Err(format!(
            "the commit stream {stream} is empty, but the schema topic {} is not: {stream} was emptied or made anew. {WAY_OUT}",
            topics.schema
        ));
    }
    if let Some((at, end)) = rows.iter().max_by_key(|(_, end)| *end).filter(|(_, end)| *end > 0) {
        return Err(format!(
            "the commit stream {stream} and the schema topic {} hold nothing, but topic {} partition {} ends at offset \
             {end}: somebody wrote rows there, and a new feed over them would be a second beginning. Restore {stream} and \
             {}, or begin a new feed under another topic name; if nobody needs those rows, delete topic {}",
            topics.schema, at.topic, at.partition, topics.schema, at.topic
        ));
    }
    Ok(())
}

/// Checks that the log is still that of the feed which this process wrote before, if it did.
///
/// # Errors
/// The feed is gone, or another one stands in its place.
pub fn check_same_feed(topics: &Topics, known: Option<&[u8]>, tail: Option<&Tail>) -> Result<(), String> {
    let stream = &topics.commits;
    match (known, tail) {
        (Some(known), None) => Err(format!(
            "feed {}, which this process wrote, is gone from the commit stream {stream}: its topics were deleted while it \
             ran. {WAY_OUT}",
            hex(known)
        )),
        (Some(known), Some(tail)) if tail.feed_id != known => Err(format!(
            "the commit stream {stream} holds feed {}, but this process wrote feed {}: its topics were made anew while it \
             ran. {WAY_OUT}",
            hex(&tail.feed_id),
            hex(known)
        )),
        (Some(_), Some(_)) | (None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tidb::ts::Tso;

    use super::*;
    use crate::sequence::{RowLayout, SchemaExtent};

    fn tail(schema: Option<SchemaExtent>) -> Tail {
        Tail {
            feed_id: vec![7; 16],
            cluster_id: 1,
            contract_version: 1,
            epoch: 3,
            watermark: Tso::new(40),
            next_seq: 9,
            layout: RowLayout::default(),
            rules_hash: 0,
            ends: BTreeMap::new(),
            unfinished: None,
            pull_from: Tso::new(40),
            schema,
            declared_to: Tso::ZERO,
        }
    }

    fn ends(ends: &[i64]) -> Vec<(TopicPartition, i64)> {
        (0..)
            .zip(ends)
            .map(|(partition, end)| (TopicPartition { topic: "t".to_owned(), partition }, *end))
            .collect()
    }

    #[test]
    fn the_schema_topic_must_hold_what_the_feed_wrote() {
        let topics = Topics::new("t");
        let counted = tail(Some(SchemaExtent { end: 12, keys: 10 }));
        let there = |end, keys| SchemaTopic::There { end, keys };
        for (tail, found, finding) in [
            (&counted, there(12, 10), None),
            // Markers and aborted records lie behind; repetitions were compacted.
            (&counted, there(20, 10), None),
            (&counted, SchemaTopic::Missing, Some("is gone")),
            (&counted, there(0, 0), Some("ends at offset 0")),
            (&counted, there(11, 10), Some("Offsets 11 to 11 are lost")),
            (&counted, there(13, 0), Some("holds 0 of the 10")),
            (&counted, there(13, 9), Some("holds 9 of the 10")),
            // A feed over no table at all.
            (&tail(Some(SchemaExtent::default())), there(0, 0), None),
            (&tail(None), there(13, 1), None),
            (&tail(None), there(13, 0), Some("is empty")),
        ] {
            let checked = check(&topics, Some(tail), &found, &ends(&[5, 0]));
            match finding {
                None => assert_eq!(checked, Ok(()), "{found:?}"),
                Some(words) => {
                    let error = checked.unwrap_err();
                    assert!(error.contains("t.schema") && error.contains(words), "{found:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_feed_begins_only_where_none_was() {
        let topics = Topics::new("t");
        let empty = SchemaTopic::There { end: 3, keys: 0 };
        for schema in [SchemaTopic::Missing, empty] {
            assert_eq!(check(&topics, None, &schema, &[]), Ok(()));
            assert_eq!(check(&topics, None, &schema, &ends(&[0, 0])), Ok(()));
            let error = check(&topics, None, &schema, &ends(&[0, 5, 17, 2])).unwrap_err();
            assert!(
                error.contains("topic t partition 2 ends at offset 17") && error.contains("t.commits"),
                "{error}"
            );
        }
        let error = check(&topics, None, &SchemaTopic::There { end: 3, keys: 1 }, &[]).unwrap_err();
        assert!(error.contains("the commit stream t.commits is empty"), "{error}");
    }

    #[test]
    fn a_feed_that_vanishes_is_not_begun_again() {
        let topics = Topics::new("t");
        let tail = tail(None);
        assert_eq!(check_same_feed(&topics, None, None), Ok(()));
        assert_eq!(check_same_feed(&topics, None, Some(&tail)), Ok(()));
        assert_eq!(check_same_feed(&topics, Some(&[7; 16]), Some(&tail)), Ok(()));
        let gone = check_same_feed(&topics, Some(&[7; 16]), None).unwrap_err();
        assert!(gone.contains("is gone from the commit stream t.commits"), "{gone}");
        let other = check_same_feed(&topics, Some(&[8; 16]), Some(&tail)).unwrap_err();
        assert!(other.contains("holds feed 0707") && other.contains("wrote feed 0808"), "{other}");
    }
}
