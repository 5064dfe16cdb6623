//! Which tables are replicated: the original drainer's `[syncer]` rules.
//!
//! Names are compared without regard to case. A pattern that begins with `~` is a regular expression that may match
//! anywhere in the name; any other is the whole name, character for character (the original took a `.` in it for a
//! wildcard). If `replicate-do-db` or `replicate-do-table` is given, a table must match one of them; then
//! `ignore-schemas` and `ignore-table` take away. TiDB's own schemas are never replicated.

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// Schemas that TiDB fills itself. Their rows and DDL never leave, whatever the rules say.
pub const SYSTEM_SCHEMAS: [&str; 6] =
    ["information_schema", "performance_schema", "metrics_schema", "inspection_schema", "mysql", "sys"];

/// True for a schema that TiDB fills itself; `lower` is its name in lower case.
pub fn is_system_schema(lower: &str) -> bool {
    SYSTEM_SCHEMAS.contains(&lower)
}

/// A table, or a pattern for tables, as `replicate-do-table` and `ignore-table` write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TablePattern {
    /// Database name, or `~` and a regular expression.
    pub db_name: String,
    /// Table name, or `~` and a regular expression.
    pub tbl_name: String,
}

/// The rules as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterRules {
    /// Databases to replicate; with `do_tables` empty too, all.
    pub do_dbs: Vec<String>,
    /// Tables to replicate.
    pub do_tables: Vec<TablePattern>,
    /// Databases to leave out.
    pub ignore_schemas: Vec<String>,
    /// Tables to leave out.
    pub ignore_tables: Vec<TablePattern>,
}

/// A pattern that is not a valid regular expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not a valid regular expression: {reason}")]
pub struct BadPattern {
    /// The pattern as configured.
    pub pattern: String,
    /// What the regular expression engine says.
    pub reason: String,
}

#[derive(Clone, Debug)]
enum Name {
    Exact(String),
    Matching(Regex),
}

impl Name {
    fn new(pattern: &str) -> Result<Self, BadPattern> {
        match pattern.strip_prefix('~') {
            None => Ok(Self::Exact(pattern.to_lowercase())),
            Some(expression) => RegexBuilder::new(expression)
                .case_insensitive(true)
                .build()
                .map(Self::Matching)
                .map_err(|e| BadPattern { pattern: pattern.to_owned(), reason: e.to_string() }),
        }
    }

    fn matches(&self, lower: &str) -> bool {
        match self {
            Self::Exact(name) => name == lower,
            Self::Matching(expression) => expression.is_match(lower),
        }
    }
}

/// The rules, ready to ask.
#[derive(Clone, Debug)]
pub struct Filter {
    do_dbs: Vec<Name>,
    do_tables: Vec<(Name, Name)>,
    ignore_schemas: Vec<Name>,
    ignore_tables: Vec<(Name, Name)>,
    rules: FilterRules,
}

impl Filter {
    /// Compiles the rules.
    pub fn new(rules: FilterRules) -> Result<Self, BadPattern> {
        let names =
            |patterns: &[String]| patterns.iter().map(|p| Name::new(p)).collect::<Result<Vec<_>, _>>();
        let tables = |patterns: &[TablePattern]| {
            patterns
                .iter()
                .map(|p| Ok((Name::new(&p.db_name)?, Name::new(&p.tbl_name)?)))
                .collect::<Result<Vec<_>, BadPattern>>()
        };
        Ok(Self {
            do_dbs: names(&rules.do_dbs)?,
            do_tables: tables(&rules.do_tables)?,
            ignore_schemas: names(&rules.ignore_schemas)?,
            ignore_tables: tables(&rules.ignore_tables)?,
            rules,
        })
    }

