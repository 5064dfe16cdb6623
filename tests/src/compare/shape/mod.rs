//! How tables, views and sequences look: MariaDB's columns, keys and partitions held against TiDB's `SHOW CREATE TABLE`.
//!
//! From what TiDB shows follows what MariaDB has to have. Where MariaDB forces a difference, a [`Rule`] says which; there is
//! no other tolerance, and each rule is listed with its reason in `docs/fidelity.md`.

mod found;
mod recorded;

use std::collections::BTreeMap;
use std::fmt::Debug;

pub(super) use found::shape as found;
pub(super) use recorded::shape as recorded;

/// A difference that MariaDB forces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The display width of integers and years is not compared: TiDB drops it in later versions.
    DisplayWidth,
    /// MariaDB's JSON is LONGTEXT with a CHECK.
    JsonIsText,
    /// `utf8` is called `utf8mb3`.
    Utf8mb3,
    /// TiDB's latin1 holds any character: such a column is utf8mb4 there.
    Latin1IsUtf8mb4,
    /// MySQL 8's collations have stand-ins.
    StandInCollation,
    /// A generated column takes no NOT NULL.
    GeneratedNullable,
    /// There are no indexes on expressions.
    NoExpressionIndex,
    /// An INVISIBLE index is IGNORED.
    IgnoredIndex,
    /// A CHECK that is not enforced is not there.
    NoUnenforcedCheck,
    /// InnoDB makes an index for a foreign key that has none.
    ForeignKeyIndex,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::DisplayWidth,
        Self::JsonIsText,
        Self::Utf8mb3,
        Self::Latin1IsUtf8mb4,
        Self::StandInCollation,
        Self::GeneratedNullable,
        Self::NoExpressionIndex,
        Self::IgnoredIndex,
        Self::NoUnenforcedCheck,
        Self::ForeignKeyIndex,
    ];
}

/// What a column has as its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DefaultValue {
    /// None at all.
    Absent,
    Null,
    /// A literal's text.
    Text(String),
    /// The clock, to so many digits.
    Now(u8),
    /// An expression, without what means nothing in it.
    Expression(String),
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ColumnShape {
    pub(super) name: String,
    pub(super) kind: String,
    /// Charset and collation of text.
    pub(super) text: Option<(String, String)>,
    pub(super) nullable: bool,
    pub(super) default: DefaultValue,
    pub(super) on_update: bool,
    pub(super) auto_increment: bool,
    /// `VIRTUAL` or `STORED`. That the expression is the same, the rows tell.
    pub(super) generated: Option<String>,
    pub(super) comment: String,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyShape {
    pub(super) unique: bool,
    /// Column and length of its prefix.
    pub(super) parts: Vec<(String, Option<u64>)>,
    pub(super) ignored: bool,
}

/// A foreign key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ForeignKeyShape {
    pub(super) columns: Vec<String>,
    /// `schema.table`.
    pub(super) referenced: String,
    pub(super) referenced_columns: Vec<String>,
    pub(super) on_delete: String,
    pub(super) on_update: String,
}

/// A table, view or sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) columns: Vec<ColumnShape>,
    pub(super) keys: BTreeMap<String, KeyShape>,
    pub(super) foreign_keys: BTreeMap<String, ForeignKeyShape>,
    /// Name and [`condition`].
    pub(super) checks: BTreeMap<String, String>,
    /// By what, such as `hash(id)`; empty if it has no partitions.
    pub(super) partitioned_by: String,
    /// Name and bound or values; those of HASH and KEY have none.
    pub(super) partitions: Vec<(String, String)>,
    /// A view's query or a sequence's options, as [`definition`].
    pub(super) defined_as: String,
    pub(super) comment: String,
}

/// What differs, one line each.
pub(super) fn differences(recorded: &Shape, found: &Shape) -> Vec<String> {
    let mut out = Vec::new();
    for column in &recorded.columns {
        match found.columns.iter().find(|other| other.name == column.name) {
            Some(other) if same_column(column, other) => {}
            other => out.push(format!("column {} is {other:?}, recorded {column:?}", column.name)),
        }
    }
    let mut keys = found.keys.clone();
    for (name, key) in &recorded.keys {
        match keys.remove(name) {
            Some(other) if other == *key => {}
            other => out.push(format!("key {name} is {other:?}, recorded {key:?}")),
        }
    }
    // Rule::ForeignKeyIndex.
    keys.retain(|name, key| key.unique || !recorded.foreign_keys.contains_key(name));
    out.extend(keys.iter().map(|(name, key)| format!("key {name} should not be there: {key:?}")));
    out.extend(
        [
            differs("foreign keys", &found.foreign_keys, &recorded.foreign_keys),
            differs("CHECK constraints", &found.checks, &recorded.checks),
            differs("the partitioning", &found.partitioned_by, &recorded.partitioned_by),
            differs("partitions", &found.partitions, &recorded.partitions),
            differs("the definition", &found.defined_as, &recorded.defined_as),
            differs("the comment", &found.comment, &recorded.comment),
        ]
        .into_iter()
        .flatten(),
    );
    out
}

