//! Connections to the target: how a session is pinned, what kind of server it is, which errors may heal.
//!
//! A session depends on nothing the server's or the machine's configuration says: time zone `+00:00`, utf8mb4, an
//! `sql_mode` that lets through what TiDB can hold (zero and invalid dates, 0 in AUTO_INCREMENT columns) and refuses what
//! would be changed on the way, foreign key checks off (their effects are in the log).

use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{ClientIdentity, Conn, DriverError, Error, Opts, OptsBuilder, SslOpts, params};
use tracing::{debug, warn};

use super::config::MysqlConfig;

/// For rows: strict, so that nothing is cut off or changed silently.
pub(crate) const DML_MODE: &str =
    "STRICT_ALL_TABLES,ALLOW_INVALID_DATES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION";
/// For rows that hold ENUM's error value (index 0), which no strict mode takes.
pub(crate) const LENIENT_MODE: &str = "ALLOW_INVALID_DATES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION";
/// For schema changes: what the upstream has done to its rows (in whatever mode) must succeed here too.
///
/// A fraction of a second that becomes shorter is rounded by TiDB and MySQL; MariaDB has to be told.
pub(crate) fn ddl_mode(target: &Target) -> String {
    let rounds = if target.is_mariadb() { ",TIME_ROUND_FRACTIONAL" } else { "" };
    format!("{LENIENT_MODE}{rounds}")
}

/// What kind of server the target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// TiDB: runs its own statements.
    TiDb {
        /// As `version()` says.
        version: String,
    },
    /// MySQL.
    MySql {
        /// As `version()` says.
        version: String,
    },
    /// MariaDB.
    MariaDb {
        /// As `version()` says.
        version: String,
        /// Major and minor.
        number: (u32, u32),
    },
}

impl Target {
    /// Tells the kind from `version()`.
    pub fn from_version(version: &str) -> Self {
        let version = version.to_owned();
        if version.contains("TiDB") {
            return Self::TiDb { version };
        }
        if !version.contains("MariaDB") {
            return Self::MySql { version };
        }
        // Old clients see "5.5.5-10.11.6-MariaDB".
        let number = version.strip_prefix("5.5.5-").unwrap_or(&version);
        let mut parts = number.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
        let number = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        Self::MariaDb { version, number }
    }

    /// True for TiDB.
    pub fn is_tidb(&self) -> bool {
        matches!(self, Self::TiDb { .. })
    }

    /// True for MariaDB.
    pub fn is_mariadb(&self) -> bool {
        matches!(self, Self::MariaDb { .. })
    }

    /// Its name and version, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::TiDb { version } => format!("TiDB {version}"),
            Self::MySql { version } => format!("MySQL {version}"),
            Self::MariaDb { version, .. } => format!("MariaDB {version}"),
        }
    }
}

/// A pinned connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) conn: Conn,
    pub(crate) target: Target,
    /// Largest statement the server takes, in bytes.
    pub(crate) packet: usize,
}

impl Session {
    /// Ends another connection, if it still lives, and waits until it is gone with whatever it was running.
    pub(crate) async fn end(&mut self, id: u64) -> Result<(), Error> {
        let mut backoff = Backoff::new();
        loop {
            let alive: Option<u64> = self
                .conn
                .exec_first(
                    "SELECT id FROM information_schema.processlist WHERE id = :id AND id <> CONNECTION_ID()",
                    params! { id },
                )
                .await?;
            if alive.is_none() {
                return Ok(());
            }
            warn!(connection = id, "ending a connection that was left running");
            match self.conn.query_drop(format!("KILL {id}")).await {
                Err(Error::Server(server)) if server.code == NO_SUCH_THREAD => return Ok(()),
                other => other?,
            }
            backoff.wait().await;
        }
    }
}

/// There is no connection with that id.
const NO_SUCH_THREAD: u16 = 1094;

