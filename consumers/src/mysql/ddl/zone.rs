//! The time zone of the upstream's session, where a job tells it: those that go over rows do (`reorg_meta.location`), others
//! do not. Pure.

use crate::event::Ddl;

/// A time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Zone(String);

impl Zone {
    /// The zone in which the job's session was.
    pub(super) fn of(ddl: &Ddl) -> Option<Self> {
        let job: serde_json::Value = serde_json::from_slice(ddl.job.as_ref()?).ok()?;
        let location = &job["reorg_meta"]["location"];
        match location["name"].as_str()? {
            // An offset alone, in seconds.
            "" => {
                let minutes = location["offset"].as_i64()? / 60;
                let sign = if minutes < 0 { '-' } else { '+' };
                Some(Self(format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)))
            }
            // The upstream host's own.
            "Local" | "System" | "SYSTEM" => None,
            name => Some(Self(name.to_owned())),
        }
    }

    /// True for the zone in which our sessions are.
    pub(super) fn is_utc(&self) -> bool {
        matches!(self.0.as_str(), "+00:00" | "UTC" | "Etc/UTC")
    }

    /// As `time_zone` takes it.
    pub(super) fn name(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_names_or_offsets() {
        let of = |job: &str| {
            Zone::of(&Ddl {
                seq: 1,
                commit_ts: tidb::ts::CommitTs::new(2),
                start_ts: tidb::ts::StartTs::new(1),
                entry: Default::default(),
                before: vec![],
                after: vec![],
                job: Some(job.to_owned().into()),
                after_position: None,
            })
        };
        let located = |location: &str| of(&format!(r#"{{"reorg_meta":{{"location":{location}}}}}"#));
        for (location, name, utc) in [
            (r#"{"name":"Asia/Shanghai","offset":0}"#, Some("Asia/Shanghai"), false),
            (r#"{"name":"","offset":28800}"#, Some("+08:00"), false),
            (r#"{"name":"","offset":-12600}"#, Some("-03:30"), false),
            (r#"{"name":"","offset":0}"#, Some("+00:00"), true),
            (r#"{"name":"Etc/UTC","offset":0}"#, Some("Etc/UTC"), true),
            (r#"{"name":"Local","offset":0}"#, None, false),
            ("null", None, false),
        ] {
            let zone = located(location);
            assert_eq!(zone.as_ref().map(Zone::name), name, "{location}");
            assert_eq!(zone.is_some_and(|zone| zone.is_utc()), utc, "{location}");
        }
        assert_eq!(of(r#"{"reorg_meta":null}"#), None);
    }
}
