//! TiDB's HTTP status port, as far as a drainer reads it, and its registration in etcd.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidb::model::Job;
use tidb::schema_api::{self, DDL_HISTORY_LIMIT};
use tidb::ts::{CommitTs, StartTs};
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::jobs::{DdlJobs, Moment};
use crate::player::Progress;
use crate::server::Server;

/// The version whose answers these are.
const VERSION: &str = "5.7.25-TiDB-v7.1.6";

/// What TiDB knows of its schema along a playback; clones are handles to the same.
#[derive(Clone, Debug)]
pub struct TidbSchema {
    cluster: Cluster,
    jobs: Arc<Mutex<DdlJobs>>,
    since: Instant,
    playing: Arc<OnceLock<watch::Receiver<Progress>>>,
}

impl TidbSchema {
    /// The jobs of a playback, beside its clock.
    pub fn new(cluster: Cluster, jobs: DdlJobs) -> Self {
        Self { cluster, jobs: Arc::new(Mutex::new(jobs)), since: Instant::now(), playing: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, DdlJobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moment(&self) -> Moment {
        Moment { now: self.cluster.newest(), elapsed: self.since.elapsed() }
    }

    /// See [`DdlJobs::sent`].
    pub fn sent(&self, job_id: i64, start_ts: StartTs) {
        self.lock().sent(job_id, start_ts, self.since.elapsed());
    }

    /// See [`DdlJobs::add`].
    pub fn add(&self, job: Job, start_ts: StartTs, commit_ts: CommitTs) {
        self.lock().add(job, start_ts, commit_ts, self.since.elapsed());
    }

    /// From now on the status port tells how far this playback is. The first one stays.
    pub fn plays(&self, progress: watch::Receiver<Progress>) {
        let _ = self.playing.set(progress);
    }

    /// Jobs whose binlog is out and that the history does not have yet.
    pub fn late(&self) -> usize {
        self.lock().late(self.moment())
    }
}

/// A running status port; stops when dropped.
#[derive(Debug)]
pub struct StatusPort(Server);

impl StatusPort {
    /// Starts it on a `host:port` (port 0: any free one).
    pub async fn start(schema: TidbSchema, listen: &str) -> anyhow::Result<Self> {
        let listener = Server::bind(listen).await?;
        let router = Router::new()
            .route("/status", get(status))
            .route("/schema", get(databases))
            .route("/schema/{db}", get(tables))
            .route("/schema/{db}/{table}", get(table))
            .route("/ddl/history", get(history))
            .route("/mvcc/key/mysql/tidb_ddl_job/{id}", get(job_versions))
            .route("/sluice/progress", get(progress))
            .with_state(schema);
        Ok(Self(Server::serve(listener, router, None)?))
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.0.address().to_string()
    }

    /// The key and value under which TiDB registers itself in etcd, with a lease.
    pub fn registration(&self, server_id: &str) -> (String, String) {
        let address = self.0.address();
        let info = json!({
            "version": VERSION, "git_hash": "None", "ddl_id": server_id, "ip": address.ip().to_string(),
            "listening_port": 4000, "status_port": address.port(), "lease": "45s", "binlog_status": "On",
            "start_timestamp": 0, "labels": {}, "server_id": 1,
        });
        (format!("/tidb/server/info/{server_id}"), info.to_string())
    }
}

/// TiDB answers every error with 400 and the message as text.
struct Refusal(String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, self.0).into_response()
    }
}

type Answer = Result<Response, Refusal>;

fn answer<T: Serialize + ?Sized>(value: &T) -> Answer {
    let body = schema_api::body(value).map_err(|error| Refusal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response())
}

async fn status() -> Answer {
    answer(&json!({ "connections": 0, "version": VERSION, "git_hash": "None" }))
}

/// Not TiDB's: how far the playback is, for a harness or a demo. Zeros before it begins.
async fn progress(State(schema): State<TidbSchema>) -> Answer {
    let progress = schema.playing.get().map(|playing| playing.borrow().clone());
    answer(&progress.unwrap_or_default())
}

#[derive(Deserialize)]
struct SchemaQuery {
    table_id: Option<i64>,
}

async fn databases(State(schema): State<TidbSchema>, Query(query): Query<SchemaQuery>) -> Answer {
    let catalog = schema.lock().catalog(schema.moment());
    match query.table_id {
        None => answer(&catalog.databases().collect::<Vec<_>>()),
        Some(id) => match catalog.table(id) {
            Some(table) => answer(table),
            None => Err(Refusal(format!("[schema:1146]Table which ID = {id} does not exist."))),
        },
    }
}

