//! A schema change's text in pieces: names, strings, words, brackets. Enough to find a statement's parts and to leave
//! everything inside quotes alone; no grammar.
//!
//! What comes in was mostly parsed and written by TiDB itself: upper-case keywords, names in back-ticks, strings in single
//! quotes, what only TiDB knows in `/*T! … */`. For MySQL and MariaDB such a comment is one, so it is no piece at all.

use std::borrow::Cow;
use std::ops::Range;

/// What a backslash in a string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backslash {
    /// It escapes the character after it, as MySQL reads a text unless it is told otherwise.
    Escapes,
    /// Itself, as where NO_BACKSLASH_ESCAPES is set.
    Plain,
}

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
    backslash: Backslash,
}

/// Cuts a text into pieces. Comments and white space are left out; quotes that do not end reach to the end.
pub(crate) fn tokenize(text: &str, backslash: Backslash) -> Vec<Token> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let byte = bytes[at];
        let kind = match byte {
            b'`' | b'\'' | b'"' => {
                at = quoted_end(bytes, at, backslash).unwrap_or(bytes.len());
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

/// The end of a quoted piece, if it has one: quotes within are doubled, or (not in names) escaped.
fn quoted_end(bytes: &[u8], start: usize, backslash: Backslash) -> Option<usize> {
    let quote = bytes[start];
    let escapes = quote != b'`' && backslash == Backslash::Escapes;
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if escapes => at += 2,
            byte if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

/// True if every quote in the text is closed.
pub(crate) fn closes(text: &str, backslash: Backslash) -> bool {
    let bytes = text.as_bytes();
    let quoted = |token: &Token| matches!(bytes[token.range.start], b'`' | b'\'' | b'"');
    let last = tokenize(text, backslash).into_iter().last();
    last.filter(quoted).is_none_or(|token| quoted_end(bytes, token.range.start, backslash).is_some())
}

/// A text as it is written where backslashes escape. Strings in comments are changed too: they may be meant for TiDB.
pub(crate) fn escaped(text: &str, backslash: Backslash) -> Cow<'_, str> {
    if backslash == Backslash::Escapes || !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len() + 8);
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        if matches!(bytes[at], b'`' | b'\'' | b'"') {
            at = quoted_end(bytes, at, backslash).unwrap_or(bytes.len());
            let piece = &text[start..at];
            if bytes[start] == b'`' {
                out.push_str(piece);
            } else {
                out.push_str(&piece.replace('\\', "\\\\"));
            }
        } else {
            at = text[at..].find(['`', '\'', '"']).map_or(bytes.len(), |next| at + next);
            out.push_str(&text[start..at]);
        }
    }
    Cow::Owned(out)
}

impl<'a> Tokens<'a> {
    pub(crate) fn new(text: &'a str, tokens: &'a [Token], backslash: Backslash) -> Self {
        Self { text, tokens, backslash }
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        Self { tokens: &self.tokens[range], ..*self }
    }

    pub(crate) fn from(&self, start: usize) -> Self {
        self.slice(start.min(self.len())..self.len())
    }

