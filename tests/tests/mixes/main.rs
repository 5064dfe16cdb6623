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

mod downstream;
mod over_the_wire;
mod pipeline;
mod table;
mod upstream;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::downstream::Downstream;
use crate::pipeline::Pipeline;
use crate::upstream::{Event, Step, Upstream};

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

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut upstream = Upstream::default();
    let mut pipeline = Pipeline::new();
    let mut downstream = Downstream::default();
    for step in steps {
        for event in upstream.step(step) {
            match event {
                Event::Transaction(transaction) => {
                    for change in pipeline.transaction(transaction) {
                        downstream.apply(&change)?;
                    }
                }
                Event::Ddl { job, commit_ts, statement } => {
                    let following = pipeline.ddl(&job, commit_ts);
                    downstream.ddl(&statement);
                    for change in following {
                        downstream.apply(&change)?;
                    }
                }
                Event::Restart => pipeline.restart(),
            }
        }
        // While a column is being dropped, the upstream hides what the downstream still has.
        if upstream.is_settled() {
            prop_assert_eq!(downstream.shown(), upstream.shown(), "after {:?}", step);
        }
    }
    for event in upstream.settle() {
        if let Event::Ddl { job, commit_ts, statement } = event {
            let following = pipeline.ddl(&job, commit_ts);
            downstream.ddl(&statement);
            for change in following {
                downstream.apply(&change)?;
            }
        }
    }
    prop_assert_eq!(downstream.shown(), upstream.shown(), "in the end");
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
    for _ in 0..48 {
        let steps = proptest::collection::vec(Step::any(), 60).new_tree(&mut runner).unwrap().current();
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
        "type change",
        "rename table",
        "rename column",
        "truncate",
        "drop",
        "insert",
        "update",
        "delete",
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
