//! A real MariaDB.

use std::{fmt::Write as _, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result};
use mysql_async::{Conn, Opts, OptsBuilder, prelude::Queryable as _};

use super::{
    authority::Identity,
    ports,
    process::{Process, Program},
    scratch::{self, Scratch},
};

/// The account that `apply-mysql` and the tests use.
pub const USER: &str = "sluice";
/// Its password.
pub const PASSWORD: &str = "down'stream \"1\"";

/// An account that gets in with a client certificate only, on a server that has one; same password.
pub const SECURED_USER: &str = "secured";

/// A MariaDB server with an account that may do everything. Its default time zone is an odd one on purpose: whoever
/// forgets to state the session's zone is found out.
#[derive(Debug)]
pub struct MariaDb {
    port: u16,
    process: Process,
}

impl MariaDb {
    /// Starts one in `scratch` and waits until it answers.
    pub async fn start(scratch: &Scratch) -> Result<Self> {
        Self::start_with(scratch, None).await
    }

    /// The same with TLS for those who ask for it.
    pub async fn start_secured(scratch: &Scratch, identity: &Identity) -> Result<Self> {
        Self::start_with(scratch, Some(identity)).await
    }

    async fn start_with(scratch: &Scratch, identity: Option<&Identity>) -> Result<Self> {
        let template = scratch::prepared(&format!("mariadb/{}", version().await?))?;
        scratch::copy_tree(&template.join("data"), &scratch.path().join("mariadb"))?;
        let port = ports::free()?;
        let folder = scratch.path().display();
        std::fs::create_dir_all(format!("{folder}/mariadb-tmp"))?;
        std::fs::write(
            format!("{folder}/mariadb-init.sql"),
            format!(
                "CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{0}';\nGRANT ALL ON *.* TO '{USER}'@'%';\n\
                 CREATE USER IF NOT EXISTS '{SECURED_USER}'@'%' IDENTIFIED BY '{0}' REQUIRE X509;\n\
                 GRANT ALL ON *.* TO '{SECURED_USER}'@'%';\n",
                PASSWORD.replace('\'', "''")
            ),
        )?;
        let mut options = String::from("[mariadbd]\n");
        for (name, value) in [
            ("datadir", format!("{folder}/mariadb")),
            // A server that starts deletes the temporary tables it finds, those of others too.
            ("tmpdir", format!("{folder}/mariadb-tmp")),
            ("socket", format!("{folder}/mariadb.sock")),
            ("pid-file", format!("{folder}/mariadb.pid")),
            ("init-file", format!("{folder}/mariadb-init.sql")),
            ("port", port.to_string()),
            ("bind-address", "127.0.0.1".into()),
            ("character-set-server", "utf8mb4".into()),
            ("default-time-zone", "+05:30".into()),
            ("max-allowed-packet", "64M".into()),
            ("innodb-buffer-pool-size", "64M".into()),
            ("innodb-log-file-size", "8M".into()),
            ("innodb-flush-log-at-trx-commit", "2".into()),
            ("skip-name-resolve", "1".into()),
        ] {
            writeln!(options, "{name}={value}")?;
        }
        if let Some(identity) = identity {
            writeln!(options, "ssl-ca={}", identity.ca.display())?;
            writeln!(options, "ssl-cert={}\nssl-key={}", identity.cert.display(), identity.key.display())?;
        }
        let file = format!("{folder}/mariadb.cnf");
        std::fs::write(&file, options)?;
        let mut program = Program::new("mariadb", "mariadbd", scratch).arg(format!("--defaults-file={file}"));
        if std::fs::metadata("/proc/self")?.uid() == 0 {
            program = program.arg("--user=root");
        }
        let mut mariadb = Self { port, process: program.start()? };
        mariadb.await_answer().await?;
        Ok(mariadb)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A session in UTC.
    pub async fn connect(&self) -> Result<Conn> {
        connect(self.port).await
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Kills it; its data stays.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Starts it again on the same port with the same data.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill().await?;
        self.process = self.process.program().start()?;
        self.await_answer().await
    }

    async fn await_answer(&mut self) -> Result<()> {
        let port = self.port;
        self.process.ready("answer", async || connect(port).await.ok()).await?.disconnect().await?;
        Ok(())
    }
}

/// A session in UTC with the account above.
pub async fn connect(port: u16) -> Result<Conn> {
    let options: Opts = OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(port)
        .user(Some(USER))
        .pass(Some(PASSWORD))
        .prefer_socket(false)
        .into();
    let mut session = Conn::new(options).await?;
    session.query_drop("SET NAMES utf8mb4, time_zone = '+00:00', sql_mode = ''").await?;
    Ok(session)
}

/// The installed server's version, as scripts/setup.sh names the template.
async fn version() -> Result<String> {
    let output = tokio::process::Command::new("mariadbd")
        .arg("--version")
        .output()
        .await
        .context("mariadbd is not there: run `make setup`")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .find(|word| word.split('.').filter(|part| !part.is_empty()).count() == 3)
        .map(str::to_owned)
        .with_context(|| format!("no version in {text:?}"))
}
