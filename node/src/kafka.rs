//! The `[kafka]` section, shared by everything that talks to Kafka, as settings of librdkafka. (The library itself is not a
//! dependency here.)

mod troubles;

pub use self::troubles::Troubles;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Invalid, Secret, SecretError, Validate};

/// Where Kafka is and how to log in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct KafkaConfig {
    /// `host:port` of some brokers; the others are found through them.
    pub brokers: Vec<String>,
    /// `plaintext`, `ssl`, `sasl_plaintext`, `sasl_ssl`. Absent: told from what else is set.
    pub security_protocol: Option<SecurityProtocol>,
    /// `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`.
    pub sasl_mechanism: Option<SaslMechanism>,
    /// User name of SASL.
    pub sasl_username: Option<String>,
    /// Password of SASL; `env:`, `file:` or literal.
    pub sasl_password: Option<Secret>,
    /// PEM file of the authorities that sign the brokers' certificates; absent: the system's.
    pub ssl_ca: Option<PathBuf>,
    /// PEM file of our certificate chain.
    pub ssl_cert: Option<PathBuf>,
    /// PEM file of its key.
    pub ssl_key: Option<PathBuf>,
    /// Password of the key; `env:`, `file:` or literal.
    pub ssl_key_password: Option<Secret>,
    /// Any further settings of librdkafka, except those that the promises rest on.
    pub properties: BTreeMap<String, String>,
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum SecurityProtocol {
    Plaintext,
    Ssl,
    SaslPlaintext,
    SaslSsl,
}

/// How a user proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum SaslMechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl SecurityProtocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    const fn has_ssl(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    const fn has_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