    /// The text of a piece, as it stands.
    pub(crate) fn raw(&self, index: usize) -> &'a str {
        self.tokens.get(index).map_or("", |token| &self.text[token.range.clone()])
    }

    /// The text from the first to the last of these pieces, comments between them gone, as it is written where backslashes
    /// escape.
    pub(crate) fn joined(&self) -> String {
        let mut out = String::new();
        let mut end = None;
        for token in self.tokens {
            // Keep what belongs together together: `a`.`b`, f(x), _utf8mb4'x'.
            if end.is_some_and(|end| end != token.range.start) {
                out.push(' ');
            }
            out.push_str(&escaped(&self.text[token.range.clone()], self.backslash));
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
            Kind::Name => {
                let inner = text.strip_prefix('`')?.strip_suffix('`')?;
                Some(inner.replace("``", "`")).filter(|name| !name.is_empty())
            }
            Kind::Word => Some(text.to_owned()),
            Kind::String | Kind::Mark => None,
        }
    }

    /// What the piece at `index` is.
    pub(crate) fn kind(&self, index: usize) -> Option<Kind> {
        self.tokens.get(index).map(|token| token.kind)
    }

    /// Where these pieces stand in the text.
    pub(crate) fn span(&self, pieces: Range<usize>) -> Option<Range<usize>> {
        let pieces = self.tokens.get(pieces)?;
        Some(pieces.first()?.range.start..pieces.last()?.range.end)
    }

    /// The statements, which end with semicolons.
    pub(crate) fn statements(&self) -> Vec<Self> {
        let ends = (0..self.len()).filter(|index| self.is(*index, &[";"])).chain([self.len()]);
        let mut start = 0;
        let mut statements = Vec::new();
        for end in ends {
            statements.push(self.slice(start..end));
            start = (end + 1).min(self.len());
        }
        statements.retain(|statement| !statement.is_empty());
        statements
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
        tokenize(text, Backslash::Escapes).iter().map(|token| text[token.range.clone()].to_owned()).collect()
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
        let tokens = tokenize(text, Backslash::Escapes);
        let all = Tokens::new(text, &tokens, Backslash::Escapes);
        let parts: Vec<_> = all.parts().iter().map(Tokens::joined).collect();
        assert_eq!(parts, ["ADD COLUMN `a` SET('x','y')", "DROP COLUMN `we``ird`", "COMMENT = 'a,b'"]);
        assert_eq!(all.parts()[1].name(2).as_deref(), Some("we`ird"));
        assert!(all.parts()[1].starts(&["drop", "column"]));
    }

    /// One back-tick at each end is the quote; others are the name's, doubled.
    #[test]
    fn a_name_keeps_its_own_back_ticks() {
        for (text, name) in [
            ("`a`", Some("a")),
            ("`a```", Some("a`")),
            ("```a`", Some("`a")),
            ("``````", Some("``")),
            ("`a``b`", Some("a`b")),
            ("``", None),
            ("`open", None),
            ("a", Some("a")),
        ] {
            let tokens = tokenize(text, Backslash::Escapes);
            assert_eq!(tokens.len(), 1, "{text}");
            assert_eq!(Tokens::new(text, &tokens, Backslash::Escapes).name(0).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn a_backslash_may_be_itself() {
        let plain = r"COMMENT 'C:\', `a\`, _utf8'it''s \%' /*T! ATTRIBUTES='x\y' */";
        let tokens = tokenize(plain, Backslash::Plain);
        let all = Tokens::new(plain, &tokens, Backslash::Plain);
        let parts: Vec<_> = all.parts().iter().map(Tokens::joined).collect();
        assert_eq!(parts, [r"COMMENT 'C:\\'", r"`a\`", r"_utf8'it''s \\%'"]);
        assert!(closes(plain, Backslash::Plain) && !closes(r"COMMENT 'C:\'", Backslash::Escapes));
        assert_eq!(
            escaped(plain, Backslash::Plain),
            r"COMMENT 'C:\\', `a\`, _utf8'it''s \\%' /*T! ATTRIBUTES='x\\y' */"
        );
        assert_eq!(escaped(plain, Backslash::Escapes), plain);
    }

    proptest! {
        #[test]
        fn any_text_is_cut_without_loss(text in "\\PC{0,60}|[`'\"\\\\/*() ,a#-]{0,40}") {
            for backslash in [Backslash::Escapes, Backslash::Plain] {
                let tokens = tokenize(&text, backslash);
                let mut last = 0;
                for token in &tokens {
                    prop_assert!(token.range.start >= last && token.range.end > token.range.start);
                    last = token.range.end;
                    let _ = &text[token.range.clone()];
                }
                let _ = (closes(&text, backslash), escaped(&text, backslash));
            }
        }
    }
}
