//! Conversions of stored values by MODIFY and CHANGE COLUMN: which of them TiDB makes otherwise than MySQL and MariaDB, and
//! what is done about it. Pure.

use tidb::model::{ColumnInfo, TableInfo, flag, tp};

use super::create::Impossible;
use crate::mysql::session::Target;

/// What a conversion depends on besides the value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    /// Where it is made.
    pub(super) target: &'a Target,
    /// The upstream made it in UTC, as it is made here.
    pub(super) in_utc: bool,
    /// The table's rows are found by their values, for it has no key.
    pub(super) keyless: bool,
}

/// True if the conversion goes by the time zone of the session that makes it.
pub(super) fn by_zone(before: &ColumnInfo, after: &ColumnInfo) -> bool {
    (before.field_type.tp == tp::TIMESTAMP) != (after.field_type.tp == tp::TIMESTAMP)
}

/// Refuses a conversion to a date from a time of day: it takes the date of the day on which it is made.
pub(super) fn refuse_by_day(before: &ColumnInfo, after: &ColumnInfo) -> Result<(), Impossible> {
    let dated = matches!(after.field_type.tp, tp::DATE | tp::DATETIME | tp::TIMESTAMP);
    if before.field_type.tp == tp::DURATION && dated {
        return Err(Impossible(format!(
            "column {} is converted from TIME to a date, for which the upstream took the day on which it converted each row; \
             here it would be today: convert it by hand as the upstream shows it",
            before.name()
        )));
    }
    Ok(())
}

/// Refuses a conversion that TiDB makes otherwise than MySQL and MariaDB, or whose outcome rows could not be found by.
pub(super) fn refuse(
    before: &ColumnInfo,
    after: &ColumnInfo,
    around: Surroundings<'_>,
) -> Result<(), Impossible> {
    let name = before.name();
    if by_zone(before, after) && !around.in_utc {
        return Err(Impossible(format!(
            "column {name} is converted between TIMESTAMP and another type, which depends on the time zone of the upstream's \
             session; here it would be made in UTC: convert it by hand"
        )));
    }
    refuse_by_day(before, after)?;
    let to_text = after.field_type.is_text() || after.field_type.is_binary_string();
    if matches!(before.field_type.tp, tp::FLOAT | tp::DOUBLE) && to_text {
        return Err(Impossible(format!(
            "column {name} is converted from floating numbers to text, which TiDB writes without exponents and this target \
             with them: convert it by hand as the upstream shows it"
        )));
    }
    let (from_json, to_json) = (before.field_type.tp == tp::JSON, after.field_type.tp == tp::JSON);
    if from_json && to_text && !around.target.is_mariadb() {
        return Err(Impossible(format!(
            "column {name} is converted from JSON to text, in which MySQL orders and spaces members in its own way: convert it \
             by hand as the upstream shows it"
        )));
    }
    if to_json && !from_json && around.target.is_mariadb() && around.keyless {
        return Err(Impossible(format!(
            "column {name} of a table without a key is converted to JSON, which TiDB writes in its own way and MariaDB leaves as \
             it was written; its rows, which are found by their values, would not be found any more: convert it by hand as \
             the upstream shows it"
        )));
    }
    Ok(())
}

/// A type to go through, so that values become the text that TiDB makes of them: BIT becomes decimal digits there, the
/// year 0 is `0`, and ZEROFILL fills nothing.
pub(super) fn between(before: &ColumnInfo, after: &ColumnInfo) -> Option<String> {
    let kind = &before.field_type;
    let (text, bytes) = (after.field_type.is_text(), after.field_type.is_binary_string());
    let whole = matches!(kind.tp, tp::TINY | tp::SHORT | tp::INT24 | tp::LONG | tp::LONGLONG);
    match kind.tp {
        _ if !text && !bytes => None,
        _ if whole && kind.has(flag::ZEROFILL) => Some("bigint unsigned".to_owned()),
        tp::NEW_DECIMAL if kind.has(flag::ZEROFILL) => {
            let (precision, fraction) = kind.decimal_shape();
            Some(format!("decimal({precision},{fraction}) unsigned"))
        }
        tp::BIT if text => Some("bigint unsigned".to_owned()),
        tp::YEAR if text => Some("smallint".to_owned()),
        _ => None,
    }
}

/// True if no key tells the table's rows apart.
pub(super) fn is_keyless(table: &TableInfo) -> bool {
    let never_null = |offset: usize| table.cols.get(offset).is_some_and(ColumnInfo::not_null);
    let tells = table.index_info.iter().filter(|index| index.is_public()).any(|index| {
        index.is_primary || index.is_unique && index.idx_cols.iter().all(|part| never_null(part.offset))
    });
    !table.pk_is_handle && !tells
}
