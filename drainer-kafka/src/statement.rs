//! Names in TiDB's DDL statements. Pure.
//!
//! A statement is read for what no job tells: the pairs of a RENAME TABLE of TiDB before 7.1, which does not list them,
//! which column a CHANGE COLUMN gave another name, and the sequence of a SETVAL, which has no job. TiDB renders the statements in its binlogs itself
//! (keywords in upper case, names in back-quotes, its own features in comments); a job's query is what the user typed.

use std::iter::Peekable;
use std::str::Chars;

/// A table's name as a statement has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName {
    /// The database, where it is named.
    pub database: Option<String>,
    /// The table.
    pub table: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A keyword, or a name without quotes.
    Word(String),
    /// A name in quotes.
    Quoted(String),
    /// Text, a number, a sign.
    Other(char),
}

impl Token {
    fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    fn is_sign(&self, sign: char) -> bool {
        *self == Self::Other(sign)
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Word(name) | Self::Quoted(name) => Some(name),
            Self::Other(_) => None,
        }
    }
}

/// The pairs of a RENAME TABLE, from and to; `None` if it is none.
pub fn renamed_tables(statement: &str) -> Option<Vec<(TableName, TableName)>> {
    let tokens = tokens(statement);
    let [rename, tables, rest @ ..] = tokens.as_slice() else { return None };
    if !rename.is("RENAME") || !(tables.is("TABLE") || tables.is("TABLES")) {
        return None;
    }
    let rest = rest.strip_suffix(&[Token::Other(';')]).unwrap_or(rest);
    rest.split(|token| token.is_sign(','))
        .map(|pair| {
            let (from, rest) = table_name(pair)?;
            let [to, rest @ ..] = rest else { return None };
            let (target, rest) = table_name(rest)?;
            (to.is("TO") && rest.is_empty()).then_some((from, target))
        })
        .collect()
}

/// The names that a CHANGE COLUMN or RENAME COLUMN gave columns, from and to.
pub fn renamed_columns(statement: &str) -> Vec<(String, String)> {
    let tokens = tokens(statement);
    let mut renamed = Vec::new();
    let mut depth = 0_usize;
    // Each part of the statement begins where its list does, or behind a comma outside of parentheses.
    let mut begins = true;
    for (at, token) in tokens.iter().enumerate() {
        if token.is_sign('(') {
            depth += 1;
        } else if token.is_sign(')') {
            depth = depth.saturating_sub(1);
        }
        let here = depth == 0 && (begins || at == 3 || at == 5);
        begins = depth == 0 && token.is_sign(',');
        if here && let Some(pair) = renamed_column(&tokens[at..]) {
            renamed.push(pair);
        }
    }
    renamed
}

fn renamed_column(part: &[Token]) -> Option<(String, String)> {
    let [verb, rest @ ..] = part else { return None };
    if !verb.is("CHANGE") && !verb.is("RENAME") {
        return None;
    }
    let rest = match rest {
        [column, rest @ ..] if column.is("COLUMN") => rest,
        rest if verb.is("CHANGE") => rest,
        _ => return None,
    };
    let rest = match rest {
        [word, exists, rest @ ..] if word.is("IF") && exists.is("EXISTS") => rest,
        rest => rest,
    };
    let (from, rest) = table_name(rest)?;
    let rest = match rest {
        [to, rest @ ..] if verb.is("RENAME") && to.is("TO") => rest,
        rest => rest,
    };
    let (to, _) = table_name(rest)?;
    Some((from.table, to.table))
}

/// A name, qualified or not, and what follows it.
fn table_name(tokens: &[Token]) -> Option<(TableName, &[Token])> {
    match tokens {
        [database, dot, table, rest @ ..] if dot.is_sign('.') => {
            let database = Some(database.name()?.to_owned());
            Some((TableName { database, table: table.name()?.to_owned() }, rest))
        }
        [table, rest @ ..] => Some((TableName { database: None, table: table.name()?.to_owned() }, rest)),
        [] => None,
    }
}

/// The sequence whose value `SELECT SETVAL(…)` sets.
pub fn set_sequence(statement: &str) -> Option<TableName> {
    let tokens = tokens(statement);
    let [select, setval, open, rest @ ..] = tokens.as_slice() else { return None };
    let (name, rest) = table_name(rest)?;
    let begins = select.is("SELECT") && setval.is("SETVAL") && open.is_sign('(');
    (begins && rest.first()?.is_sign(',')).then_some(name)
}

