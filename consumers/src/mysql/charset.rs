//! Charsets and collations that the target may not have.
//!
//! TiDB's own default, `utf8mb4_bin`, and all others up to 7.3 are known everywhere. What MySQL 8 brought is not in
//! MariaDB; each has a stand-in that orders and compares as close as possible. TiDB's `latin1` takes any character and
//! keeps it, which that of MySQL and MariaDB does not: there such columns are `utf8mb4`, compared byte by byte as TiDB
//! does.

use super::session::Target;

/// Charset and collation to use on the target for those of the upstream. An empty collation is TiDB's default for the
/// charset, which is not the default of MySQL or MariaDB.
pub fn for_target<'a>(target: &Target, charset: &'a str, collate: &'a str) -> (&'a str, &'a str) {
    let charset = if charset.is_empty() { "utf8mb4" } else { charset };
    let collate = if collate.is_empty() { default_collation(charset) } else { collate };
    if target.is_tidb() {
        return (charset, collate);
    }
    if charset.eq_ignore_ascii_case("latin1") {
        return ("utf8mb4", "utf8mb4_bin");
    }
    if !target.is_mariadb() {
        return (charset, collate);
    }
    let stand_in = match collate.to_ascii_lowercase().as_str() {
        // Without padding, as those are: 'a' and 'a ' are two keys.
        "utf8mb4_0900_ai_ci" => "utf8mb4_unicode_520_nopad_ci",
        "utf8mb4_0900_bin" => "utf8mb4_nopad_bin",
        _ => collate,
    };
    (charset, stand_in)
}

/// What TiDB takes where only a charset is given.
pub fn default_collation(charset: &str) -> &'static str {
    match charset.to_ascii_lowercase().as_str() {
        "utf8" | "utf8mb3" => "utf8_bin",
        "ascii" => "ascii_bin",
        "latin1" => "latin1_bin",
        "gbk" => "gbk_chinese_ci",
        "binary" => "binary",
        _ => "utf8mb4_bin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_for_mariadb_only() {
        let mariadb = Target::from_version("10.11.6-MariaDB");
        let mysql = Target::from_version("8.0.36");
        assert_eq!(for_target(&mysql, "utf8mb4", "utf8mb4_0900_ai_ci"), ("utf8mb4", "utf8mb4_0900_ai_ci"));
        assert_eq!(
            for_target(&mariadb, "utf8mb4", "utf8mb4_0900_ai_ci"),
            ("utf8mb4", "utf8mb4_unicode_520_nopad_ci")
        );
        assert_eq!(for_target(&mariadb, "utf8mb4", "utf8mb4_general_ci"), ("utf8mb4", "utf8mb4_general_ci"));
        assert_eq!(for_target(&mariadb, "gbk", ""), ("gbk", "gbk_chinese_ci"));
        assert_eq!(for_target(&mysql, "", ""), ("utf8mb4", "utf8mb4_bin"));
        assert_eq!(for_target(&mysql, "latin1", "latin1_bin"), ("utf8mb4", "utf8mb4_bin"));
        let tidb = Target::from_version("5.7.25-TiDB-v7.1.6");
        assert_eq!(for_target(&tidb, "latin1", "latin1_bin"), ("latin1", "latin1_bin"));
    }
}
