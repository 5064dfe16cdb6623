//! `apply-mysql`, promise *strict*: the target always equals the upstream at some commit_ts.
//!
//! ```text
//! follow ─▶ queue ─▶ batch (fold, sql) ─▶ apply (one downstream transaction at a time)
//!                                          └ lease, position, schema change journal: in the target
//! ```
//!
//! Consecutive upstream transactions become one downstream transaction with the net change of each row; the next one is
//! prepared while one runs. The position is stored in the same transaction, so a crash at any point neither loses nor
//! repeats: on restart the stored position says where to read on, and the journal says how far a schema change came.

mod apply;
mod batch;
pub mod charset;
pub mod config;
mod conflict;
pub mod ddl;
mod error;
pub mod fold;
pub mod literal;
#[cfg(test)]
mod live;
mod meta;
mod operator;
pub mod session;
pub mod sql;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use node::admin::{Admin, Health};
use node::data_dir::DataDir;
use node::shutdown::{Shutdown, Tasks};
use node::telemetry::Telemetry;
use serde_json::json;
use tidb::ts::CommitTs;
use tokio::sync::mpsc;
use tracing::{info, warn};

pub use config::{Args, Config};
pub use error::ApplyError;

use self::apply::{Applier, Parts};
use self::batch::{Limits, Preparer};
use self::ddl::verdict::Verdicts;
use self::meta::{Meta, OwnerEpoch, Taking};
use self::session::{Backoff, Session};
use self::sql::Renderer;
use crate::chain::Start;
use crate::config::follow_options;
use crate::follow::{follow, tail};
use crate::metrics;
use crate::progress::FollowProgress;
use crate::queue;

/// How long tasks may take to finish what they hold.
const DRAIN: Duration = Duration::from_secs(30);

/// Applies until the shutdown, the end asked for, or an error.
pub async fn run(config: Config, telemetry: Telemetry, shutdown: Shutdown) -> anyhow::Result<()> {
    metrics::describe();
    let mut config = config;
    let data_dir = DataDir::open(&config.data_dir)?;
    operator::ensure_token(&mut config).context("cannot write the admin token into data-dir")?;
    let progress = Arc::new(FollowProgress::new());
    let health = Health::new();
    health.set("target", Err("not connected yet".to_owned()));
    let mut outer = Tasks::new(&shutdown);
    let status = progress.clone();
    let name = config.name.clone();
    let verdicts = Verdicts::default();
    let admin = Admin::new(telemetry, health.clone())
        .status(move || json!({ "consumer": name, "progress": status.to_json() }))
        .routes(verdicts.reading())
        .protected(verdicts.changing());
    let admin = admin.bind(&config.admin).await?;
    operator::settle_address(&mut config, admin.local_addr());
    outer.spawn("admin", admin.run(shutdown.clone()));
    let work = shutdown.clone();
    outer.spawn("apply-mysql", async move {
        runs(config, data_dir, Shared { progress, health, verdicts }, work).await
    });
    outer.join(DRAIN + Duration::from_secs(5)).await
}

/// What the admin listener shows and takes.
struct Shared {
    progress: Arc<FollowProgress>,
    health: Health,
    verdicts: Verdicts,
}

/// Runs again after what only a fresh start from the stored position heals.
async fn runs(config: Config, data_dir: DataDir, shared: Shared, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut backoff = Backoff::new();
    loop {
        match run_once(&config, &data_dir, &shared, &shutdown).await {
            Err(error) if shutdown.is_cancelled() => {
                warn!(error = format!("{error:#}"), "ended while something was wrong");
                return Ok(());
            }
            Err(error) if is_passing(&error) => {
                warn!(
                    error = format!("{error:#}"),
                    "the target failed, starting again from the stored position"
                );
                shared.progress.waiting(Some(format!("the target: {error:#}")));
                if shutdown.unless(backoff.wait()).await.is_none() {
                    return Ok(());
                }
            }
            Err(error)
                if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(ApplyError::Restart))) =>
            {
                warn!("starting again from the stored position");
            }
            other => return other,
        }
    }
}

/// True for an error of the target that passes, while it was asked for its position or the lease.
fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref()).any(session::is_transient)
}

async fn run_once(
    config: &Config,
    data_dir: &DataDir,
    shared: &Shared,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let Shared { progress, health, verdicts } = shared;
    let Some(mut session) = connect(config, progress, shutdown).await? else { return Ok(()) };
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    meta.create(&mut session.conn).await.context("cannot make the progress tables")?;
    let Some(owner) = take_lease(config, data_dir, &meta, &mut session, progress, shutdown).await? else {
        return Ok(());
    };
    let stored = meta.position(&mut session.conn).await.context("cannot read the stored position")?;
    let stored = stored.map(|stored| stored.position);
    info!(
        target = session.target.describe(),
        position = stored.as_ref().map(ToString::to_string),
        owner_epoch = owner.0,
        "connected to the target"
    );
    health.set("target", Ok(()));
    if let Some(position) = &stored {
        progress.applied(position);
    }
    let start = match stored.clone() {
        Some(position) => Start::Resume(position),
        None => Start::Attach { initial: config.feed.initial_commit_ts.map(CommitTs::new) },
    };
    let renderer = renderer(&session, config);

    let inner = shutdown.child();
    let mut tasks = Tasks::new(&inner);
    let memory = config.memory_budget.as_u64() as usize;
    let (events, queue) = queue::channel(memory / 8, &inner);
    let options = follow_options(
        &config.kafka,
        &config.feed,
        data_dir.path().to_owned(),
        memory / 2,
        config.until_commit_ts.map(CommitTs::new),
    )?;
    let (seen, ended) = (progress.clone(), inner.clone());
    let runtime = tokio::runtime::Handle::current();
    let (tail_options, tail_progress, tail_ended) = (options.clone(), progress.clone(), inner.clone());
    tasks.spawn_blocking("tail", move || Ok(tail::watch(&tail_options, &tail_progress, &tail_ended)?));
    tasks.spawn_blocking("follow", move || {
        follow(options, start, events, seen, ended.clone())?;
        // What was handed over is still to be applied; that task ends everything.
        runtime.block_on(ended.cancelled());
        Ok(())
    });
    let (sender, receiver) = mpsc::channel(1);
    let limits = Limits { rows: config.apply.batch_rows as u64, bytes: config.batch_bytes() };
    let preparer = Preparer::new(renderer, limits, config.feed.on_gap, sender);
    let ended = inner.clone();
    tasks.spawn("prepare", async move { preparer.run(queue, ended).await });
    let applier = Applier::new(Parts {
        config: config.clone(),
        meta: meta.clone(),
        owner,
        session,
        position: stored,
        progress: progress.clone(),
        verdicts: verdicts.clone(),
        health: health.clone(),
        shutdown: inner.clone(),
    });
    tasks.spawn("apply", async move { Ok(applier.run(receiver).await?) });
    tasks.spawn("lease", keep_lease(config.clone(), meta.clone(), owner, inner.clone()));
    let result = tasks.join(DRAIN).await;
    release_lease(config, &meta, owner).await;
    result
}