/// A connection cannot be made, or was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The password cannot be had.
    #[error("mysql.password: {0}")]
    Password(#[from] node::config::SecretError),
    /// The server, or the way to it.
    #[error("cannot connect to {host}:{port} as {user}: {source}")]
    Server {
        /// As configured.
        host: String,
        /// As configured.
        port: u16,
        /// As configured.
        user: String,
        /// What was said.
        source: Error,
    },
    /// No answer.
    #[error("{host}:{port} does not answer within {seconds} s")]
    Timeout {
        /// As configured.
        host: String,
        /// As configured.
        port: u16,
        /// As configured.
        seconds: u64,
    },
}

impl ConnectError {
    /// True where trying again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Password(_) => false,
            Self::Server { source, .. } => is_transient(source),
            Self::Timeout { .. } => true,
        }
    }
}

/// Connects and pins the session.
pub(crate) async fn connect(config: &MysqlConfig) -> Result<Session, ConnectError> {
    let MysqlConfig { host, port, user, .. } = config;
    let password = config.password.as_ref().map(|secret| secret.reveal()).transpose()?;
    let opts = OptsBuilder::default()
        .ip_or_hostname(host.clone())
        .tcp_port(*port)
        .user(Some(user.clone()))
        .pass(password)
        .client_found_rows(true)
        .prefer_socket(Some(false))
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .stmt_cache_size(Some(16))
        .ssl_opts(ssl_opts(config));
    let opening = open(Opts::from(opts));
    let seconds = config.connect_timeout.0.as_secs();
    match tokio::time::timeout(config.connect_timeout.0, opening).await {
        Err(_) => Err(ConnectError::Timeout { host: host.clone(), port: *port, seconds }),
        Ok(Err(source)) => {
            Err(ConnectError::Server { host: host.clone(), port: *port, user: user.clone(), source })
        }
        Ok(Ok(session)) => Ok(session),
    }
}

fn ssl_opts(config: &MysqlConfig) -> Option<SslOpts> {
    let security = &config.security;
    let ca = security.ssl_ca.clone().filter(|_| security.enabled())?;
    let mut opts = SslOpts::default().with_root_certs(vec![ca.into()]).with_disable_built_in_roots(true);
    if let (Some(cert), Some(key)) = (&security.ssl_cert, &security.ssl_key) {
        opts = opts.with_client_identity(Some(ClientIdentity::new(cert.clone().into(), key.clone().into())));
    }
    Some(opts)
}

async fn open(opts: Opts) -> Result<Session, Error> {
    let mut conn = Conn::new(opts).await?;
    let (version, packet): (String, u64) =
        conn.query_first("SELECT VERSION(), @@max_allowed_packet").await?.unwrap_or_default();
    let target = Target::from_version(&version);
    conn.query_drop("SET NAMES utf8mb4 COLLATE utf8mb4_bin").await?;
    let mut pins = vec![
        "time_zone='+00:00'".to_owned(),
        format!("sql_mode='{DML_MODE}'"),
        "foreign_key_checks=0".to_owned(),
        "unique_checks=1".to_owned(),
        "autocommit=1".to_owned(),
        // Nobody else writes what we write; a lower level takes fewer gap locks against readers.
        "transaction_isolation='READ-COMMITTED'".to_owned(),
        "wait_timeout=28800".to_owned(),
        "net_write_timeout=600".to_owned(),
        "net_read_timeout=600".to_owned(),
    ];
    match &target {
        Target::TiDb { .. } => {
            pins.push("allow_auto_random_explicit_insert=1".to_owned());
            pins.push("tidb_txn_mode='pessimistic'".to_owned());
        }
        // MariaDB has the name of MySQL 8's variable from 11.1 on; `tx_isolation` is there before and after.
        Target::MariaDb { .. } => pins[5] = "tx_isolation='READ-COMMITTED'".to_owned(),
        Target::MySql { .. } => {}
    }
    for pin in &pins {
        conn.query_drop(format!("SET SESSION {pin}")).await?;
    }
    if !target.is_tidb() {
        // Else a TIMESTAMP gets defaults that nobody wrote. Old MariaDB has it in its configuration only, and says so.
        let explicit: Option<u8> = conn.query_first("SELECT @@explicit_defaults_for_timestamp").await?;
        if explicit == Some(0) {
            conn.query_drop("SET SESSION explicit_defaults_for_timestamp=1").await?;
        }
    }
    debug!(target = target.describe(), id = conn.id(), "connected");
    Ok(Session { conn, target, packet: packet as usize })
}

