//! What MariaDB has to have, from TiDB's `SHOW CREATE TABLE`.

use super::{
    ColumnShape, DefaultValue, ForeignKeyShape, KeyShape, Shape, condition, default_of, definition,
    plain_type, text_of,
};

/// A line's words: what brackets or quotes hold together stays together, comments are gone.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let (mut depth, mut quote) = (0_usize, None);
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if let Some(open) = quote {
            word.push(c);
            if c == open {
                // A doubled quote opens again at once.
                quote = None;
            }
            continue;
        }
        match c {
            '/' if rest.starts_with('*') => {
                rest = rest.split_once("*/").map_or("", |(_, after)| after);
                continue;
            }
            '\'' | '`' => quote = Some(c),
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            c if c.is_whitespace() && depth == 0 => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The name between back-ticks at the start, and what follows.
fn name(text: &str) -> Option<(String, &str)> {
    super::super::column_definition(text)
}

/// `'x'` without its quotes.
fn unquoted(text: &str) -> String {
    text.trim_matches('\'').replace("''", "'")
}

/// What MariaDB should have for a table or view of TiDB.
pub(crate) fn shape(kind: &str, create: &str) -> Shape {
    let mut shape = Shape::default();
    if kind == "VIEW" {
        let list = create.split_once(" VIEW ").and_then(|(_, rest)| name(rest)).map_or("", |(_, rest)| rest);
        let mut rest = list.strip_prefix('(').unwrap_or_default();
        while let Some((column, after)) = name(rest) {
            shape.columns.push(nameless(column));
            rest = after.trim_start_matches([',', ' ']);
        }
        shape.defined_as = definition(rest.split_once(" AS ").map_or(rest, |(_, query)| query));
        return shape;
    }
    if kind == "SEQUENCE" {
        shape.defined_as = sequence(create);
        return shape;
    }
    let options = create.lines().find(|line| line.starts_with(')')).map(words).unwrap_or_default();
    let option = |key: &str| options.iter().find_map(|word| word.strip_prefix(key)).unwrap_or_default();
    let (charset, collation) = (option("CHARSET="), option("COLLATE="));
    shape.comment = unquoted(option("COMMENT="));
    for line in create.lines() {
        let line = line.trim_start();
        let line = line.strip_suffix(',').unwrap_or(line);
        if let Some((column_name, rest)) = name(line) {
            shape.columns.push(column(column_name, &words(rest), charset, collation));
        } else if line.starts_with("PRIMARY KEY") || line.starts_with("UNIQUE KEY") || line.starts_with("KEY")
        {
            key(&mut shape, line);
        } else if let Some((constraint, rest)) = line.strip_prefix("CONSTRAINT ").and_then(name) {
            if rest.starts_with("FOREIGN KEY") {
                shape.foreign_keys.insert(constraint, foreign_key(rest));
            } else if !rest.contains("NOT ENFORCED") {
                // Rule::NoUnenforcedCheck.
                shape.checks.insert(constraint, condition(rest.trim_start_matches("CHECK")));
            }
        } else if let Some((partition, rest)) =
            line.trim_start_matches('(').strip_prefix("PARTITION ").and_then(name)
        {
            let bound = rest.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
            shape.partitions.push((partition, bound.map_or("", |(bound, _)| bound).to_owned()));
        } else if let Some(rule) = line.strip_prefix("PARTITION BY ") {
            let (rule, number) = rule.rsplit_once(" PARTITIONS ").unwrap_or((rule, "0"));
            shape.partitioned_by = definition(rule);
            let number = number.trim().parse::<u64>().unwrap_or_default();
            shape.partitions = (0..number).map(|number| (format!("p{number}"), String::new())).collect();
        }
    }
    shape
}

/// A sequence's options, from either server's `CREATE SEQUENCE`.
pub(super) fn sequence(create: &str) -> String {
    let options =
        create.split_once("SEQUENCE ").and_then(|(_, rest)| name(rest)).map_or("", |(_, rest)| rest);
    definition(options.split_once("ENGINE").map_or(options, |(options, _)| options))
}

/// The names between back-ticks in brackets, and what follows them.
fn names(text: &str) -> (Vec<String>, &str) {
    let mut names = Vec::new();
    let mut rest = text.trim_start().strip_prefix('(').unwrap_or_default();
    while let Some((column, after)) = name(rest) {
        names.push(column);
        rest = after.trim_start_matches([',', ' ']);
    }
    (names, rest.strip_prefix(')').unwrap_or(rest))
}

fn foreign_key(text: &str) -> ForeignKeyShape {
    let (columns, rest) = names(text.trim_start_matches("FOREIGN KEY"));
    let mut referenced = Vec::new();
    let mut rest = rest.trim_start().trim_start_matches("REFERENCES").trim_start();
    while let Some((part, after)) = name(rest) {
        referenced.push(part);
        rest = after.strip_prefix('.').unwrap_or(after);
    }
    let (referenced_columns, rest) = names(rest);
    let action = |event: &str| {
        let action = rest.split_once(event).map_or("RESTRICT", |(_, action)| action.trim_start());
        // Two of the actions are of two words.
        let words = if action.starts_with("SET") || action.starts_with("NO") { 2 } else { 1 };
        action.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
    };
    ForeignKeyShape {
        columns,
        referenced: referenced.join("."),
        referenced_columns,
        on_delete: action("ON DELETE"),
        on_update: action("ON UPDATE"),
    }
}

/// A view's column: what it is follows from the tables.
pub(super) fn nameless(name: String) -> ColumnShape {
    ColumnShape {
        name,
        kind: String::new(),
        text: None,
        nullable: true,
        default: DefaultValue::Absent,
        on_update: false,
        auto_increment: false,
        generated: None,
        comment: String::new(),
    }
}

fn column(name: String, words: &[String], charset: &str, collation: &str) -> ColumnShape {
    let at = |words_before: &[&str]| {
        let width = words_before.len();
        let place = words.windows(width).position(|window| window.iter().eq(words_before.iter()));
        place.and_then(|place| words.get(place + width)).map(String::as_str)
    };
    let has = |sought: &[&str]| words.windows(sought.len()).any(|window| window.iter().eq(sought.iter()));
    let mut kind = words.first().cloned().unwrap_or_default();
    for word in ["unsigned", "zerofill"] {
        if has(&[word]) {
            kind = format!("{kind} {word}");
        }
    }
    let base: String = kind.chars().take_while(char::is_ascii_alphabetic).collect();
    let is_text = base.ends_with("text") || matches!(base.as_str(), "char" | "varchar" | "enum" | "set");
    let collate = at(&["COLLATE"]);
    // A collation begins with its charset's name.
    let of_collation = collate.and_then(|collation| collation.split('_').next());
    let charset = at(&["CHARACTER", "SET"]).or(of_collation).unwrap_or(charset);
    let mut text = is_text.then(|| text_of(charset, collate.unwrap_or(collation)));
    if base == "json" {
        // Rule::JsonIsText.
        kind = "longtext".to_owned();
        text = Some(text_of("utf8mb4", "utf8mb4_bin"));
    }
    let generated = has(&["GENERATED"])
        .then(|| if has(&["STORED"]) { "STORED".to_owned() } else { "VIRTUAL".to_owned() });
    ColumnShape {
        name,
        kind: plain_type(&kind),
        text,
        // Rule::GeneratedNullable.
        nullable: generated.is_some() || !has(&["NOT", "NULL"]),
        default: match at(&["DEFAULT"]) {
            Some(default) => default_of(default),
            None => DefaultValue::Absent,
        },
        on_update: has(&["ON", "UPDATE"]),
        auto_increment: has(&["AUTO_INCREMENT"]),
        generated,
        comment: at(&["COMMENT"]).map(unquoted).unwrap_or_default(),
    }
}

fn key(shape: &mut Shape, line: &str) {
    let unique = !line.starts_with("KEY");
    let primary = line.starts_with("PRIMARY");
    let Some((_, rest)) = line.split_once("KEY ") else { return };
    let (key_name, rest) =
        if primary { ("PRIMARY".to_owned(), rest) } else { name(rest).unwrap_or_default() };
    let mut parts = Vec::new();
    let mut list = rest.trim_start().strip_prefix('(').unwrap_or_default();
    if list.starts_with('(') {
        // Rule::NoExpressionIndex.
        return;
    }
    while let Some((column, after)) = name(list) {
        let mut after = after;
        let mut length = None;
        if let Some((digits, rest)) = after.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            length = digits.parse().ok();
            after = rest;
        }
        parts.push((column, length));
        match after.strip_prefix(',') {
            // One part of several may be an expression.
            Some(more) if more.starts_with('(') => return,
            Some(more) => list = more,
            None => break,
        }
    }
    // Rule::IgnoredIndex.
    let ignored = line.contains("INVISIBLE");
    shape.keys.insert(key_name, KeyShape { unique, parts, ignored });
}
