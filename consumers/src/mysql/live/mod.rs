//! Tests against a real MariaDB, started for them on a port of its own.

mod ddl;
mod history;
mod rows;
mod stops;
mod takeover;
mod values;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mysql_async::prelude::{FromRow, Queryable as _};
use node::admin::Health;
use node::shutdown::Shutdown;
use schemas::sluice::v1::{Column, Key, TableDefinition};
use tempfile::TempDir;
use tidb::ts::{CommitTs, StartTs};
use tokio::sync::mpsc;

use super::apply::{Applier, Parts};
use super::batch::{Limits, Preparer};
use super::config::{Config, OnStop};
use super::ddl::verdict::Verdicts;
use super::error::ApplyError;
use super::meta::{Meta, OwnerEpoch, Taking};
use super::session::{self, Session};
use crate::config::GapPolicy;
use crate::event::{Change, ChangeKind, Event, Row, Rows, Value};
use crate::position::{FeedId, Position};
use crate::progress::FollowProgress;
use crate::queue;
use crate::schema::Table;

/// A server, gone with its folder when dropped.
pub(super) struct Server {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error} (make setup installs it)"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Server {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        // Free when asked, and asked for again at once: good enough for a test.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let defaults = at("my.cnf");
        // A zone and a mode that nothing may depend on. A temporary directory of its own, since a server that starts deletes
        // the temporary tables it finds, those of others too.
        let config = format!(
            "[mariadbd]\ndatadir={}\ntmpdir={}\nsocket={}\npid-file={}\nport={port}\nbind-address=127.0.0.1\nuser=root\n\
             character-set-server=latin1\ndefault-time-zone=-07:00\nsql-mode=NO_ZERO_DATE,ANSI_QUOTES\n\
             innodb-buffer-pool-size=32M\ninnodb-flush-log-at-trx-commit=0\nskip-name-resolve\n",
            at("data"),
            dir.path().display(),
            at("m.sock"),
            at("m.pid")
        );
        std::fs::write(&defaults, config).unwrap();
        let defaults = format!("--defaults-file={defaults}");
        run("mariadb-install-db", &[&defaults, "--auth-root-authentication-method=normal", "--skip-test-db"]);
        let program =
            if Path::new("/usr/sbin/mariadbd").is_file() { "/usr/sbin/mariadbd" } else { "mariadbd" };
        let child =
            Command::new(program).arg(&defaults).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { child, port, _dir: dir };
        let began = Instant::now();
        while session::connect(&server.config("probe").mysql).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "mariadbd does not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    /// A consumer's configuration; `name` keeps tests on one server apart.
    pub(super) fn config(&self, name: &str) -> Config {
        let mut config = Config { name: name.to_owned(), ..Config::default() };
        config.mysql.port = self.port;
        config.mysql.meta_database = format!("meta_{name}");
        config.apply.show_values = true;
        // Nobody is there to put a row right.
        config.apply.on_stop = Some(OnStop::Exit);
        config
    }

    pub(super) async fn session(&self) -> Session {
        session::connect(&self.config("probe").mysql).await.unwrap()
    }

    pub(super) async fn run(&self, sql: &str) {
        self.session().await.conn.query_drop(sql).await.unwrap();
    }

    pub(super) async fn rows<T: FromRow + Send + 'static>(&self, sql: &str) -> Vec<T> {
        self.session().await.conn.query(sql).await.unwrap()
    }
}

pub(super) fn feed() -> FeedId {
    FeedId::from_bytes(&[3; 16]).unwrap()
}

/// The position after transaction `seq`.
pub(super) fn position(seq: u64) -> Position {
    Position {
        feed_id: feed(),
        epoch: 1,
        seq,
        commit_ts: CommitTs::new(seq * 10),
        commits_offset: seq as i64,
    }
}

pub(super) fn column(id: i64, name: &str, mysql_type: i32) -> Column {
    Column { id, name: name.into(), mysql_type, length: -1, decimals: -1, ..Default::default() }
}