/// True for errors after which the same statements may succeed on a new connection.
pub(crate) fn is_transient(error: &Error) -> bool {
    match error {
        Error::Io(_) => true,
        Error::Driver(driver) => matches!(
            driver,
            DriverError::ConnectionClosed | DriverError::PoolDisconnected | DriverError::PacketOutOfOrder
        ),
        Error::Server(server) => is_transient_code(server.code),
        Error::Other(_) | Error::Url(_) => false,
    }
}

/// Server errors that pass: shutting down, killed, deadlock, lock waits, too many connections, read-only for a moment;
/// TiDB's write conflicts, region and PD trouble.
pub(crate) fn is_transient_code(code: u16) -> bool {
    matches!(
        code,
        1040 | 1042
            | 1043
            | 1053
            | 1077
            | 1079
            | 1129
            | 1135
            | 1152
            | 1158
            | 1159
            | 1160
            | 1161
            | 1180
            | 1205
            | 1213
            | 1223
            | 1290
            | 1317
            | 1614
            | 1836
            | 1927
            | 3024
            | 3100
            | 3101
            | 8002
            | 8005
            | 8022
            | 8027
            | 8028
            | 9001
            | 9002
            | 9003
            | 9004
            | 9005
            | 9007
            | 9010
            | 9013
    )
}

/// What the server said, without the values it likes to quote, unless they may be shown.
pub(crate) fn server_text(error: &Error, show_values: bool) -> String {
    match error {
        Error::Server(server) if !show_values && quotes_values(server.code) => {
            format!(
                "ERROR {} ({}): set apply.show-values to see what the server says",
                server.code, server.state
            )
        }
        other => other.to_string(),
    }
}

/// Codes whose text quotes values: duplicate entry, incorrect, truncated and out-of-range values.
fn quotes_values(code: u16) -> bool {
    matches!(
        code,
        1062 | 1264 | 1265 | 1292 | 1366 | 1367 | 1411 | 1416 | 1426 | 1526 | 1586 | 3140 | 3156 | 4025
    )
}

/// Waits longer and longer, to a limit, between attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    last: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LAST: Duration = Duration::from_secs(5);
    const PATIENT: Duration = Duration::from_secs(30);

    pub(crate) fn new() -> Self {
        Self { next: Self::FIRST, last: Self::LAST }
    }

    /// For what only a human can put right.
    pub(crate) fn patient() -> Self {
        Self { next: Self::FIRST, last: Self::PATIENT }
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(self.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_apart() {
        let kind = |version: &str| match Target::from_version(version) {
            Target::TiDb { .. } => "tidb".to_owned(),
            Target::MySql { .. } => "mysql".to_owned(),
            Target::MariaDb { number: (major, minor), .. } => format!("mariadb {major}.{minor}"),
        };
        assert_eq!(kind("5.7.25-TiDB-v7.1.6"), "tidb");
        assert_eq!(kind("8.0.11-TiDB-v8.1.2"), "tidb");
        assert_eq!(kind("8.0.36"), "mysql");
        assert_eq!(kind("10.11.6-MariaDB-0+deb12u1"), "mariadb 10.11");
        assert_eq!(kind("5.5.5-10.4.12-MariaDB-log"), "mariadb 10.4");
        assert_eq!(kind("11.8.2-MariaDB"), "mariadb 11.8");
    }
}
