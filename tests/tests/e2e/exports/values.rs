//! What one field of an exported file says, as MariaDB's text protocol would print it: the form in which states are compared.

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use e2e::recording::Cell;
use serde_json::Value;

/// A column's type as `SHOW CREATE TABLE` gives it: `bit(33)`, `varchar(50) CHARACTER SET gbk …`.
pub(super) struct Type<'a>(pub(super) &'a str);

impl Type<'_> {
    fn base(&self) -> &str {
        self.0.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default()
    }

    fn is_binary(&self) -> bool {
        self.base().ends_with("blob") || self.base().ends_with("binary")
    }

    fn is_text(&self) -> bool {
        self.base().ends_with("char") || self.base().ends_with("text")
    }

    /// A number as the protocol shows it; `text` is as the file has it.
    fn number(&self, text: &str) -> Result<Cell> {
        Ok(Cell::Bytes(match self.base() {
            "bit" => {
                let width: usize = self.0[4..].split(')').next().unwrap_or_default().parse()?;
                text.parse::<u64>()?.to_be_bytes()[8 - width.div_ceil(8)..].to_vec()
            }
            "year" => format!("{:04}", text.parse::<u16>()?).into_bytes(),
            // The comparison reads a FLOAT widened.
            "float" => f64::from(text.parse::<f32>()?).to_string().into_bytes(),
            _ => text.as_bytes().to_vec(),
        }))
    }

    /// A value of a JSON line.
    pub(super) fn of_json(&self, value: &Value) -> Result<Cell> {
        match value {
            Value::Null => Ok(Cell::Null),
            // The document's text; anything but a string would be a document that was embedded.
            Value::String(text) if self.base() == "json" => Ok(Cell::Bytes(text.clone().into_bytes())),
            other if self.base() == "json" => bail!("{other} in a JSON column"),
            Value::Number(number) => self.number(&number.to_string()),
            Value::String(text) if self.is_binary() => Ok(Cell::Bytes(STANDARD.decode(text)?)),
            Value::String(text) => Ok(Cell::Bytes(text.clone().into_bytes())),
            Value::Object(bytes) => {
                let text =
                    bytes.get("base64").and_then(Value::as_str).context("an object that is no bytes")?;
                Ok(Cell::Bytes(STANDARD.decode(text)?))
            }
            other => bail!("{other} in a column of type {}", self.0),
        }
    }

    /// A field of a CSV line.
    pub(super) fn of_csv(&self, field: &Field) -> Result<Cell> {
        match field {
            Field::Null => Ok(Cell::Null),
            Field::Text(text) if self.is_binary() => Ok(Cell::Bytes(STANDARD.decode(text)?)),
            Field::Text(text) if self.is_text() || matches!(self.base(), "enum" | "set" | "json") => {
                Ok(Cell::Bytes(text.clone().into_bytes()))
            }
            Field::Text(text) => self.number(text),
        }
    }
}

/// A field of a CSV line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// Nothing, not even quotes.
    Null,
    Text(String),
}

/// Lines of fields as RFC 4180 has them. The `csv` crate would not tell nothing from an empty string.
pub(super) fn csv(text: &str) -> Result<Vec<Vec<Field>>> {
    let (mut lines, mut line) = (Vec::new(), Vec::new());
    let mut rest = text;
    while !rest.is_empty() {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find([',', '\r']).context("a line without an end")?;
                let field = if end == 0 { Field::Null } else { Field::Text(rest[..end].to_owned()) };
                (field, &rest[end..])
            }
        };
        line.push(field);
        if let Some(next) = after.strip_prefix(',') {
            // A line may end with a field of nothing.
            rest = next;
            continue;
        }
        rest = after.strip_prefix("\r\n").context("a field is followed by neither a comma nor a new line")?;
        lines.push(std::mem::take(&mut line));
    }
    Ok(lines)
}

fn quoted_field(text: &str) -> Result<(Field, &str)> {
    let (mut field, mut rest) = (String::new(), text);
    loop {
        let (part, after) = rest.split_once('"').context("an open quote")?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Ok((Field::Text(field), after)),
        }
    }
}

#[test]
fn nothing_is_not_an_empty_string() {
    let text = |text: &str| Field::Text(text.to_owned());
    let lines = csv("a,\"b\"\"c\r\n,\"\r\n,\"\",\r\n").unwrap();
    assert_eq!(lines, [vec![text("a"), text("b\"c\r\n,")], vec![Field::Null, text(""), Field::Null]]);
    assert!(csv("a,\"b\r\n").is_err());
}