pub(crate) fn renderer(session: &Session, config: &Config) -> Renderer {
    // Half a packet: a row rendered after the limit was looked at still fits.
    let bytes = (session.packet / 2).clamp(16 * 1024, 1 << 20);
    Renderer { target: session.target.clone(), rows: config.apply.statement_rows, bytes }
}

/// Connects as long as it takes; `None` on shutdown.
async fn connect(
    config: &Config,
    progress: &FollowProgress,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<Session>> {
    let mut backoff = Backoff::new();
    loop {
        let Some(connected) = shutdown.unless(session::connect(&config.mysql)).await else { return Ok(None) };
        match connected {
            Ok(session) => {
                progress.waiting(None);
                return Ok(Some(session));
            }
            Err(error) if error.is_retryable() => {
                warn!(error = format!("{error:#}"), "cannot reach the target, trying again");
                progress.waiting(Some(format!("the target: {error}")));
                if shutdown.unless(backoff.wait()).await.is_none() {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for the lease; `None` on shutdown.
async fn take_lease(
    config: &Config,
    data_dir: &DataDir,
    meta: &Meta,
    session: &mut Session,
    progress: &FollowProgress,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<OwnerEpoch>> {
    let path = data_dir.path();
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let host = hostname();
    let owner = format!("{host}:{}", path.display());
    let mut backoff = Backoff::new();
    loop {
        let taking = meta.take_lease(&mut session.conn, &owner, config.apply.lease_ttl.0.as_secs_f64());
        match taking.await.context("cannot take the lease")? {
            Taking::Granted(epoch) => {
                progress.waiting(None);
                return Ok(Some(epoch));
            }
            Taking::Held { owner, seconds } => {
                info!(owner, seconds, "another instance holds the lease, standing by");
                progress.waiting(Some(format!("the lease, held by {owner} for {seconds} s more")));
                if shutdown.unless(backoff.wait()).await.is_none() {
                    return Ok(None);
                }
            }
        }
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

/// Renews the lease on a connection of its own. Trouble reaching the target is the applier's to report; losing the lease
/// ends everything.
async fn keep_lease(config: Config, meta: Meta, owner: OwnerEpoch, shutdown: Shutdown) -> anyhow::Result<()> {
    let ttl = config.apply.lease_ttl.0;
    let mut session: Option<Session> = None;
    loop {
        if shutdown.unless(tokio::time::sleep(ttl / 3)).await.is_none() {
            return Ok(());
        }
        let renewing = async {
            let mut current = match session.take() {
                Some(session) => session,
                None => session::connect(&config.mysql).await?,
            };
            let renewed = meta.renew_lease(&mut current.conn, owner, ttl.as_secs_f64()).await?;
            session = Some(current);
            anyhow::Ok(renewed)
        };
        match shutdown.unless(renewing).await {
            None | Some(Ok(true)) => {}
            Some(Ok(false)) => {
                bail!(
                    "the lease of consumer {} was taken by another instance: this one stops",
                    meta.consumer()
                )
            }
            Some(Err(error)) => warn!(error = format!("{error:#}"), "could not renew the lease"),
        }
    }
}

async fn release_lease(config: &Config, meta: &Meta, owner: OwnerEpoch) {
    let releasing = async {
        let mut session = session::connect(&config.mysql).await?;
        meta.release_lease(&mut session.conn, owner).await?;
        anyhow::Ok(())
    };
    // It runs out by itself.
    match tokio::time::timeout(Duration::from_secs(2), releasing).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(error = format!("{error:#}"), "could not release the lease, it will run out"),
        Err(_) => warn!("could not release the lease in time, it will run out"),
    }
}

#[cfg(test)]
mod tests {
    use mysql_async::{Error, ServerError};

    use super::*;

    #[test]
    fn a_target_that_fails_for_a_moment_does_not_end_the_process() {
        let said = |code| {
            let error = ServerError { code, message: "…".into(), state: "HY000".into() };
            anyhow::Error::from(Error::Server(error)).context("cannot take the lease")
        };
        // Shutting down, killed, a deadlock.
        assert!([1053, 1927, 1213].into_iter().all(|code| is_passing(&said(code))));
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(is_passing(
            &anyhow::Error::from(Error::Io(broken.into())).context("cannot make the progress tables")
        ));
        // No rights; something else altogether.
        assert!(!is_passing(&said(1044)) && !is_passing(&anyhow::anyhow!("no such topic")));
    }
}
