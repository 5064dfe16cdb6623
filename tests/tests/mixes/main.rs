//! Generated mixes of DDL and DML, encoded as TiDB encodes them, through the drainer's cores and the consumers' reading,
//! into a naive database that knows tables and columns by name only. It equals the upstream after every schema change.
//!
//! Every test run has the same mixes. `SLUICE_MIXES=20000` runs that many others, new ones each time; about one in fifty
//! thousand of those finds rows without a key that nobody can tell apart (docs/fidelity.md).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test prepares may fail loudly"
)]

mod changes;
mod downstream;
mod image;
mod jobs;
mod over_the_wire;
mod partition;
mod pipeline;
mod statement;
mod steps;
mod table;
mod upstream;
mod writes;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::downstream::Replicas;
use crate::pipeline::Pipeline;
use crate::steps::Step;
use crate::upstream::{Event, Upstream};

/// Mixes of an ordinary run.
const MIXES: u32 = 1000;

fn runner() -> TestRunner {
    let others = std::env::var("SLUICE_MIXES").ok().and_then(|text| text.parse().ok());
    let config = Config { cases: others.unwrap_or(MIXES), failure_persistence: None, ..Config::default() };
    match others {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    }
}

fn take(event: Event, pipeline: &mut Pipeline, replicas: &mut Replicas) -> Result<(), TestCaseError> {
    match event {
        Event::Transaction(transaction) => {
            let changes = pipeline.transaction(transaction);
            changes.into_iter().try_for_each(|change| replicas.apply(change))
        }
        Event::Ddl { job, commit_ts, statement } => {
            let following = pipeline.ddl(&job, commit_ts);
            replicas.ddl(&statement)?;
            following.into_iter().try_for_each(|change| replicas.apply(change))
        }
        Event::Restart => {
            pipeline.restart();
            replicas.flush()
        }
    }
}

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut upstream = Upstream::default();
    let mut pipeline = Pipeline::new();
    let mut replicas = Replicas::default();
    for step in steps {
        let events = upstream.step(step);
        let is_schema_change = events.iter().any(|event| matches!(event, Event::Ddl { .. }));
        for event in events {
            take(event, &mut pipeline, &mut replicas)?;
        }
        // While a column is being dropped, the upstream hides what the downstream still has.
        if upstream.is_settled() {
            prop_assert_eq!(replicas.single(), upstream.shown(), "after {:?}", step);
            if is_schema_change {
                prop_assert_eq!(replicas.net()?, upstream.shown(), "by net changes, after {:?}", step);
            }
        }
    }
    for event in upstream.settle() {
        take(event, &mut pipeline, &mut replicas)?;
    }
    prop_assert_eq!(replicas.single(), upstream.shown(), "in the end");
    prop_assert_eq!(replicas.net()?, upstream.shown(), "by net changes, in the end");
    Ok(())
}

#[test]
fn the_downstream_equals_the_upstream_after_every_schema_change() {
    let steps = proptest::collection::vec(Step::any(), 1..60);
    runner().run(&steps, |steps| run(&steps)).unwrap();
}

/// The generator does what it is for: every kind of step happens, and rows are written at every stage of a schema change.
#[test]
fn the_mixes_are_mixed() {
    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    for _ in 0..300 {
        let steps = proptest::collection::vec(Step::any(), 100).new_tree(&mut runner).unwrap().current();
        let mut upstream = Upstream::default();
        for step in &steps {
            upstream.step(step);
        }
        for (what, count) in upstream.counts() {
            *seen.entry(what).or_default() += count;
        }
    }
    for what in [
        "create",
        "add column",
        "multi-schema change",
        "multi-schema type change",
        "undone",
        "drop column",
        "add generated column",
        "add index",
        "add unique key",
        "add primary key",
        "duplicate in a new key",
        "drop index",
        "drop primary key",
        "multi-schema drop of an index",
        "set default",
        "add partition",
        "drop partition",
        "truncate partition",
        "reorganize partition",
        "exchange partition",
        "partition by",
        "remove partitioning",
        "type change",
        "rename table",
        "rename column",
        "truncate",
        "drop",
        "insert",
        "update",
        "delete",
        "change of a handle",
        "move",
        "write recorded twice",
        "row while its key is dropped",
        "row under the id before its partitions",
        "row of a table that is a partition",
        "row before its column",
        "row after its column's end",
        "value before its column",
        "value of a changed column before its job",
        "row of a table that is gone",
        "restart",
    ] {
        assert!(seen.get(what).copied().unwrap_or_default() >= 10, "{what}: {seen:?}");
    }
}