/// Splits a statement. What stands in TiDB's and MySQL's executable comments counts as if it stood outside.
fn tokens(statement: &str) -> Vec<Token> {
    let mut chars = statement.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        match c {
            _ if c.is_whitespace() => {}
            '`' | '"' => tokens.push(Token::Quoted(quoted(&mut chars, c))),
            '\'' => {
                quoted(&mut chars, c);
                tokens.push(Token::Other(c));
            }
            '#' => skip_line(&mut chars),
            '-' if begins_comment(&chars) => skip_line(&mut chars),
            '/' if chars.peek() == Some(&'*') => {
                chars.next();
                skip_comment_or_enter(&mut chars);
            }
            '*' if chars.peek() == Some(&'/') => {
                chars.next();
            }
            _ if is_word(c) => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| is_word(*c)) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
            _ => tokens.push(Token::Other(c)),
        }
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()
}

/// Text up to the closing quote, which doubled stands for itself. Escapes matter in text only, and only so that its end
/// is found.
fn quoted(chars: &mut Peekable<Chars<'_>>, quote: char) -> String {
    let mut text = String::new();
    while let Some(c) = chars.next() {
        if c == quote && chars.next_if_eq(&quote).is_none() {
            break;
        }
        if c == '\\' && quote != '`' {
            text.extend(chars.next());
        } else {
            text.push(c);
        }
    }
    text
}

fn skip_line(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(|c| *c != '\n').is_some() {}
}

/// `--` begins a comment where a blank or the end follows.
fn begins_comment(chars: &Peekable<Chars<'_>>) -> bool {
    let mut rest = chars.clone();
    rest.next() == Some('-') && rest.next().is_none_or(|c| c.is_whitespace() || c.is_control())
}

/// `/*! …`, `/*!80000 …`, `/*+ …` of hints aside, `/*T! …`, `/*T![feature] …`: enters; any other comment: skips it.
fn skip_comment_or_enter(chars: &mut Peekable<Chars<'_>>) {
    let mut rest = chars.clone();
    let head = match rest.next() {
        Some('!') => Some(rest),
        Some('T') if rest.next() == Some('!') => Some(rest),
        _ => None,
    };
    if let Some(mut inside) = head {
        while inside.next_if(char::is_ascii_digit).is_some() {}
        if inside.next_if_eq(&'[').is_some() {
            while inside.next().is_some_and(|c| c != ']') {}
        }
        *chars = inside;
        return;
    }
    let mut last = ' ';
    for c in chars.by_ref() {
        if (last, c) == ('*', '/') {
            return;
        }
        last = c;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(database: Option<&str>, table: &str) -> TableName {
        TableName { database: database.map(str::to_owned), table: table.to_owned() }
    }

    #[test]
    fn the_pairs_of_a_rename() {
        let pairs = renamed_tables("RENAME TABLE `a`.`x``y` TO `b`.`to`, `z, w` TO `q`;").unwrap();
        assert_eq!(
            pairs,
            [(name(Some("a"), "x`y"), name(Some("b"), "to")), (name(None, "z, w"), name(None, "q")),]
        );
        let typed = "rename /* why, TO */ tables t1 to -- there\n d2 . t1 # end\n , größe TO `Größe`";
        let expected =
            [(name(None, "t1"), name(Some("d2"), "t1")), (name(None, "größe"), name(None, "Größe"))];
        assert_eq!(renamed_tables(typed).unwrap(), expected);
        for other in
            ["ALTER TABLE `a` RENAME TO `b`", "RENAME TABLE a b", "RENAME TABLE a TO b c", "RENAME TABLE", ""]
        {
            assert_eq!(renamed_tables(other), None, "{other}");
        }
    }

    #[test]
    fn the_sequence_that_is_set() {
        assert_eq!(set_sequence("SELECT SETVAL(`d`.`s`, 5);"), Some(name(Some("d"), "s")));
        assert_eq!(set_sequence("select setval(`a b`.`c`,-1)"), Some(name(Some("a b"), "c")));
        assert_eq!(set_sequence("SELECT NEXTVAL(`d`.`s`)"), None);
    }

    #[test]
    fn the_columns_that_got_new_names() {
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect()
        };
        for (statement, expected) in [
            (
                "ALTER TABLE `d`.`t` ADD COLUMN `x` ENUM('a, CHANGE `p` `q`','b'), CHANGE COLUMN `a` `b` DECIMAL(10,2), \
                 RENAME COLUMN `c` TO `e`;",
                pairs(&[("a", "b"), ("c", "e")]),
            ),
            ("alter table t change a b int", pairs(&[("a", "b")])),
            ("ALTER TABLE `d`.`t` CHANGE COLUMN IF EXISTS `a` `b` INT", pairs(&[("a", "b")])),
            (
                "ALTER TABLE t /*T![x] CHANGE */ COLUMN a b INT COMMENT 'it''s, RENAME COLUMN y TO z'",
                pairs(&[("a", "b")]),
            ),
            ("ALTER TABLE t RENAME INDEX i TO j, RENAME TO u, MODIFY COLUMN `change` INT", pairs(&[])),
        ] {
            assert_eq!(renamed_columns(statement), expected, "{statement}");
        }
    }
}