fn differs<T: Debug + PartialEq>(what: &str, found: &T, recorded: &T) -> Option<String> {
    (found != recorded).then(|| format!("{what}: found {found:?}, recorded {recorded:?}"))
}

fn same_column(recorded: &ColumnShape, found: &ColumnShape) -> bool {
    let numbers = |a: &str, b: &str| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    let default = match (&recorded.default, &found.default) {
        // A number's default is quoted on one side and bare on the other.
        (DefaultValue::Text(a), DefaultValue::Text(b)) => a == b || recorded.text.is_none() && numbers(a, b),
        (a, b) => a == b,
    };
    default && ColumnShape { default: recorded.default.clone(), ..found.clone() } == *recorded
}

/// A type without what the rules leave out.
fn plain_type(kind: &str) -> String {
    // Rule::DisplayWidth.
    const WIDTHS: [&str; 6] = ["tinyint", "smallint", "mediumint", "int", "bigint", "year"];
    let lower = kind.to_lowercase();
    let base = lower.split('(').next().unwrap_or_default();
    if WIDTHS.contains(&base)
        && let Some((_, rest)) = lower.split_once(')')
    {
        return format!("{base}{rest}");
    }
    // Values of an enumeration keep their case.
    if matches!(base, "enum" | "set") { kind.to_owned() } else { lower }
}

/// Charset and collation as MariaDB has to have them.
fn text_of(charset: &str, collation: &str) -> (String, String) {
    let (charset, collation) = (charset.to_lowercase(), collation.to_lowercase());
    match (charset.as_str(), collation.as_str()) {
        // Rule::Latin1IsUtf8mb4.
        ("latin1", _) => ("utf8mb4".into(), "utf8mb4_bin".into()),
        // Rule::StandInCollation.
        (_, "utf8mb4_0900_ai_ci") => (charset, "utf8mb4_unicode_520_nopad_ci".into()),
        (_, "utf8mb4_0900_bin") => (charset, "utf8mb4_nopad_bin".into()),
        // Rule::Utf8mb3.
        ("utf8", _) => ("utf8mb3".into(), collation.replacen("utf8_", "utf8mb3_", 1)),
        _ => (charset, collation),
    }
}

/// An expression without spaces, back-ticks, outer brackets and the introducers of its strings.
fn expression(text: &str) -> String {
    let mut text: String = text.to_lowercase().chars().filter(|c| !c.is_whitespace() && *c != '`').collect();
    while let Some(inner) = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        text = inner.to_owned();
    }
    text.replace("_utf8mb4'", "'")
}

/// A condition without what the servers print differently: brackets, beside the rest of [`expression`].
fn condition(text: &str) -> String {
    expression(text).replace(['(', ')'], "")
}

/// A query or a list of options without spaces, back-ticks and the qualifiers of names, which only one server adds
/// everywhere.
fn definition(text: &str) -> String {
    let mut rest = text;
    let mut out = String::new();
    while let Some((before, name)) = rest.split_once('`') {
        out.push_str(before);
        let Some((name, after)) = name.split_once('`') else { break };
        if !after.starts_with('.') {
            out.push_str(name);
        }
        rest = after.strip_prefix('.').unwrap_or(after);
    }
    out.push_str(rest);
    out.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_lowercase()
}

