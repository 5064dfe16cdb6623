//! A whole site: infrastructure, our processes, their configurations.
//!
//! [`Site::new`] starts etcd, Kafka and MariaDB and fixes every port, folder and name; it starts none of our processes, so
//! that a test (or the demo) starts, kills and restarts exactly those it is about. Each is a [`Program`] that always has
//! the same port and folder: starting it again is a restart.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{
    admin,
    authority::Identity,
    binaries,
    etcd::Etcd,
    kafka::{self, Kafka},
    mariadb::{self, MariaDb},
    ports,
    process::{Process, Program},
    scratch::Scratch,
};
use crate::recording::Recording;

/// The name under which MariaDB's password is given to `apply-mysql`.
const PASSWORD_VARIABLE: &str = "SLUICE_DOWNSTREAM_PASSWORD";
/// The same for Kafka's password, where it wants one.
const KAFKA_PASSWORD: &str = "SLUICE_KAFKA_PASSWORD";

/// How fast the recording is played.
#[derive(Clone, Copy, Debug)]
pub enum Speed {
    /// As it was recorded, or so many times as fast.
    Times(f64),
    /// As fast as TiDB's guarantees allow.
    Max,
}

/// What `export-files` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values.
    Csv,
    /// One JSON document a line.
    Jsonl,
}

/// One of our processes: how to start it, and where it tells how it is.
#[derive(Clone, Debug)]
pub struct Service {
    /// How to start it.
    pub program: Program,
    /// Its admin listener, `host:port`.
    pub admin: String,
}

impl Service {
    /// Starts it and waits until it says that it does its work.
    pub async fn start(&self) -> Result<Process> {
        let mut process = self.program.start()?;
        self.await_ready(&mut process).await?;
        Ok(process)
    }

    /// Waits until it says that it does its work.
    pub async fn await_ready(&self, process: &mut Process) -> Result<()> {
        process.ready("readiness", async || admin::is_ready(&self.admin).await.then_some(())).await
    }

    fn given(self, variable: &str, value: &str) -> Self {
        Self { program: self.program.env(variable, value), admin: self.admin }
    }

    /// The same with more arguments.
    pub fn with(&self, args: &[&str]) -> Self {
        Self { program: self.program.clone().args(args), admin: self.admin.clone() }
    }
}

fn files(identity: &Identity) -> String {
    format!("ssl-ca = {:?}\nssl-cert = {:?}\nssl-key = {:?}\n", identity.ca, identity.cert, identity.key)
}

/// The infrastructure and the plan of a site.
#[derive(Debug)]
pub struct Site {
    /// Its etcd, behind the simulated PD.
    pub etcd: Etcd,
    /// Its Kafka, perhaps shared with other tests.
    pub kafka: Kafka,
    /// The downstream database.
    pub mariadb: MariaDb,
    /// What services prove themselves with, where they have to; whoever replaces it is not let in.
    pub identity: Option<Identity>,
    topic: String,
    pd: String,
    tikv: String,
    tidb_status: String,
    pumps: Vec<Ports>,
    drainer: Ports,
    apply: String,
    export: String,
    recording: Recording,
    upstream: Vec<String>,
    // Last, so that the processes above are gone before it is removed.
    scratch: Scratch,
}

#[derive(Clone, Debug)]
struct Ports {
    addr: String,
    admin: String,
}

impl Ports {
    fn free() -> Result<Self> {
        Ok(Self { addr: ports::free_address()?, admin: ports::free_address()? })
    }
}

