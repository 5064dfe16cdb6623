//! The upstream's time zone, in which old definitions keep TIMESTAMP defaults. Pure.
//!
//! Columns of `version` 0, made by TiDB before 2.1, have such a default as the clock of the server that made them showed it.
//! Later TiDBs read it in the time zone that the cluster had at first (`system_tz` in its table `mysql.tidb`;
//! `getColDefaultValue` in its package `table`). Nothing that a drainer reads tells that zone, so it is configured
//! (`upstream-time-zone`). Definitions are put into UTC as they are made, so that neither rows nor those who read the schema
//! topic meet anything else.
//!
//! Where clocks were turned, a reading is what Go's `time.Date` makes of it, as TiDB uses that: of a time that came twice,
//! the one of the offset which was in force when it was that late in UTC. That is the later one where clocks are ahead of
//! UTC or as UTC is, and the earlier one where they are behind. A time that was left out is none: TiDB cannot read such a
//! default either, and the feed stops.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::{Offset, TimeZone};
use tidb::model::{ColumnInfo, TableInfo};
use tidb::time::{Fields, Time};

/// A default that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column} of {table} has a TIMESTAMP default from before TiDB kept those in UTC: {reason}")]
pub struct UnreadDefault {
    /// The table, with its database.
    pub table: String,
    /// The column.
    pub column: String,
    /// Why.
    pub reason: String,
}

/// What to do about a default whose time zone is not known.
pub const HOW_TO_KNOW: &str = "its definition does not say in which time zone it is. Set upstream-time-zone in the drainer's \
    configuration to what the upstream answers to SELECT VARIABLE_VALUE FROM mysql.tidb WHERE VARIABLE_NAME = 'system_tz'";

/// A time zone of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamZone {
    name: String,
    zone: TimeZone,
}

impl UpstreamZone {
    /// From a name of the IANA database, such as `Asia/Shanghai`, or an offset, such as `+08:00`.
    ///
    /// # Errors
    /// It is neither, or this machine has no such name.
    pub fn parse(text: &str) -> Result<Self, String> {
        // As far as clocks go on earth, and as TiDB takes them.
        const FURTHEST: i32 = 14 * 60 * 60;
        let is_far =
            |zone: &TimeZone| zone.to_fixed_offset().is_ok_and(|offset| offset.seconds().abs() > FURTHEST);
        let zone = DateTimeParser::new().parse_time_zone(text).map_err(|error| error.to_string());
        let reason = match zone {
            Ok(zone) if is_far(&zone) => "it is further from UTC than any place".to_owned(),
            Ok(zone) => return Ok(Self { name: text.to_owned(), zone }),
            Err(reason) => reason,
        };
        Err(format!(
            "`{text}` is no time zone ({reason}): give a name such as Asia/Shanghai, which takes the system's time zone \
             database (package tzdata), or an offset such as +08:00"
        ))
    }

    /// As it was configured.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts the defaults of the table's columns into UTC that are in this zone. One that cannot be read stays as it is.
    pub(super) fn put_in_utc(&self, table: &mut TableInfo) {
        let has_any = |column: &ColumnInfo| !column.server_times().is_empty();
        if !table.cols.iter().any(has_any) {
            return;
        }
        for column in table.cols.as_mut_slice() {
            column.put_server_times(|time| self.utc(time));
        }
    }

    /// The instant at which clocks showed this time; `None` if they never did.
    fn utc(&self, shown: Time) -> Option<Time> {
        let Fields { year, month, day, hour, minute, second, micros } = shown.fields();
        let small = |field: u8| i8::try_from(field).ok();
        let civil = DateTime::new(
            i16::try_from(year).ok()?,
            small(month)?,
            small(day)?,
            small(hour)?,
            small(minute)?,
            small(second)?,
            i32::try_from(micros).ok()? * 1000,
        )
        .ok()?;
        let shown_in_utc = Offset::UTC.to_timestamp(civil).ok()?;
        let minus = |offset: Offset| shown_in_utc.checked_sub(offset_span(offset)).ok();
        let guess = self.zone.to_offset(shown_in_utc);
        let offset = self.zone.to_offset(minus(guess)?);
        let instant: Timestamp = minus(offset)?;
        let back = self.zone.to_offset(instant).to_datetime(instant);
        if back != civil {
            return None;
        }
        let utc = Offset::UTC.to_datetime(instant);
        let fields = Fields {
            year: u16::try_from(utc.year()).ok()?,
            month: u8::try_from(utc.month()).ok()?,
            day: u8::try_from(utc.day()).ok()?,
            hour: u8::try_from(utc.hour()).ok()?,
            minute: u8::try_from(utc.minute()).ok()?,
            second: u8::try_from(utc.second()).ok()?,
            micros,
        };
        Time::from_fields(fields, shown.fsp())
    }
}

