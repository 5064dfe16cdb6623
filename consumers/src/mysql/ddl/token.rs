//! A schema change's text in pieces: names, strings, words, brackets. Enough to find a statement's parts and to leave
//! everything inside quotes alone; no grammar.
//!
//! What comes in was parsed and written by TiDB itself: upper-case keywords, names in back-ticks, strings in single
//! quotes, what only TiDB knows in `/*T! … */`. For MySQL and MariaDB such a comment is one, so it is no piece at all.

use std::ops::Range;

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A word or number, not quoted.
    Word,
    /// A name in back-ticks.
    Name,
    /// A string, in single or double quotes.
    String,
    /// One character of anything else.
    Mark,
}

/// A piece, by its place in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) range: Range<usize>,
}

/// A text with its pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens<'a> {
    pub(crate) text: &'a str,
    pub(crate) tokens: &'a [Token],
}

/// Cuts a text into pieces. Comments and white space are left out; quotes that do not end reach to the end.
pub(crate) fn tokenize(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let byte = bytes[at];
        let kind = match byte {
            b'`' | b'\'' | b'"' => {
                at = quoted_end(bytes, at);
                if byte == b'`' { Kind::Name } else { Kind::String }
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                at = match conditional(&text[at..]) {
                    Some(opening) => at + opening,
                    None => text[at..].find("*/").map_or(bytes.len(), |end| at + end + 2),
                };
                continue;
            }
            // The end of a conditional comment.
            b'*' if bytes.get(at + 1) == Some(&b'/') => {
                at += 2;
                continue;
            }
            b'-' if bytes.get(at + 1) == Some(&b'-')
                && bytes.get(at + 2).is_none_or(u8::is_ascii_whitespace) =>
            {
                at = text[at..].find('\n').map_or(bytes.len(), |end| at + end);
                continue;
            }
            b'#' => {
                at = text[at..].find('\n').map_or(bytes.len(), |end| at + end);
                continue;
            }
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            byte if is_word(byte) => {
                while at < bytes.len() && is_word(bytes[at]) {
                    at += 1;
                }
                Kind::Word
            }
            _ => {
                at += 1;
                Kind::Mark
            }
        };
        tokens.push(Token { kind, range: start..at });
    }
    tokens
}

/// The length of the opening of `/*!40101 … */`, which counts; not that of `/*!90000`, in which TiDB 3 put what only it
/// knows.
fn conditional(text: &str) -> Option<usize> {
    const ONLY_TIDB: u32 = 90_000;
    let rest = text.strip_prefix("/*!")?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let version = rest[..digits].parse::<u32>().unwrap_or(0);
    (version < ONLY_TIDB).then_some(3 + digits)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte == b'@' || byte >= 0x80
}

