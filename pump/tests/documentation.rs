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

/// The texts with which a source refuses: what stands in quotes within the arguments of a `Status`, or in the variable given
/// to it. What is put in at run time is `…`.
fn refusals(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]").next().unwrap();
    let calls = source.match_indices("Status::").filter_map(|(at, found)| {
        let rest = &source[at + found.len()..];
        let (constructor, arguments) = rest.split_once('(')?;
        let is_one = constructor.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        is_one.then(|| (at, arguments.trim_start().trim_start_matches("format!(").trim_start()))
    });
    calls
        .filter_map(|(at, arguments)| match arguments.strip_prefix('"') {
            Some(literal) => Some(literal),
            None if arguments.starts_with("text)") => {
                let (_, given) = source[..at].rsplit_once("let text =")?;
                given.trim_start().trim_start_matches("format!(").trim_start().strip_prefix('"')
            }
            None => None,
        })
        .map(blanked)
        .collect()
}

/// A literal up to its closing quote.
fn blanked(literal: &str) -> String {
    let literal = literal.split('"').next().unwrap();
    let mut pieces = literal.split('{');
    let mut text = pieces.next().unwrap().to_owned();
    for piece in pieces {
        text.push('…');
        text.push_str(piece.split_once('}').unwrap().1);
    }
    text
}

#[test]
fn every_refusal_is_explained() {
    let sources = [
        include_str!("../src/service/admit.rs"),
        include_str!("../src/service/ahead.rs"),
        include_str!("../src/service/drain.rs"),
        include_str!("../src/service/framing.rs"),
        include_str!("../src/service/pull.rs"),
        include_str!("../src/service/routes.rs"),
        include_str!("../src/service/write.rs"),
    ];
    let mut texts: Vec<_> = sources.iter().flat_map(|source| refusals(source)).collect();
    // What the writer says is handed on.
    let writer = include_str!("../src/writer.rs").split("#[error(\"").skip(1).map(blanked);
    texts.extend(writer);
    assert!(texts.len() > 30, "{texts:?}");
    let (_, section) = GUIDE.split_once("### What refusals mean").unwrap();
    let section = section.split("\n#").next().unwrap();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").nth(1));
    let explained: Vec<_> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let unexplained: Vec<_> =
        texts.iter().filter(|text| !explained.iter().any(|begins| text.starts_with(begins))).collect();
    assert_eq!(unexplained, Vec::<&String>::new());
    // And nothing is explained that nobody says.
    let unsaid: Vec<_> =
        explained.iter().filter(|begins| !texts.iter().any(|text| text.starts_with(*begins))).collect();
    assert_eq!(unsaid, Vec::<&&str>::new());
}

#[test]
fn tests_that_answer_for_the_originals_weaknesses_exist() {
    let (_, section) = GUIDE.split_once("## The original's weaknesses").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<_> =
        section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #")).collect();
    assert_eq!(rows.len(), 20);
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for row in rows {
        let named = row.split('`').skip(1).step_by(2).filter(|word| word.contains("::"));
        for (file, test) in named.filter_map(|name| name.split_once("::")) {
            let source =
                std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(source.contains(&format!("fn {test}(")), "{file} has no test {test}");
        }
    }
}