fn offset_span(offset: Offset) -> jiff::SignedDuration {
    jiff::SignedDuration::from_secs(i64::from(offset.seconds()))
}

/// The first default of the table that is still in a zone of its own.
pub(super) fn unread(
    database: &str,
    table: &TableInfo,
    zone: Option<&UpstreamZone>,
) -> Option<UnreadDefault> {
    let column = table.public_columns().find(|column| !column.server_times().is_empty())?;
    let literals = column.server_times();
    let literal = literals.first().map(|literal| literal.text().into_owned()).unwrap_or_default();
    Some(UnreadDefault {
        table: format!("{database}.{}", table.name()),
        column: column.name().to_owned(),
        reason: match zone {
            None => HOW_TO_KNOW.to_owned(),
            Some(zone) => format!(
                "in upstream-time-zone ({}) no clock ever showed {literal:?}, so that is not the zone of this cluster",
                zone.name()
            ),
        },
    })
}

#[cfg(test)]
mod tests {
    use tidb::model::Literal;

    use super::*;

    /// Central Europe's rule of today, and New York's; neither asks the system's database.
    const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";
    const LONDON: &str = "GMT0BST,M3.5.0/1,M10.5.0";
    const AZORES: &str = "<-01>1<+00>,M3.5.0/0,M10.5.0/1";
    const NEW_YORK: &str = "EST5EDT,M3.2.0,M11.1.0";

    fn in_zone(zone: &str, shown: &str) -> Option<String> {
        let zone = UpstreamZone { name: "x".to_owned(), zone: TimeZone::posix(zone).unwrap() };
        zone.utc(Time::parse(shown, 3).unwrap()).map(|time| time.to_string())
    }

    #[test]
    fn clocks_become_instants() {
        for (zone, shown, utc) in [
            (BERLIN, "2019-01-15 12:00:00", "2019-01-15 11:00:00.000"),
            (BERLIN, "2019-07-15 00:30:00.125", "2019-07-14 22:30:00.125"),
            (NEW_YORK, "2019-12-31 23:00:00", "2020-01-01 04:00:00.000"),
            ("<+0545>-5:45", "2019-01-15 12:00:00", "2019-01-15 06:15:00.000"),
            ("UTC0", "2038-01-19 03:14:07", "2038-01-19 03:14:07.000"),
        ] {
            assert_eq!(in_zone(zone, shown).as_deref(), Some(utc), "{zone} {shown}");
        }
        // Not dates that any clock shows.
        for shown in ["2019-02-31 00:00:00", "2019-00-10 00:00:00", "2019-04-31 12:00:00"] {
            assert_eq!(in_zone(BERLIN, shown), None, "{shown}");
        }
    }

    /// What Go's `time.Date` gives for these.
    #[test]
    fn a_time_that_came_twice_is_the_one_go_takes() {
        for (zone, shown, utc) in [
            (BERLIN, "2019-10-27 02:30:00", "2019-10-27 01:30:00.000"),
            (BERLIN, "2019-10-27 01:59:59", "2019-10-26 23:59:59.000"),
            (BERLIN, "2019-10-27 03:00:00", "2019-10-27 02:00:00.000"),
            (LONDON, "2019-10-27 01:30:00", "2019-10-27 01:30:00.000"),
            (AZORES, "2019-10-27 00:30:00", "2019-10-27 00:30:00.000"),
            (NEW_YORK, "2019-11-03 01:30:00", "2019-11-03 05:30:00.000"),
        ] {
            assert_eq!(in_zone(zone, shown).as_deref(), Some(utc), "{zone} {shown}");
        }
    }