impl Site {
    /// Starts etcd, MariaDB and, unless the run has a shared one, Kafka. `name` ends up in folder and topic names.
    pub async fn new(name: &str, recording: &Recording) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let kafka = Kafka::shared(&scratch).await?;
        Self::around(name, recording, scratch, kafka, None).await
    }

    /// The same with a Kafka of its own, to stop and restart.
    pub async fn with_own_kafka(name: &str, recording: &Recording) -> Result<Self> {
        Self::in_scratch(name, recording, Scratch::new(name)?).await
    }

    /// The same in a given folder.
    pub async fn in_scratch(name: &str, recording: &Recording, scratch: Scratch) -> Result<Self> {
        let kafka = Kafka::start(&scratch).await?;
        Self::around(name, recording, scratch, kafka, None).await
    }

    /// One where Kafka and MariaDB let services in by TLS only, with a certificate and a password.
    pub async fn secured(name: &str, recording: &Recording) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let identity = Identity::new(&scratch, name)?;
        let kafka = Kafka::start_secured(&scratch, &identity).await?;
        Self::around(name, recording, scratch, kafka, Some(identity)).await
    }

    async fn around(
        name: &str,
        recording: &Recording,
        scratch: Scratch,
        kafka: Kafka,
        identity: Option<Identity>,
    ) -> Result<Self> {
        let mariadb = async {
            match &identity {
                Some(identity) => MariaDb::start_secured(&scratch, identity).await,
                None => MariaDb::start(&scratch).await,
            }
        };
        let (etcd, mariadb) = tokio::try_join!(Etcd::start(&scratch), mariadb)?;
        Ok(Self {
            identity,
            etcd,
            kafka,
            mariadb,
            topic: format!("{name}-{:08x}", rand::random::<u32>()),
            pd: ports::free_address()?,
            tikv: ports::free_address()?,
            tidb_status: ports::free_address()?,
            pumps: (0..recording.pumps()).map(|_| Ports::free()).collect::<Result<_>>()?,
            drainer: Ports::free()?,
            apply: ports::free_address()?,
            export: ports::free_address()?,
            recording: recording.clone(),
            upstream: Vec::new(),
            scratch,
        })
    }

    /// Where everything of this site is: data, configurations, logs.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Folder and processes stay when this value goes, if the folder is a lasting one.
    pub fn let_go(&self) {
        self.scratch.let_go();
    }

    /// The row topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The recording that is played.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// `host:port` of the simulated PD.
    pub fn pd(&self) -> &str {
        &self.pd
    }

    /// `host:port` of the simulated TiDB's status port.
    pub fn tidb_status(&self) -> &str {
        &self.tidb_status
    }

    /// How many pumps there are: as many as were recorded.
    pub fn pump_count(&self) -> usize {
        self.pumps.len()
    }

    /// Where `export-files` writes.
    pub fn exported(&self) -> PathBuf {
        self.folder().join("exported")
    }

    /// The simulated TiDB, TiKV and PD. It plays once all pumps are online, and serves on afterwards.
    pub fn simulator(&self, speed: Speed) -> Result<Program> {
        let speed = match speed {
            Speed::Times(factor) => factor.to_string(),
            Speed::Max => "max".into(),
        };
        Ok(Program::new("tidb-sim", binaries::path("tidb-sim")?, &self.scratch)
            .arg("play")
            .arg(self.recording.folder())
            .args(["--etcd", &format!("http://{}", self.etcd.address())])
            .args(["--listen", &self.pd, "--tikv-listen", &self.tikv, "--status-listen", &self.tidb_status])
            .args(["--wait-pumps", &self.pumps.len().to_string(), "--speed", &speed])
            .args(["--output", "json"])
            .args(&self.upstream))
    }

    /// The same site with more arguments for the simulator.
    pub fn with_upstream(mut self, args: &[&str]) -> Self {
        self.upstream.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Starts the simulator and waits until its PD answers.
    pub async fn start_simulator(&self, speed: Speed) -> Result<Process> {
        let mut process = self.simulator(speed)?.start()?;
        process.ready("answer of PD", async || super::pd::timestamp(&self.pd).await.ok().map(drop)).await?;
        Ok(process)
    }

    /// Pump number `n`, from 0; `extra` is added to its configuration (top-level keys first).
    pub fn pump(&self, n: usize, extra: &str) -> Result<Service> {
        let ports = self.pumps.get(n).with_context(|| format!("there are {} pumps", self.pumps.len()))?;
        let name = format!("pump-{n}");
        let config = format!(
            "addr = {:?}\nnode-id = {name:?}\npd-urls = \"http://{}\"\ndata-dir = {:?}\n{extra}\n[storage]\nstop-write-at-available-space = \"1 MiB\"\n\n[admin]\naddr = {:?}\n",
            ports.addr,
            self.pd,
            self.folder().join(&name),
            ports.admin
        );
        self.service(&name, "pump", &config, &ports.admin)
    }

    /// The drainer's data-dir.
    pub fn drainer_data(&self) -> PathBuf {
        self.folder().join("drainer")
    }

    /// The drainer, from the beginning; `extra` is added to its configuration (top-level keys first).
    pub fn drainer(&self, extra: &str) -> Result<Service> {
        self.drainer_from(0, extra)
    }

    /// The same, beginning after this commit_ts; −1: at the savepoint in [`Self::drainer_data`], else now.
    pub fn drainer_from(&self, initial_commit_ts: i64, extra: &str) -> Result<Service> {
        self.drainer_named("drainer", &self.drainer, initial_commit_ts, extra)
    }

    /// A second drainer for the same feed.
    pub fn second_drainer(&self, extra: &str) -> Result<Service> {
        self.drainer_named("drainer-2", &Ports::free()?, 0, extra)
    }

    fn drainer_named(&self, id: &str, ports: &Ports, initial_commit_ts: i64, extra: &str) -> Result<Service> {
        let config = format!(
            "addr = {:?}\nnode-id = {id:?}\npd-urls = \"http://{}\"\ndata-dir = {:?}\ninitial-commit-ts = {initial_commit_ts}\n{extra}\n\
             [syncer.to]\nkafka-addrs = {:?}\ntopic-name = {:?}\n\n[kafka]\n{}\n[admin]\naddr = {:?}\n",
            ports.addr,
            self.pd,
            self.folder().join(id),
            self.kafka.brokers(),
            self.topic,
            self.kafka_login(),
            ports.admin
        );
        Ok(self.service(id, "drainer-kafka", &config, &ports.admin)?.given(KAFKA_PASSWORD, kafka::PASSWORD))
    }

    /// The data directory of `apply-mysql`.
    pub fn apply_data(&self) -> PathBuf {
        self.folder().join("apply-mysql")
    }

    /// `apply-mysql` into this site's MariaDB.
    ///
    /// A recovered table comes back without rows, as it did in the TiDB that was recorded, whose storage had deleted them at
    /// once.
    pub fn apply(&self) -> Result<Service> {
        self.apply_with("recover-table = \"empty\"")
    }

    /// The same with another `[ddl]` section.
    pub fn apply_with(&self, ddl: &str) -> Result<Service> {
        let (user, security) = match &self.identity {
            Some(identity) => (mariadb::SECURED_USER, format!("[mysql.security]\n{}", files(identity))),
            None => (mariadb::USER, String::new()),
        };
        let config = format!(
            "data-dir = {:?}\n\n{}\n[apply]\nlease-ttl = \"2s\"\n\n[ddl]\n{ddl}\n\n[mysql]\nhost = \"127.0.0.1\"\nport = {}\nuser = {user:?}\n\
             password = \"env:{PASSWORD_VARIABLE}\"\n{security}\n[admin]\naddr = {:?}\n",
            self.apply_data(),
            self.feed(),
            self.mariadb.port(),
            self.apply
        );
        let service = self.service("apply-mysql", "apply-mysql", &config, &self.apply)?;
        Ok(service.given(PASSWORD_VARIABLE, mariadb::PASSWORD).given(KAFKA_PASSWORD, kafka::PASSWORD))
    }

    /// `export-files` into [`Self::exported`].
    pub fn export(&self, format: Format) -> Result<Service> {
        let format = match format {
            Format::Csv => "csv",
            Format::Jsonl => "jsonl",
        };
        let config = format!(
            "{}\n[output]\ndir = {:?}\nformat = {format:?}\nflush-interval = \"1s\"\n\n[admin]\naddr = {:?}\n",
            self.feed(),
            self.exported(),
            self.export
        );
        let service = self.service("export-files", "export-files", &config, &self.export)?;
        Ok(service.given(KAFKA_PASSWORD, kafka::PASSWORD))
    }

    fn feed(&self) -> String {
        format!(
            "[feed]\ntopic = {:?}\n\n[kafka]\nbrokers = [{:?}]\n{}",
            self.topic,
            self.kafka.brokers(),
            self.kafka_login()
        )
    }

    /// Keys of `[kafka]` beside the address.
    fn kafka_login(&self) -> String {
        let Some(identity) = &self.identity else { return String::new() };
        format!(
            "security-protocol = \"sasl_ssl\"\nsasl-mechanism = \"PLAIN\"\nsasl-username = {:?}\n\
             sasl-password = \"env:{KAFKA_PASSWORD}\"\n{}",
            kafka::USER,
            files(identity)
        )
    }

    /// The infrastructure's processes.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        [self.etcd.process(), self.mariadb.process()].into_iter().chain(self.kafka.process())
    }

    /// Runs binlogctl against this site and returns what it prints.
    pub async fn binlogctl(&self, args: &[&str]) -> Result<String> {
        let output = tokio::process::Command::new(binaries::path("binlogctl")?)
            .args(["-pd-urls", &format!("http://{}", self.pd)])
            .args(args)
            .output()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("binlogctl {args:?} {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(text)
    }

    fn service(&self, name: &str, binary: &str, config: &str, admin: &str) -> Result<Service> {
        let file = self.folder().join(format!("{name}.toml"));
        std::fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
        // A wrong zone in the environment must not matter to anyone.
        let program = Program::new(name, binaries::path(binary)?, &self.scratch)
            .arg("--config")
            .arg(&file)
            .env("TZ", "Pacific/Chatham");
        Ok(Service { program, admin: admin.to_owned() })
    }
}