/// The end of a quoted piece: quotes within are doubled, or (not in names) escaped.
fn quoted_end(bytes: &[u8], start: usize) -> usize {
    let quote = bytes[start];
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quote != b'`' => at += 2,
            byte if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

impl<'a> Tokens<'a> {
    pub(crate) fn new(text: &'a str, tokens: &'a [Token]) -> Self {
        Self { text, tokens }
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        Self { text: self.text, tokens: &self.tokens[range] }
    }

    pub(crate) fn from(&self, start: usize) -> Self {
        self.slice(start.min(self.len())..self.len())
    }

    /// The text of a piece, as it stands.
    pub(crate) fn raw(&self, index: usize) -> &'a str {
        self.tokens.get(index).map_or("", |token| &self.text[token.range.clone()])
    }

    /// The text from the first to the last of these pieces, comments between them gone.
    pub(crate) fn joined(&self) -> String {
        let mut out = String::new();
        let mut end = None;
        for token in self.tokens {
            // Keep what belongs together together: `a`.`b`, f(x), _utf8mb4'x'.
            if end.is_some_and(|end| end != token.range.start) {
                out.push(' ');
            }
            out.push_str(&self.text[token.range.clone()]);
            end = Some(token.range.end);
        }
        out
    }

    /// True if the pieces from `index` on are these words.
    pub(crate) fn is(&self, index: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(offset, word)| {
            self.tokens.get(index + offset).is_some_and(|token| {
                token.kind != Kind::Name
                    && token.kind != Kind::String
                    && self.text[token.range.clone()].eq_ignore_ascii_case(word)
            })
        })
    }

    /// True if the pieces begin with these words.
    pub(crate) fn starts(&self, words: &[&str]) -> bool {
        self.is(0, words)
    }

    /// The name at `index`, without its back-ticks.
    pub(crate) fn name(&self, index: usize) -> Option<String> {
        let token = self.tokens.get(index)?;
        let text = &self.text[token.range.clone()];
        match token.kind {
            Kind::Name => Some(text.trim_matches('`').replace("``", "`")).filter(|_| text.len() > 2),
            Kind::Word => Some(text.to_owned()),
            Kind::String | Kind::Mark => None,
        }
    }

    /// Parts between commas that stand in no brackets.
    pub(crate) fn parts(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        let (mut depth, mut start) = (0_i32, 0);
        for (index, token) in self.tokens.iter().enumerate() {
            match &self.text[token.range.clone()] {
                "(" if token.kind == Kind::Mark => depth += 1,
                ")" if token.kind == Kind::Mark => depth -= 1,
                "," if token.kind == Kind::Mark && depth == 0 => {
                    parts.push(self.slice(start..index));
                    start = index + 1;
                }
                _ => {}
            }
        }
        parts.push(self.from(start));
        parts
    }

    /// The place of the bracket that closes the one at `open`.
    pub(crate) fn closing(&self, open: usize) -> Option<usize> {
        let mut depth = 0_i32;
        for index in open..self.len() {
            if self.tokens[index].kind == Kind::Mark {
                match self.raw(index) {
                    "(" => depth += 1,
                    ")" => {
                        depth -= 1;
                        if depth == 0 {
                            return Some(index);
                        }
                    }
                    _ => {}
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raws(text: &str) -> Vec<String> {
        tokenize(text).iter().map(|token| text[token.range.clone()].to_owned()).collect()
    }

    #[test]
    fn pieces() {
        assert_eq!(
            raws(
                "ALTER TABLE `a``b`.`c` ADD COLUMN x VARCHAR(10) DEFAULT _UTF8MB4'it''s, \\'q\\'' /*T![x] y */;"
            ),
            [
                "ALTER",
                "TABLE",
                "`a``b`",
                ".",
                "`c`",
                "ADD",
                "COLUMN",
                "x",
                "VARCHAR",
                "(",
                "10",
                ")",
                "DEFAULT",
                "_UTF8MB4",
                "'it''s, \\'q\\''",
                ";"
            ]
        );
        assert_eq!(raws("a-- b\n--c -1 #d\n青"), ["a", "-", "-", "c", "-", "1", "青"]);
        assert_eq!(raws("'open"), ["'open"]);
        assert_eq!(
            raws("a /*!40101 b*/ c /*!90000 d */ /*T![x] e */ /*! f */ /* g */"),
            ["a", "b", "c", "f"]
        );
    }

    #[test]
    fn parts_and_names() {
        let text = "ADD COLUMN `a` SET('x','y'), DROP COLUMN `we``ird`, COMMENT = 'a,b'";
        let tokens = tokenize(text);
        let all = Tokens::new(text, &tokens);
        let parts: Vec<_> = all.parts().iter().map(Tokens::joined).collect();
        assert_eq!(parts, ["ADD COLUMN `a` SET('x','y')", "DROP COLUMN `we``ird`", "COMMENT = 'a,b'"]);
        assert_eq!(all.parts()[1].name(2).as_deref(), Some("we`ird"));
        assert!(all.parts()[1].starts(&["drop", "column"]));
    }

    proptest! {
        #[test]
        fn any_text_is_cut_without_loss(text in "\\PC{0,60}|[`'\"\\\\/*() ,a#-]{0,40}") {
            let tokens = tokenize(&text);
            let mut last = 0;
            for token in &tokens {
                prop_assert!(token.range.start >= last && token.range.end > token.range.start);
                last = token.range.end;
                let _ = &text[token.range.clone()];
            }
        }
    }
}