fn unknown_database(name: &str) -> Refusal {
    Refusal(format!("[schema:1049]Unknown database '{name}'"))
}

async fn tables(State(schema): State<TidbSchema>, Path(db): Path<String>) -> Answer {
    let catalog = schema.lock().catalog(schema.moment());
    let tables: Vec<_> = catalog.tables(&db).ok_or_else(|| unknown_database(&db))?.collect();
    answer(&tables)
}

async fn table(State(schema): State<TidbSchema>, Path((db, name)): Path<(String, String)>) -> Answer {
    let catalog = schema.lock().catalog(schema.moment());
    let lower = name.to_lowercase();
    let mut tables = catalog.tables(&db).ok_or_else(|| unknown_database(&db))?;
    match tables.find(|table| table.name.lower == lower) {
        Some(table) => answer(table),
        None => Err(Refusal(format!("[schema:1146]Table '{db}.{name}' doesn't exist"))),
    }
}

#[derive(Deserialize)]
struct HistoryQuery {
    start_job_id: Option<i64>,
    limit: Option<i64>,
}

async fn history(State(schema): State<TidbSchema>, Query(query): Query<HistoryQuery>) -> Answer {
    if query.start_job_id.is_some_and(|id| id < 1) {
        return Err(Refusal("ddl history start_job_id must be greater than 0".into()));
    }
    let limit = match query.limit {
        None if query.start_job_id.is_some() => {
            return Err(Refusal("when 'start_job_id' is specified, it must work with a 'limit'".into()));
        }
        None => None,
        Some(limit) => match usize::try_from(limit) {
            Ok(limit @ 1..=DDL_HISTORY_LIMIT) => Some(limit),
            _ => {
                return Err(Refusal(format!(
                    "ddl history limit must be greater than 0 and less than or equal to {DDL_HISTORY_LIMIT}"
                )));
            }
        },
    };
    answer(&schema.lock().history(schema.moment(), query.start_job_id, limit))
}

#[derive(Deserialize)]
struct MvccQuery {
    decode: Option<String>,
}

async fn job_versions(
    State(schema): State<TidbSchema>,
    Path(id): Path<i64>,
    Query(query): Query<MvccQuery>,
) -> Answer {
    let found = schema.lock().versions(schema.moment(), id);
    let mut found = found.map_err(|error| Refusal(error.to_string()))?;
    if query.decode.is_none_or(|decode| decode.is_empty()) {
        found.data = None;
    }
    answer(&found)
}

/// Keeps a TiDB server registered in etcd until dropped or, at the latest, until its lease ends.
#[derive(Debug)]
pub struct Registration {
    keeper: tokio::task::JoinHandle<()>,
}

impl Registration {
    /// Seconds that the registration outlives its process.
    const TTL: i64 = 10;

    /// Registers a status port through PD.
    pub async fn announce(pd_url: &str, port: &StatusPort) -> anyhow::Result<Self> {
        let mut etcd =
            etcd_client::Client::connect([pd_url], None).await.context("cannot reach etcd through PD")?;
        let (key, value) = port.registration(&uuid::Uuid::new_v4().to_string());
        put(&mut etcd, &key, &value).await.context("cannot register TiDB's status port in etcd")?;
        let keeper = tokio::spawn(async move {
            // etcd may be down for longer than the lease; TiDB, too, registers again then.
            loop {
                if let Err(error) = keep(&mut etcd, &key, &value).await {
                    tracing::warn!(%error, "registration in etcd was interrupted");
                }
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        });
        Ok(Self { keeper })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn put(etcd: &mut etcd_client::Client, key: &str, value: &str) -> Result<i64, etcd_client::Error> {
    let lease = etcd.lease_grant(Registration::TTL, None).await?.id();
    etcd.put(key, value, Some(etcd_client::PutOptions::new().with_lease(lease))).await?;
    Ok(lease)
}

async fn keep(etcd: &mut etcd_client::Client, key: &str, value: &str) -> Result<(), etcd_client::Error> {
    let lease = put(etcd, key, value).await?;
    let (mut keeper, mut answers) = etcd.lease_keep_alive(lease).await?;
    loop {
        keeper.keep_alive().await?;
        match answers.message().await? {
            Some(answer) if answer.ttl() > 0 => {}
            _ => return Ok(()),
        }
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    }
}