    #[test]
    fn a_time_that_was_left_out_is_none() {
        for (zone, shown) in [
            (BERLIN, "2019-03-31 02:00:00"),
            (BERLIN, "2019-03-31 02:59:59"),
            (LONDON, "2019-03-31 01:30:00"),
            (AZORES, "2019-03-31 00:30:00"),
            (NEW_YORK, "2019-03-10 02:30:00"),
        ] {
            assert_eq!(in_zone(zone, shown), None, "{zone} {shown}");
        }
        for (zone, shown, utc) in [
            (BERLIN, "2019-03-31 01:59:59", "2019-03-31 00:59:59.000"),
            (BERLIN, "2019-03-31 03:00:00", "2019-03-31 01:00:00.000"),
            (NEW_YORK, "2019-03-10 03:00:00", "2019-03-10 07:00:00.000"),
        ] {
            assert_eq!(in_zone(zone, shown).as_deref(), Some(utc), "{zone} {shown}");
        }
    }

    #[test]
    fn names_and_offsets() {
        for text in ["+08:00", "-03:30", "UTC"] {
            assert_eq!(UpstreamZone::parse(text).unwrap().name(), text);
        }
        for text in ["", "Middle/Earth", "8", "SYSTEM", "+25:00"] {
            let error = UpstreamZone::parse(text).unwrap_err();
            assert!(error.contains("Asia/Shanghai") && error.contains("+08:00"), "{error}");
        }
    }

    /// Only what is in the server's zone is put into UTC; what says so then is not read again.
    #[test]
    fn defaults_of_old_columns_only() {
        let column = |version: u64, default: &str, origin: &str| {
            let literal = |text: &str| (!text.is_empty()).then(|| Literal::from_text(text));
            let mut column =
                ColumnInfo { version, state: tidb::model::SchemaState::Public, ..ColumnInfo::default() };
            column.field_type.tp = tidb::model::tp::TIMESTAMP;
            (column.default, column.origin_default) = (literal(default), literal(origin));
            column
        };
        let winter = "2019-01-15 12:00:00";
        let mut date = column(0, winter, winter);
        date.field_type.tp = tidb::model::tp::DATETIME;
        let mut table = TableInfo {
            cols: vec![
                column(0, winter, ""),
                column(0, "CURRENT_TIMESTAMP", winter),
                column(0, "0000-00-00 00:00:00", ""),
                column(1, winter, winter),
                date,
            ]
            .into(),
            ..TableInfo::default()
        };
        assert_eq!(unread("d", &table, None).unwrap().reason, HOW_TO_KNOW);
        let zone = UpstreamZone::parse("+01:00").unwrap();
        for _ in 0..2 {
            zone.put_in_utc(&mut table);
            let text = |literal: &Option<Literal>| literal.as_ref().map(|l| l.text().into_owned());
            let shown: Vec<_> =
                table.cols.iter().map(|c| (c.version, text(&c.default), text(&c.origin_default))).collect();
            let utc = Some("2019-01-15 11:00:00".to_owned());
            let same = Some(winter.to_owned());
            assert_eq!(
                shown,
                [
                    (1, utc.clone(), None),
                    (1, Some("CURRENT_TIMESTAMP".to_owned()), utc),
                    (0, Some("0000-00-00 00:00:00".to_owned()), None),
                    (1, same.clone(), same.clone()),
                    (0, same.clone(), same),
                ]
            );
            assert_eq!(unread("d", &table, None), None);
        }
    }

    /// One that cannot be read leaves the column as it is: half of it in UTC would be worse.
    #[test]
    fn what_cannot_be_read_is_named() {
        let mut column = ColumnInfo { state: tidb::model::SchemaState::Public, ..ColumnInfo::default() };
        column.field_type.tp = tidb::model::tp::TIMESTAMP;
        column.default = Some(Literal::from_text("2019-01-15 12:00:00"));
        column.origin_default = Some(Literal::from_text("2019-03-31 02:30:00"));
        let mut table = TableInfo { cols: vec![column.clone()].into(), ..TableInfo::default() };
        let zone = UpstreamZone { name: "Europe/Berlin".to_owned(), zone: TimeZone::posix(BERLIN).unwrap() };
        zone.put_in_utc(&mut table);
        assert_eq!(table.cols.to_vec(), [column]);
        let error = unread("d", &table, Some(&zone)).unwrap().to_string();
        assert!(error.contains("upstream-time-zone (Europe/Berlin)"), "{error}");
    }
}
