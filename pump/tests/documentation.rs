//! What an operator reads names everything that the pump shows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;

const GUIDE: &str = include_str!("../../docs/pump.md");

/// All words of a source that begin so and stand in quotes.
fn quoted<'a>(source: &'a str, beginnings: &[&str]) -> BTreeSet<&'a str> {
    let words =
        source.split('"').filter(|word| beginnings.iter().any(|beginning| word.starts_with(beginning)));
    words
        .filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit()))
        .collect()
}

#[test]
fn every_metric_is_explained() {
    let source = include_str!("../src/metrics.rs");
    let metrics = quoted(source, &["pump_", "binlog_pump_"]);
    assert!(metrics.len() > 20, "{metrics:?}");
    let unexplained: Vec<_> = metrics.iter().filter(|name| !GUIDE.contains(&format!("`{name}`"))).collect();
    assert_eq!(unexplained, Vec::<&&str>::new());
    // And nothing is explained that is not there.
    let explained: BTreeSet<_> = GUIDE
        .split('`')
        .filter(|word| word.starts_with("pump_") || word.starts_with("binlog_pump_"))
        .map(|word| word.split('{').next().unwrap_or_default())
        .collect();
    assert_eq!(explained.difference(&metrics).collect::<Vec<_>>(), Vec::<&&str>::new());
}

#[test]
fn every_reason_of_a_failed_question_is_explained() {
    let source = include_str!("../src/resolver/tikv.rs");
    let names = source.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next());
    let names: Vec<_> = names.collect();
    assert_eq!(names.len(), 7, "{names:?}");
    let row = GUIDE.lines().find(|line| line.starts_with("| `pump_resolver_failures_total`")).unwrap();
    for name in names {
        assert!(row.contains(name), "{name}");
    }
}