    /// True if rows and DDL of this table go out.
    pub fn table(&self, database: &str, table: &str) -> bool {
        let (database, table) = (database.to_lowercase(), table.to_lowercase());
        let one_of =
            |tables: &[(Name, Name)]| tables.iter().any(|(d, t)| d.matches(&database) && t.matches(&table));
        self.not_ignored(&database)
            && !one_of(&self.ignore_tables)
            && (self.takes_all()
                || self.do_dbs.iter().any(|d| d.matches(&database))
                || one_of(&self.do_tables))
    }

    /// True if DDL of the database itself (CREATE, ALTER, DROP DATABASE) goes out: its tables may do so.
    pub fn database(&self, database: &str) -> bool {
        let database = database.to_lowercase();
        self.not_ignored(&database)
            && (self.takes_all()
                || self.do_dbs.iter().any(|d| d.matches(&database))
                || self.do_tables.iter().any(|(d, _)| d.matches(&database)))
    }

    /// True if DDL that belongs to no database (placement policies, resource groups) goes out.
    pub fn global(&self) -> bool {
        self.takes_all()
    }

    /// The rules in one canonical text, for the log's rule hash.
    pub fn canonical(&self) -> String {
        let pairs = |tables: &[TablePattern]| {
            tables.iter().map(|t| format!("{:?}.{:?}", t.db_name, t.tbl_name)).collect::<Vec<_>>().join(",")
        };
        format!(
            "do-db={:?};do-table=[{}];ignore-schemas={:?};ignore-table=[{}]",
            self.rules.do_dbs,
            pairs(&self.rules.do_tables),
            self.rules.ignore_schemas,
            pairs(&self.rules.ignore_tables),
        )
    }

    fn takes_all(&self) -> bool {
        self.do_dbs.is_empty() && self.do_tables.is_empty()
    }

    fn not_ignored(&self, lower: &str) -> bool {
        !SYSTEM_SCHEMAS.contains(&lower) && !self.ignore_schemas.iter().any(|d| d.matches(lower))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(db_name: &str, tbl_name: &str) -> TablePattern {
        TablePattern { db_name: db_name.into(), tbl_name: tbl_name.into() }
    }

    #[test]
    fn everything_but_the_system_schemas_by_default() {
        let filter = Filter::new(FilterRules::default()).unwrap();
        assert!(filter.table("shop", "orders") && filter.database("shop") && filter.global());
        for schema in ["mysql", "MYSQL", "Information_Schema", "METRICS_SCHEMA", "sys"] {
            assert!(!filter.table(schema, "user") && !filter.database(schema), "{schema}");
        }
    }

    #[test]
    fn do_and_ignore() {
        let filter = Filter::new(FilterRules {
            do_dbs: vec!["~^b.*".into(), "s1".into()],
            do_tables: vec![pattern("test", "Log"), pattern("test", "~^a")],
            ignore_schemas: vec!["bad".into()],
            ignore_tables: vec![pattern("~^b", "secret")],
        })
        .unwrap();
        let cases = [
            ("s1", "x", true),
            ("S1", "x", true),
            ("s11", "x", false),
            ("bank", "account", true),
            ("bank", "Secret", false),
            ("bad", "x", false),
            ("test", "log", true),
            ("test", "Alpha", true),
            ("test", "beta", false),
            ("other", "log", false),
        ];
        for (database, table, expected) in cases {
            assert_eq!(filter.table(database, table), expected, "{database}.{table}");
        }
        assert!(
            filter.database("test")
                && !filter.database("other")
                && !filter.database("bad")
                && !filter.global()
        );
    }

    #[test]
    fn plain_names_are_not_patterns() {
        let rules = FilterRules { do_dbs: vec!["a.c".into()], ..FilterRules::default() };
        let filter = Filter::new(rules).unwrap();
        assert!(filter.table("a.c", "t") && !filter.table("abc", "t"));
    }

    #[test]
    fn names_the_bad_pattern() {
        let rules = FilterRules { ignore_schemas: vec!["~(".into()], ..FilterRules::default() };
        assert_eq!(Filter::new(rules).unwrap_err().pattern, "~(");
    }
}
