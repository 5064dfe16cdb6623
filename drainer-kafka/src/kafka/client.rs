//! Settings of the Kafka clients, and librdkafka's own log lines as ours.

use node::kafka::{KafkaConfig, Troubles};
use rdkafka::ClientContext;
use rdkafka::admin::AdminClient;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::LogError;

/// Sends librdkafka's messages to our log.
#[derive(Clone, Debug)]
pub struct LogContext {
    troubles: Troubles,
}

impl LogContext {
    /// A broker has answered.
    pub(super) fn answered(&self) {
        self.troubles.answered();
    }
}

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.troubles.logged(level as i32, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            // Not trouble: a reader has seen everything there is.
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            Some(code) => {
                self.troubles.reported(&format!("{code:?}"), code == RDKafkaErrorCode::Fatal, reason);
            }
            None => self.troubles.reported(&error.to_string(), false, reason),
        }
    }
}

impl ConsumerContext for LogContext {}

/// Makes clients.
#[derive(Clone)]
pub struct Kafka {
    base: ClientConfig,
    context: LogContext,
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka").field("brokers", &self.base.get("bootstrap.servers")).finish_non_exhaustive()
    }
}

impl Kafka {
    /// From the `[kafka]` section; `client_id` is what brokers log, `troubles` what all clients of this process complain of.
    ///
    /// # Errors
    /// A secret cannot be read.
    pub fn new(config: &KafkaConfig, client_id: &str, troubles: &Troubles) -> anyhow::Result<Self> {
        let mut base = ClientConfig::new();
        for (key, value) in config.settings()? {
            base.set(key, value);
        }
        base.set("client.id", client_id);
        base.set_log_level(RDKafkaLogLevel::Warning);
        Ok(Self { base, context: LogContext { troubles: troubles.clone() } })
    }

    pub(super) fn context(&self) -> LogContext {
        self.context.clone()
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
        BaseConsumer::from_config_and_context(&config, self.context())
            .map_err(LogError::kafka("making a reader"))
    }

    pub(super) fn admin(&self) -> Result<AdminClient<LogContext>, LogError> {
        AdminClient::from_config_and_context(&self.base, self.context())
            .map_err(LogError::kafka("making an admin client"))
    }
}
