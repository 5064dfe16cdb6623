//! Settings of the Kafka clients, and librdkafka's own log lines as ours.

use node::kafka::KafkaConfig;
use rdkafka::ClientContext;
use rdkafka::admin::AdminClient;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tracing::{debug, error, info, warn};

use super::LogError;

/// Sends librdkafka's messages to our log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogContext;

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                error!(facility, "librdkafka: {message}");
            }
            RDKafkaLogLevel::Warning => warn!(facility, "librdkafka: {message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => info!(facility, "librdkafka: {message}"),
            RDKafkaLogLevel::Debug => debug!(facility, "librdkafka: {message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Not trouble: a reader has seen everything there is.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        warn!(%error, reason, "kafka client reports trouble");
    }
}

impl ConsumerContext for LogContext {}

/// Makes clients.
#[derive(Clone)]
pub struct Kafka {
    base: ClientConfig,
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka").field("brokers", &self.base.get("bootstrap.servers")).finish_non_exhaustive()
    }
}

impl Kafka {
    /// From the `[kafka]` section; `client_id` is what brokers log.
    ///
    /// # Errors
    /// A secret cannot be read.
    pub fn new(config: &KafkaConfig, client_id: &str) -> anyhow::Result<Self> {
        let mut base = ClientConfig::new();
        for (key, value) in config.settings()? {
            base.set(key, value);
        }
        base.set("client.id", client_id);
        base.set_log_level(RDKafkaLogLevel::Warning);
        Ok(Self { base })
    }

    pub(super) fn base(&self) -> ClientConfig {
        self.base.clone()
    }

    /// A reader that is told which partitions to read; it commits nothing.
    pub(super) fn reader(&self, read_committed: bool) -> Result<BaseConsumer<LogContext>, LogError> {
        let mut config = self.base();
        config
            // librdkafka assigns nothing without a group name; nothing is ever stored under it.
            .set("group.id", "sluice-drainer")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("allow.auto.create.topics", "false")
            .set("check.crcs", "true")
            .set("isolation.level", if read_committed { "read_committed" } else { "read_uncommitted" });
        BaseConsumer::from_config_and_context(&config, LogContext).map_err(LogError::kafka("making a reader"))
    }

    pub(super) fn admin(&self) -> Result<AdminClient<LogContext>, LogError> {
        AdminClient::from_config_and_context(&self.base, LogContext)
            .map_err(LogError::kafka("making an admin client"))
    }
}