pub(super) fn table(
    id: i64,
    database: &str,
    name: &str,
    columns: Vec<Column>,
    keys: &[&[i64]],
) -> Arc<Table> {
    let mut columns = columns;
    let unique_keys = keys
        .iter()
        .enumerate()
        .map(|(index, ids)| Key {
            name: format!("k{index}"),
            primary: index == 0,
            column_ids: ids.to_vec(),
            prefix_lengths: vec![-1; ids.len()],
        })
        .collect();
    if let Some(primary) = keys.first() {
        columns
            .iter_mut()
            .filter(|column| primary.contains(&column.id))
            .for_each(|column| column.not_null = true);
    }
    Arc::new(Table::new(TableDefinition {
        table_id: id,
        version: 1,
        database: database.into(),
        table: name.into(),
        columns,
        unique_keys,
        kind: "table".into(),
        ..Default::default()
    }))
}

pub(super) fn row(values: Vec<Value>) -> Row {
    values.into_iter().map(Some).collect()
}

pub(super) fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// A transaction as an event.
pub(super) fn txn(seq: u64, table: &Arc<Table>, kinds: Vec<ChangeKind>) -> Event {
    slice(seq, table, kinds, true)
}

/// A slice of a transaction; the last one ends it.
pub(super) fn slice(seq: u64, table: &Arc<Table>, kinds: Vec<ChangeKind>, last: bool) -> Event {
    let changes: Vec<Change> =
        kinds.into_iter().map(|kind| Change { table: table.clone(), kind, cost: 100 }).collect();
    Event::Rows(Rows {
        seq,
        commit_ts: CommitTs::new(seq * 10),
        start_ts: StartTs::new(seq * 10 - 1),
        origin: None,
        first_change: 0,
        cost: changes.len() * 100,
        changes,
        after: last.then(|| position(seq)),
    })
}

/// A consumer without a follower: takes the lease, applies the events, ends.
pub(super) async fn apply(config: &Config, events: Vec<Event>) -> Result<(), ApplyError> {
    let (owner, session, stored) = attach(config).await;
    let shutdown = Shutdown::new();
    let (sender, receiver) = queue::channel(64 << 20, &shutdown);
    let renderer = super::renderer(&session, config);
    let (work, todo) = mpsc::channel(1);
    let limits = Limits { rows: config.apply.batch_rows as u64, bytes: config.batch_bytes() };
    let preparer = Preparer::new(renderer, limits, GapPolicy::Stop, work);
    let prepared = tokio::spawn(preparer.run(receiver, shutdown.clone()));
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    let applier = applier(config, meta, owner, session, stored, &shutdown);
    let sent = tokio::task::spawn_blocking(move || {
        for event in events {
            let cost = if let Event::Rows(rows) = &event { rows.cost } else { 0 };
            if sender.send(event, cost).is_err() {
                return;
            }
        }
    });
    let result = applier.run(todo).await;
    shutdown.cancel();
    prepared.await.unwrap().unwrap();
    sent.await.unwrap();
    result
}

pub(super) fn applier(
    config: &Config,
    meta: Meta,
    owner: OwnerEpoch,
    session: Session,
    position: Option<Position>,
    shutdown: &Shutdown,
) -> Applier {
    Applier::new(Parts {
        config: config.clone(),
        meta,
        owner,
        session,
        position,
        progress: Arc::new(FollowProgress::new()),
        verdicts: Verdicts::default(),
        health: Health::new(),
        shutdown: shutdown.clone(),
    })
}

/// Connects as a consumer does: lease, session, stored position (attached at 0 the first time).
pub(super) async fn attach(config: &Config) -> (OwnerEpoch, Session, Option<Position>) {
    let mut session = session::connect(&config.mysql).await.unwrap();
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    meta.create(&mut session.conn).await.unwrap();
    let taking = meta.take_lease(&mut session.conn, "test", 60.0).await.unwrap();
    let Taking::Granted(owner) = taking else { panic!("{taking:?}") };
    if meta.position(&mut session.conn).await.unwrap().is_none() {
        meta.attach(&mut session.conn, &position(0), owner).await.unwrap();
    }
    let stored = meta.position(&mut session.conn).await.unwrap().map(|stored| stored.position);
    (owner, session, stored)
}

/// The end: everything up to `seq` must be in the target.
pub(super) fn end(seq: u64) -> Event {
    Event::Reached(position(seq))
}
