//! The sections that both binaries have.

use std::path::PathBuf;

use bytesize::ByteSize;
use node::admin::AdminConfig;
use node::config::{Invalid, Validate};
use node::kafka::{KafkaConfig, Troubles};
use node::telemetry::{LogConfig, LogFormat};
use serde::{Deserialize, Serialize};
use tidb::ts::CommitTs;

use crate::claims::Claims;
use crate::follow::FollowOptions;

/// What a consumer does when the upstream declares that transactions are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GapPolicy {
    /// Stop and name the range.
    #[default]
    Stop,
    /// Log it, count it and go on: the target no longer equals the upstream.
    Continue,
}

/// The feed: which one, from where, with how much memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct FeedConfig {
    /// The feed's name, as the drainer's `topic`: the commit stream is `<topic>.commits`.
    pub topic: String,
    /// Where the target stands at the first start: it holds everything up to and including this commit_ts. Absent: it
    /// stands where the feed begins. Later starts know from the progress stored in the target.
    pub initial_commit_ts: Option<u64>,
    /// The drainer's `output.claim-check-dir` as it is to be found here, if its `large-row` is `claim-check`.
    pub claim_check_dir: Option<PathBuf>,
    /// When the upstream declares a gap: `stop` or `continue`.
    pub on_gap: GapPolicy,
}

impl Default for FeedConfig {
    fn default() -> Self {
        Self {
            topic: "sluice".to_owned(),
            initial_commit_ts: None,
            claim_check_dir: None,
            on_gap: GapPolicy::default(),
        }
    }
}

impl Validate for FeedConfig {
    fn validate(&self) -> Result<(), Invalid> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.topic.is_empty() || !self.topic.chars().all(legal) || self.topic.len() > 240 {
            let reason = "a topic's name is 1 to 240 letters, digits, dots, underscores and dashes";
            return Err(Invalid::new("feed.topic", reason));
        }
        if self.initial_commit_ts == Some(0) {
            let reason = "0 is no timestamp; leave the key out to begin where the feed begins";
            return Err(Invalid::new("feed.initial-commit-ts", reason));
        }
        Ok(())
    }
}

/// Least memory budget: below it a row of usual size does not fit its share.
const LEAST_MEMORY: ByteSize = ByteSize::mib(16);

/// Checks the memory budget.
pub(crate) fn validate_memory(budget: ByteSize) -> Result<(), Invalid> {
    if budget < LEAST_MEMORY {
        return Err(Invalid::new("memory-budget", format!("must be at least {LEAST_MEMORY}")));
    }
    Ok(())
}

/// Checks the consumer's name, which is a key in the target.
pub(crate) fn validate_name(name: &str) -> Result<(), Invalid> {
    if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
        return Err(Invalid::new("name", "must be 1 to 128 bytes without control characters"));
    }
    Ok(())
}

/// Checks that there are brokers.
pub(crate) fn validate_kafka(kafka: &KafkaConfig) -> Result<(), Invalid> {
    kafka.validate()?;
    if kafka.brokers.is_empty() {
        return Err(Invalid::new("kafka.brokers", "at least one `host:port` is needed"));
    }
    Ok(())
}

/// The log settings, whose keys are the original's.
pub(crate) fn log_config(level: &str, format: LogFormat, file: Option<&PathBuf>) -> LogConfig {
    LogConfig { level: level.to_owned(), format, file: file.cloned() }
}

/// How to follow, from the sections above.
pub(crate) fn follow_options(
    kafka: &KafkaConfig,
    feed: &FeedConfig,
    dir: PathBuf,
    memory: usize,
    until: Option<CommitTs>,
) -> anyhow::Result<FollowOptions> {
    let mut settings = kafka.settings()?;
    if !settings.iter().any(|(key, _)| key == "client.id") {
        settings.push(("client.id".to_owned(), "sluice-consumer".to_owned()));
    }
    let claims = Claims::new(feed.claim_check_dir.as_deref(), &feed.topic);
    Ok(FollowOptions {
        settings,
        troubles: Troubles::default(),
        topic: feed.topic.clone(),
        dir,
        memory,
        claims,
        until,
    })
}

/// The default admin listener on `port`.
pub(crate) fn admin_on(port: u16) -> AdminConfig {
    AdminConfig::on(format!("127.0.0.1:{port}"))
}