/// A default's text: `'x'`, `b'1010'`, `CURRENT_TIMESTAMP(3)`, `NULL`, a number, or an expression.
fn default_of(text: &str) -> DefaultValue {
    let lower = text.to_lowercase();
    if lower == "null" {
        return DefaultValue::Null;
    }
    if let Some(rest) = lower.strip_prefix("current_timestamp") {
        let digits = rest.trim_start_matches('(').trim_end_matches(')');
        return DefaultValue::Now(digits.parse().unwrap_or(0));
    }
    if let Some(bits) = lower.strip_prefix("b'").and_then(|rest| rest.strip_suffix('\'')) {
        return match u64::from_str_radix(bits, 2) {
            Ok(bits) => DefaultValue::Text(bits.to_string()),
            Err(_) => DefaultValue::Expression(lower),
        };
    }
    match text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        Some(quoted) => DefaultValue::Text(quoted.replace("''", "'")),
        None if text.parse::<f64>().is_ok() => DefaultValue::Text(text.to_owned()),
        None => DefaultValue::Expression(expression(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(definition: &str) -> ColumnShape {
        let create = format!(
            "CREATE TABLE `t` (\n  {definition}\n) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin COMMENT='it''s'"
        );
        recorded("BASE TABLE", &create).columns.remove(0)
    }

    #[test]
    fn what_mariadb_has_to_have() {
        for (definition, kind, text) in [
            ("`a` int(11) unsigned zerofill DEFAULT NULL,", "int unsigned zerofill", None),
            ("`a` year(4) DEFAULT NULL", "year", None),
            ("`a` json DEFAULT NULL", "longtext", Some(("utf8mb4", "utf8mb4_bin"))),
            (
                "`a` enum('A','b,c','d''e') DEFAULT NULL",
                "enum('A','b,c','d''e')",
                Some(("utf8mb4", "utf8mb4_bin")),
            ),
            (
                "`a` varchar(5) CHARACTER SET latin1 COLLATE latin1_bin DEFAULT NULL",
                "varchar(5)",
                Some(("utf8mb4", "utf8mb4_bin")),
            ),
            (
                "`a` varchar(5) CHARACTER SET utf8 COLLATE utf8_bin DEFAULT NULL",
                "varchar(5)",
                Some(("utf8mb3", "utf8mb3_bin")),
            ),
            (
                "`a` char(5) COLLATE utf8mb4_0900_ai_ci NOT NULL",
                "char(5)",
                Some(("utf8mb4", "utf8mb4_unicode_520_nopad_ci")),
            ),
            ("`a` varbinary(7) DEFAULT NULL", "varbinary(7)", None),
        ] {
            let column = column(definition);
            let text =
                text.map(|(charset, collation): (&str, &str)| (charset.to_owned(), collation.to_owned()));
            assert_eq!((column.kind.as_str(), column.text), (kind, text), "{definition}");
        }
        let generated = column("`v` int(11) GENERATED ALWAYS AS (`a` * 2) STORED NOT NULL");
        assert!(generated.nullable && generated.generated.as_deref() == Some("STORED"));
    }

    #[test]
    fn defaults() {
        for (definition, default) in [
            ("`a` int(11) NOT NULL", DefaultValue::Absent),
            ("`a` int(11) DEFAULT '5'", DefaultValue::Text("5".into())),
            ("`a` varchar(9) DEFAULT 'NOT NULL, it''s'", DefaultValue::Text("NOT NULL, it's".into())),
            ("`a` bit(4) DEFAULT b'1010'", DefaultValue::Text("10".into())),
            (
                "`a` datetime(3) DEFAULT CURRENT_TIMESTAMP(3) ON UPDATE CURRENT_TIMESTAMP(3)",
                DefaultValue::Now(3),
            ),
            ("`a` varchar(64) DEFAULT (uuid())", DefaultValue::Expression("uuid()".into())),
        ] {
            assert_eq!(column(definition).default, default, "{definition}");
        }
        assert!(column("`a` timestamp NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP").on_update);
        assert_eq!(default_of("current_timestamp()"), DefaultValue::Now(0));
    }

    #[test]
    fn keys_and_partitions() {
        let create = "CREATE TABLE `t` (\n  `a` int(11) NOT NULL,\n  PRIMARY KEY (`a`) /*T![clustered_index] CLUSTERED */,\n  \
                      UNIQUE KEY `u``k` (`b`(3),`c d`),\n  KEY `e` ((`a` + `b`)),\n  KEY `i` (`a`) /*!80000 INVISIBLE */,\n  \
                      CONSTRAINT `f` FOREIGN KEY (`a`) REFERENCES `k`.`p` (`id`) ON DELETE CASCADE,\nCONSTRAINT `c` CHECK ((`a` > 0)),\n\
                      CONSTRAINT `n` CHECK ((`a` > 0)) /*!80016 NOT ENFORCED */\n) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 \
                      COLLATE=utf8mb4_bin COMMENT='x'\nPARTITION BY RANGE (`id`)\n(PARTITION `p1` VALUES LESS THAN (20),\n \
                      PARTITION `p2` VALUES LESS THAN (MAXVALUE))";
        let shape = recorded("BASE TABLE", create);
        let key = |unique, parts: &[(&str, Option<u64>)], ignored| KeyShape {
            unique,
            parts: parts.iter().map(|(name, length)| ((*name).to_owned(), *length)).collect(),
            ignored,
        };
        let expected = [
            ("PRIMARY".to_owned(), key(true, &[("a", None)], false)),
            ("i".to_owned(), key(false, &[("a", None)], true)),
            ("u`k".to_owned(), key(true, &[("b", Some(3)), ("c d", None)], false)),
        ];
        assert_eq!(shape.keys, expected.into());
        let one = |text: &str| vec![text.to_owned()];
        let foreign = ForeignKeyShape {
            columns: one("a"),
            referenced: "k.p".into(),
            referenced_columns: one("id"),
            on_delete: "CASCADE".into(),
            on_update: "RESTRICT".into(),
        };
        assert_eq!(shape.foreign_keys, [("f".to_owned(), foreign)].into());
        assert_eq!(shape.checks, [("c".to_owned(), "a>0".to_owned())].into());
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, bound)| ((*name).to_owned(), (*bound).to_owned())).collect::<Vec<_>>()
        };
        assert_eq!((shape.partitioned_by.as_str(), shape.comment.as_str()), ("range(id)", "x"));
        assert_eq!(shape.partitions, pairs(&[("p1", "20"), ("p2", "MAXVALUE")]));
        let by = |clause: &str| {
            recorded(
                "BASE TABLE",
                &format!(
                    "CREATE TABLE `t` (\n  `a` int(11)\n) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin\n{clause}"
                ),
            )
        };
        let hash = by("PARTITION BY HASH (`id`) PARTITIONS 2");
        assert_eq!(
            (hash.partitioned_by.as_str(), hash.partitions),
            ("hash(id)", pairs(&[("p0", ""), ("p1", "")]))
        );
        let list = by(
            "PARTITION BY LIST COLUMNS(`r`)\n(PARTITION `pa` VALUES IN ('a','B'),\n PARTITION `pb` VALUES IN ('c'))",
        );
        assert_eq!(
            (list.partitioned_by.as_str(), list.partitions),
            ("listcolumns(r)", pairs(&[("pa", "'a','B'"), ("pb", "'c'")]))
        );
    }

    /// The texts of both servers for one view and one sequence.
    #[test]
    fn views_and_sequences() {
        let view = "CREATE ALGORITHM=UNDEFINED DEFINER=`root`@`%` SQL SECURITY DEFINER VIEW `v2` (`id`, `v``w`) AS \
                    SELECT `d1`.`tr`.`id` AS `id`,`d1`.`tr`.`v` AS `v` FROM `d1`.`tr` WHERE `v`>1";
        let shape = recorded("VIEW", view);
        let names: Vec<&str> = shape.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["id", "v`w"]);
        let of = |condition: &str| {
            definition(&format!(
                "select `d1`.`tr`.`id` AS `id`,`d1`.`tr`.`v` AS `v` from `d1`.`tr` where `d1`.`tr`.`v` {condition}"
            ))
        };
        assert_eq!(shape.defined_as, of("> 1"));
        assert_ne!(shape.defined_as, of("> 2"));
        let sequence = "CREATE SEQUENCE `sq` start with 1 minvalue 1 maxvalue 9 increment by 3 cache 5 nocycle ENGINE=InnoDB";
        assert_eq!(
            recorded("SEQUENCE", sequence).defined_as,
            "startwith1minvalue1maxvalue9incrementby3cache5nocycle"
        );
    }

    #[test]
    fn what_differs_is_said() {
        let create = |column: &str| {
            recorded(
                "BASE TABLE",
                &format!("CREATE TABLE `t` (\n  `a` {column}\n) DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"),
            )
        };
        let shape = create("int(11) DEFAULT '5'");
        assert!(differences(&shape, &create("int DEFAULT '5.0'")).is_empty());
        for other in [
            "bigint(20) DEFAULT '5'",
            "int(11) NOT NULL DEFAULT '5'",
            "int(11) DEFAULT '6'",
            "int(11) DEFAULT NULL",
        ] {
            assert_eq!(differences(&shape, &create(other)).len(), 1, "{other}");
        }
        let mut more = shape.clone();
        more.keys
            .insert("k".into(), KeyShape { unique: false, parts: vec![("a".into(), None)], ignored: false });
        assert_eq!((differences(&shape, &more).len(), differences(&more, &shape).len()), (1, 1));
    }

    /// InnoDB's index for a foreign key is expected under the key's name only, and never a UNIQUE one.
    #[test]
    fn an_index_for_a_foreign_key() {
        let create = "CREATE TABLE `t` (\n  `a` int(11) DEFAULT NULL,\n  CONSTRAINT `f` FOREIGN KEY (`a`) REFERENCES `k`.`p` (`id`)\n) \
                      DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin";
        let shape = recorded("BASE TABLE", create);
        for (name, unique, count) in [("f", false, 0), ("g", false, 1), ("f", true, 1)] {
            let mut found = shape.clone();
            found
                .keys
                .insert(name.into(), KeyShape { unique, parts: vec![("a".into(), None)], ignored: false });
            assert_eq!(differences(&shape, &found).len(), count, "{name} {unique}");
        }
    }

    /// Every rule is explained where users look.
    #[test]
    fn every_rule_is_documented() {
        let page = include_str!("../../../../docs/fidelity.md");
        for rule in Rule::ALL {
            assert!(page.contains(&format!("`{rule:?}`")), "{rule:?} is not in docs/fidelity.md");
        }
    }
}
