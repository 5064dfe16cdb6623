//! The statement of a schema change, and how its strings are to be read. Pure.
//!
//! Since 6.0 TiDB parses what the user wrote and writes it anew into its binlog: names in back-ticks, strings in single
//! quotes, quotes within doubled – and backslashes as they are, so that `'C:\'` is a whole string there. What it cannot
//! parse a second time, and everything before 6.0, is the user's own text (with comments around what only TiDB knows). The
//! job keeps the user's text, so the two can be told apart:
//!
//! - The statement differs from the job's query: it was written anew, a backslash is itself.
//! - It is the query: it is the user's. A backslash escapes, as in TiDB's own parser, unless a quote stays open that way:
//!   then the user's session had NO_BACKSLASH_ESCAPES. (Of a text that was written anew and still is the same, both
//!   readings are right: each escape but `\%` and `\_` would have become shorter, and those two mean the same either way.)
//! - There is a backslash, but no job to compare with: nobody can tell, so it is refused.

use std::ops::Range;

use tidb::model::Job;

use super::create::Impossible;
use super::token::{Backslash, Token, Tokens, closes, escaped, tokenize};
use crate::event::Ddl;

/// A statement that was cut into pieces.
#[derive(Debug)]
pub(super) struct Statement {
    text: String,
    tokens: Vec<Token>,
    backslash: Backslash,
}

impl Statement {
    /// The statement of a schema change.
    pub(super) fn of(ddl: &Ddl) -> Result<Self, Impossible> {
        let job = ddl.job.as_ref().and_then(|json| Job::parse(json).ok());
        Self::read(&ddl.entry.statement, job.as_ref().map(|job| job.query.as_str()))
    }

    /// A statement with the query of its job, if that is known.
    fn read(statement: &str, query: Option<&str>) -> Result<Self, Impossible> {
        let text = statement.trim().trim_end_matches(';').trim_end();
        let backslash = match query {
            _ if !text.contains('\\') => Backslash::Plain,
            Some(query) if bare(query) != bare(text) => Backslash::Plain,
            Some(_) if closes(text, Backslash::Escapes) => Backslash::Escapes,
            Some(_) => Backslash::Plain,
            None => {
                return Err(Impossible(
                    "it holds a backslash, and its job, which would tell how that is meant, is not in the log".to_owned(),
                ));
            }
        };
        Ok(Self { text: text.to_owned(), tokens: tokenize(text, backslash), backslash })
    }

    /// Its pieces.
    pub(super) fn tokens(&self) -> Tokens<'_> {
        Tokens::new(&self.text, &self.tokens, self.backslash)
    }

    /// As our sessions read it: there, backslashes escape.
    pub(super) fn runnable(&self) -> String {
        escaped(&self.text, self.backslash).into_owned()
    }

    /// Where the comments with this opening are.
    pub(super) fn comments(&self, opening: &str) -> Vec<Range<usize>> {
        let starts = std::iter::once(0).chain(self.tokens.iter().map(|token| token.range.end));
        let ends = self.tokens.iter().map(|token| token.range.start).chain([self.text.len()]);
        let mut out = Vec::new();
        for (mut at, end) in starts.zip(ends) {
            while let Some(start) = self.text[at..end].find(opening).map(|start| at + start) {
                at = self.text[start..end].find("*/").map_or(end, |close| start + close + 2);
                out.push(start..at);
            }
        }
        out
    }

    /// The statements of the text, for there may be several, with other text in some places; as our sessions read them.
    pub(super) fn split(&self, mut edits: Vec<(Range<usize>, String)>) -> Vec<String> {
        edits.sort_by_key(|(range, _)| range.start);
        let mut edits = edits.into_iter().peekable();
        let all = self.tokens();
        let ends =
            (0..all.len()).filter(|index| all.is(*index, &[";"])).map(|index| self.tokens[index].range.start);
        let mut out = Vec::new();
        let mut at = 0;
        for end in ends.chain([self.text.len()]) {
            let mut one = String::new();
            while let Some((range, text)) = edits.next_if(|(range, _)| range.start < end) {
                one.push_str(&escaped(&self.text[at..range.start], self.backslash));
                one.push_str(&text);
                at = range.end;
            }
            one.push_str(&escaped(&self.text[at..end], self.backslash));
            at = (end + 1).min(self.text.len());
            if !one.trim().is_empty() {
                out.push(one.trim().to_owned());
            }
        }
        out
    }
}

/// A text without white space, ends of statements, and the comments that TiDB puts around what only it knows.
fn bare(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = if let Some(inner) = rest.strip_prefix("/*T!") {
            let feature = inner.strip_prefix('[').and_then(|named| named.split_once(']'));
            feature.map_or(inner, |(_, inner)| inner)
        } else if let Some(inner) = rest.strip_prefix("/*!90000").or(rest.strip_prefix("*/")) {
            inner
        } else {
            if !c.is_whitespace() && c != ';' {
                out.push(c);
            }
            &rest[c.len_utf8()..]
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(statement: &str, query: &str) -> (String, usize) {
        let statement = Statement::read(statement, Some(query)).unwrap();
        (statement.runnable(), statement.tokens().parts().len())
    }

    #[test]
    fn what_was_written_anew_does_not_escape_and_what_the_user_wrote_does() {
        // The second column must not vanish in the first one's comment.
        let (text, parts) = strings(
            r"ALTER TABLE `t` ADD COLUMN `p` INT COMMENT 'C:\',ADD COLUMN `q` INT COMMENT 'it''s';",
            r"alter table t add column p int comment 'C:\\', add column q int comment 'it\'s'",
        );
        assert_eq!(
            text,
            r"ALTER TABLE `t` ADD COLUMN `p` INT COMMENT 'C:\\',ADD COLUMN `q` INT COMMENT 'it''s'"
        );
        assert_eq!(parts, 2);
        // Before 6.0: the user's own, with TiDB's comments.
        let own = r"alter table t add p int comment 'C:\\', add q int comment 'it\'s, x' ";
        for (wrapped, query) in [
            (own.to_owned(), own.to_owned()),
            (
                format!("{own} /*T![auto_rand] SHARD_ROW_ID_BITS = 4 */"),
                format!("{own} SHARD_ROW_ID_BITS = 4"),
            ),
            (format!("{own} /*!90000 SHARD_ROW_ID_BITS=4 */"), format!("{own} SHARD_ROW_ID_BITS=4;")),
        ] {
            let (text, parts) = strings(&wrapped, &query);
            assert_eq!((text.as_str(), parts), (wrapped.trim(), 2));
        }
        // The user's own in a session with NO_BACKSLASH_ESCAPES, which TiDB cannot parse a second time.
        let own = r"alter table t add p int comment 'C:\', add q int";
        let (text, parts) = strings(own, own);
        assert_eq!((text.as_str(), parts), (r"alter table t add p int comment 'C:\\', add q int", 2));
    }

    #[test]
    fn a_backslash_without_a_job_is_refused() {
        assert!(Statement::read(r"ALTER TABLE `t` COMMENT = 'a\b'", None).is_err());
        let plain = Statement::read("ALTER TABLE `t` COMMENT = 'it''s' ; ", None).unwrap();
        assert_eq!(plain.runnable(), "ALTER TABLE `t` COMMENT = 'it''s'");
    }
}
