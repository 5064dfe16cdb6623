//! A real Kafka broker.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use rdkafka::{
    ClientConfig,
    admin::AdminClient,
    client::DefaultClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{
    authority::Identity,
    ports,
    process::{Process, Program},
    scratch::{self, Scratch},
};

/// Where `with-kafka` leaves the address of the broker it started.
pub const SHARED: &str = "SLUICE_TEST_KAFKA";

/// A KRaft broker: one of its own, or the run's shared one.
#[derive(Debug)]
pub struct Kafka {
    brokers: String,
    secured: Option<String>,
    process: Option<Process>,
}

/// Who may come in at a secured listener, besides having a certificate.
pub const USER: &str = "sluice";
/// And the password of SASL's PLAIN.
pub const PASSWORD: &str = "sesame; \"open\"";

impl Kafka {
    /// The run's shared broker; where there is none, a new one in `scratch`.
    pub async fn shared(scratch: &Scratch) -> Result<Self> {
        match std::env::var(SHARED) {
            Ok(brokers) => Ok(Self { brokers, secured: None, process: None }),
            Err(_) => Self::start(scratch).await,
        }
    }

    /// Starts one in `scratch` and waits until it answers.
    pub async fn start(scratch: &Scratch) -> Result<Self> {
        Self::start_with(scratch, None).await
    }

    /// The same with a second listener for the services: TLS with certificates on both sides, and a login. The tests
    /// themselves come in at the plain one.
    pub async fn start_secured(scratch: &Scratch, identity: &Identity) -> Result<Self> {
        Self::start_with(scratch, Some(identity)).await
    }

    async fn start_with(scratch: &Scratch, identity: Option<&Identity>) -> Result<Self> {
        let home = home()?;
        let folder = scratch.path();
        scratch::copy_tree(&home.join("formatted"), &folder.join("kafka"))?;
        let (brokers, controller) = (ports::free_address()?, ports::free_address()?);
        let mut properties = include_str!("../../kafka/server.properties").to_owned();
        let mut listeners = format!("PLAINTEXT://{brokers},CONTROLLER://{controller}");
        let mut secured = None;
        if let Some(identity) = identity {
            let address = ports::free_address()?;
            listeners = format!("{listeners},SECURED://{address}");
            properties.push_str(&secured_listener(identity));
            secured = Some(address);
        }
        writeln!(properties, "listeners={listeners}")?;
        writeln!(properties, "advertised.listeners={listeners}")?;
        writeln!(properties, "controller.quorum.voters=1@{controller}")?;
        writeln!(properties, "log.dirs={}", folder.join("kafka").display())?;
        let file = folder.join("kafka.properties");
        std::fs::write(&file, properties)?;
        let class_path =
            std::fs::read_to_string(home.join("classpath")).context("read Kafka's class path")?;
        let program = Program::new("kafka", "java", scratch)
            .args(["-Xms96m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg(format!("-XX:SharedArchiveFile={}", home.join("classes.jsa").display()))
            .arg(format!("-Dlog4j2.configurationFile=file:{}", home.join("log4j2.properties").display()))
            .args(["-cp", &class_path, "kafka.Kafka"])
            .arg(&file);
        let mut kafka = Self { brokers, secured, process: Some(program.start()?) };
        kafka.await_answer().await?;
        Ok(kafka)
    }

    /// `host:port` for the services, as `bootstrap.servers` wants it: the secured listener if there is one.
    pub fn brokers(&self) -> &str {
        self.secured.as_ref().unwrap_or(&self.brokers)
    }

    /// Client settings: its address, and no chatter about it being away.
    pub fn client(&self) -> ClientConfig {
        client(&self.brokers)
    }

    /// An admin client of it.
    pub fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.client().create()?)
    }

    /// Its process, unless it is the run's shared one.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Stops it as an operator would; its data stays. The shared broker is nobody's to stop.
    pub async fn stop(&mut self) -> Result<()> {
        self.own()?.stop().await.map(drop)
    }

    /// Starts it again on the same port with the same data.
    pub async fn restart(&mut self) -> Result<()> {
        let process = self.own()?;
        process.kill().await?;
        *process = process.program().start()?;
        self.await_answer().await
    }

    fn own(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("this is the run's shared broker; start one with Kafka::start")
    }

    async fn await_answer(&mut self) -> Result<()> {
        let settings = self.client();
        self.own()?
            .ready("answer", async || {
                let settings = settings.clone();
                // librdkafka waits for the answer; the runtime must not.
                let asked = tokio::task::spawn_blocking(move || {
                    let consumer: BaseConsumer = settings.create().ok()?;
                    let metadata = consumer.fetch_metadata(None, Duration::from_secs(1)).ok()?;
                    (!metadata.brokers().is_empty()).then_some(())
                });
                asked.await.ok().flatten()
            })
            .await
    }
}

/// A later line of a properties file replaces an earlier one of the same name.
fn secured_listener(identity: &Identity) -> String {
    let quoted = PASSWORD.replace('\\', "\\\\").replace('"', "\\\\\"");
    format!(
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL\n\
         ssl.keystore.type=PEM\nssl.keystore.location={}\n\
         ssl.truststore.type=PEM\nssl.truststore.location={}\n\
         listener.name.secured.ssl.client.auth=required\n\
         sasl.enabled.mechanisms=PLAIN\n\
         listener.name.secured.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
         required user_{USER}=\"{quoted}\";\n",
        identity.both.display(),
        identity.ca.display(),
    )
}

/// Client settings for a broker at `brokers`.
pub fn client(brokers: &str) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", brokers)
        .set("reconnect.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "200")
        .set_log_level(RDKafkaLogLevel::Emerg);
    settings
}

/// The folder of the broker's jars.
pub fn home() -> Result<PathBuf> {
    scratch::prepared("kafka/4.3.1")
}