impl SaslMechanism {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Settings that may not be given as properties: they have keys of their own, or order and completeness rest on them.
const RESERVED: [&str; 25] = [
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "check.crcs",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "group.id",
    "isolation.level",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "metadata.broker.list",
    "partitioner",
    "request.required.acks",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "transactional.id",
];

impl KafkaConfig {
    /// The settings for librdkafka, secrets revealed: not for logs. Services add theirs after these.
    pub fn settings(&self) -> Result<Vec<(String, String)>, SecretError> {
        let mut settings = vec![("bootstrap.servers".to_owned(), self.brokers.join(","))];
        let mut put = |key: &str, value: Option<String>| {
            settings.extend(value.map(|value| (key.to_owned(), value)));
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let secret = |secret: &Option<Secret>| secret.as_ref().map(Secret::reveal).transpose();
        put("security.protocol", Some(self.protocol().name().to_owned()));
        if self.protocol().has_sasl() {
            put("sasl.mechanism", self.sasl_mechanism.map(|mechanism| mechanism.name().to_owned()));
            put("sasl.username", self.sasl_username.clone());
            put("sasl.password", secret(&self.sasl_password)?);
        }
        if self.protocol().has_ssl() {
            put("ssl.ca.location", path(&self.ssl_ca));
            put("ssl.certificate.location", path(&self.ssl_cert));
            put("ssl.key.location", path(&self.ssl_key));
            put("ssl.key.password", secret(&self.ssl_key_password)?);
        }
        settings.extend(self.properties.iter().map(|(key, value)| (key.clone(), value.clone())));
        Ok(settings)
    }

    /// As configured, or told from what else is set.
    fn protocol(&self) -> SecurityProtocol {
        let ssl = self.ssl_ca.is_some() || self.ssl_cert.is_some();
        self.security_protocol.unwrap_or(match (self.sasl_mechanism.is_some(), ssl) {
            (false, false) => SecurityProtocol::Plaintext,
            (false, true) => SecurityProtocol::Ssl,
            (true, false) => SecurityProtocol::SaslPlaintext,
            (true, true) => SecurityProtocol::SaslSsl,
        })
    }
}

impl Validate for KafkaConfig {
    fn validate(&self) -> Result<(), Invalid> {
        if self.brokers.is_empty() {
            return Err(Invalid::new("kafka.brokers", "is empty: name at least one host:port"));
        }
        for broker in &self.brokers {
            let port = broker
                .rsplit_once(':')
                .filter(|(host, _)| !host.is_empty())
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) || broker.contains(',') {
                return Err(Invalid::new("kafka.brokers", format!("`{broker}` is not host:port")));
            }
        }
        let protocol = self.protocol();
        if protocol.has_sasl() {
            for (field, missing) in [
                ("sasl-mechanism", self.sasl_mechanism.is_none()),
                ("sasl-username", self.sasl_username.is_none()),
                ("sasl-password", self.sasl_password.is_none()),
            ] {
                if missing {
                    return Err(Invalid::new(
                        format!("kafka.{field}"),
                        format!("is needed for security-protocol {}", protocol.name()),
                    ));
                }
            }
        } else if self.sasl_mechanism.is_some()
            || self.sasl_username.is_some()
            || self.sasl_password.is_some()
        {
            return Err(Invalid::new(
                "kafka.security-protocol",
                format!("`{}` would not use the sasl- keys that are set", protocol.name()),
            ));
        }
        if !protocol.has_ssl() && (self.ssl_ca.is_some() || self.ssl_cert.is_some()) {
            return Err(Invalid::new(
                "kafka.security-protocol",
                format!("`{}` would not use the ssl- keys that are set", protocol.name()),
            ));
        }
        if self.ssl_cert.is_some() != self.ssl_key.is_some() {
            let missing = if self.ssl_key.is_none() { "ssl-key" } else { "ssl-cert" };
            return Err(Invalid::new(format!("kafka.{missing}"), "ssl-cert and ssl-key go together"));
        }
        if let Some(key) = self.properties.keys().find(|key| RESERVED.contains(&key.as_str())) {
            return Err(Invalid::new(
                format!("kafka.properties.\"{key}\""),
                "cannot be set here: it has a key of its own, or order and completeness rest on it",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn settings(text: &str) -> Vec<(String, String)> {
        let config: KafkaConfig = parse(text, "kafka").unwrap();
        config.validate().unwrap();
        config.settings().unwrap()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn plaintext() {
        assert_eq!(
            settings("brokers = [\"a:9092\", \"b:9092\"]\n[properties]\n\"linger.ms\" = \"5\""),
            pairs(&[
                ("bootstrap.servers", "a:9092,b:9092"),
                ("security.protocol", "plaintext"),
                ("linger.ms", "5")
            ])
        );
    }

    #[test]
    fn sasl_over_tls() {
        let text = "brokers = [\"a:9093\"]\nsasl-mechanism = \"SCRAM-SHA-512\"\nsasl-username = \"u\"\n\
                    sasl-password = \"p\"\nssl-ca = \"/ca.pem\"";
        assert_eq!(
            settings(text),
            pairs(&[
                ("bootstrap.servers", "a:9093"),
                ("security.protocol", "sasl_ssl"),
                ("sasl.mechanism", "SCRAM-SHA-512"),
                ("sasl.username", "u"),
                ("sasl.password", "p"),
                ("ssl.ca.location", "/ca.pem"),
            ])
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, field) in [
            ("", "kafka.brokers"),
            ("brokers = [\"a\"]", "kafka.brokers"),
            ("brokers = [\"a:1,b:2\"]", "kafka.brokers"),
            ("brokers = [\"a:1\"]\nsasl-mechanism = \"PLAIN\"", "kafka.sasl-username"),
            (
                "brokers = [\"a:1\"]\nsecurity-protocol = \"ssl\"\nsasl-username = \"u\"",
                "kafka.security-protocol",
            ),
            (
                "brokers = [\"a:1\"]\nsecurity-protocol = \"plaintext\"\nssl-ca = \"c\"",
                "kafka.security-protocol",
            ),
            ("brokers = [\"a:1\"]\nssl-cert = \"c\"", "kafka.ssl-key"),
            (
                "brokers = [\"a:1\"]\n[properties]\n\"isolation.level\" = \"x\"",
                "kafka.properties.\"isolation.level\"",
            ),
        ] {
            let config: KafkaConfig = parse(text, "kafka").unwrap();
            assert_eq!(config.validate().unwrap_err().field, field, "{text}");
        }
        assert!(
            parse::<KafkaConfig>("sasl-mechanism = \"GSSAPI\"", "k")
                .unwrap_err()
                .to_string()
                .contains("PLAIN")
        );
    }
}
