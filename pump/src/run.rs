//! Wires the parts and runs them until the end.
//!
//! Start: data directory, PD, store (with everything it has to verify), one tick; then the port, then membership. Until then
//! nobody can connect, so that TiDB is refused and not kept waiting. End: on a wish to end membership publishes it first
//! ([`LEAVE`] at most), then everything is cancelled together and has [`DRAIN`]; the writer goes last, when nobody is left to
//! write. What blocks longer than that is left behind as by a crash.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use node::admin::{Admin, Health};
use node::data_dir::DataDir;
use node::pd::Pd;
use node::registry::{NodeKind, Registry, Side, UpdateClock};
use node::serve::{ALPN, Listener, ServeLimits};
use node::shutdown::{Shutdown, Tasks};
use node::telemetry::Telemetry;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tracing::{info, warn};

use crate::budget::ReceiveBudget;
use crate::clock::Clock;
use crate::config::Config;
use crate::disk::Disk;
use crate::housekeeping::Housekeeping;
use crate::membership::{self, Membership};
use crate::metrics;
use crate::predecessor;
use crate::progress::Progress;
use crate::readers::Readers;
use crate::resolver::{Asker, Forgotten, Hints, Resolver, Tikv};
use crate::retention::Policy;
use crate::service::{DrainService, Http, Inspector, Intake, Port, PullService, calls_within};
use crate::settle::Settlement;
use crate::sorter::Sorter;
use crate::state::StateCell;
use crate::status::StatusPage;
use crate::store::{self, Options};
use crate::writer::Writer;

/// How long membership may take to publish that this pump leaves, when a signal asked for it: the registry answers or gives up
/// within five seconds, twice, and commits under way are waited for between.
const LEAVE: Duration = Duration::from_secs(13);

/// How long everything may take to end after that.
const DRAIN: Duration = Duration::from_secs(15);

/// Streams give way at once; calls under way get this long.
const DRAIN_CALLS: Duration = Duration::from_secs(5);

/// Requests under way on one connection. TiDB makes one for each prewrite and commit, over few connections: thousands at a
/// time, when the disk is slow.
const STREAMS: u32 = 16 * 1024;

/// The longest pause between fakes on an original stream while the watermark moves.
const FAKES: Duration = Duration::from_millis(100);

/// Where a pump that runs in this process can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Its name in the registry.
    pub node_id: String,
    /// The port that TiDB and drainers use.
    pub addr: std::net::SocketAddr,
    /// The admin listener.
    pub admin_addr: std::net::SocketAddr,
}

/// Runs a pump until `shutdown`, an operator's pause or close, or an error.
///
/// # Errors
/// It could not start, or something broke that a running pump must not survive: a failed write, PD going back.
pub async fn run(config: Config, telemetry: Telemetry, shutdown: Shutdown) -> anyhow::Result<()> {
    run_with(config, telemetry, shutdown, oneshot::channel().0).await
}

/// As [`run`]; says where it listens once it does.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    config: Config,
    telemetry: Telemetry,
    shutdown: Shutdown,
    started: oneshot::Sender<Started>,
) -> anyhow::Result<()> {
    metrics::describe();
    for key in config.ignored() {
        warn!(key, "configuration without effect");
    }
    // Ends everything but membership, which has its say first.
    let going_down = Shutdown::new();
    let mut tasks = Tasks::new(&going_down);
    let health = Health::new();
    health.set("store", Err("opening".into()));
    health.set("join", Err("not online yet".into()));

    let status = StatusPage::default();
    let page = status.clone();
    let settlement = Settlement::default();
    let admin = Admin::new(telemetry.clone(), health.clone())
        .status(move || page.render())
        .protected(settlement.clone().routes());
    let admin = admin.bind(&config.admin).await?;
    let admin_addr = admin.local_addr();
    tasks.spawn("admin", admin.run(going_down.clone()));

    let began = shutdown
        .unless(start(&config, telemetry, &health, (status, settlement), &shutdown, &mut tasks))
        .await;
    match began {
        // Asked to end while starting: end what runs already.
        None => going_down.cancel(),
        // Whatever it waited for may have noticed first, or given up just then.
        Some(Err(error)) if shutdown.is_cancelled() => {
            warn!(error = format!("{error:#}"), "asked to end while starting");
            going_down.cancel();
        }
        Some(Err(error)) => {
            going_down.cancel();
            let _ = tasks.join(DRAIN).await;
            return Err(error);
        }
        Some(Ok((node_id, addr))) => {
            info!(node_id, %addr, %admin_addr, "pump listens");
            // Nobody may be interested.
            let _ = started.send(Started { node_id, addr, admin_addr });
        }
    }
    // The first task to end ends all: membership after it has left, or whatever broke.
    tasks.join(DRAIN).await
}

async fn start(
    config: &Config,
    telemetry: Telemetry,
    health: &Health,
    (status, settlement): (StatusPage, Settlement),
    shutdown: &Shutdown,
    tasks: &mut Tasks,
) -> anyhow::Result<(String, std::net::SocketAddr)> {
    let going_down = tasks.shutdown();
    let data_dir = Arc::new(DataDir::open(&config.data_dir)?);
    predecessor::refuse(data_dir.path())?;
    let tls = config.security.server_config(&ALPN).context("security")?;
    let pd = Pd::connect_until(&config.pd_urls(), &config.security, shutdown).await?;
    let cluster_id = pd.cluster_id();
    data_dir.claim_cluster(cluster_id)?;

    let disk = Arc::new(Disk::examine(data_dir.path(), config.storage.stop_write_at_available_space)?);
    let mut options = Options::for_volume(disk.capacity());
    if let Some(size) = config.storage.segment_size {
        options = options.with_segments_of(size.as_u64());
    }
    options.waiting_bytes = config.storage.commit_memory.as_u64();
    let path = data_dir.path().join("store");
    // Nobody waits for it once the end is asked for, but it goes on until the process is gone: the directory stays locked.
    let lock = data_dir.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let opened = store::open(&path, options);
        drop(lock);
        opened
    });
    let (appender, reader, recovered) = opened.await??;
    info!(
        cluster_id,
        open = recovered.pending.len(),
        replayed = recovered.replayed,
        rebuilt = recovered.rebuilt,
        "store opened"
    );
    health.set("store", Ok(()));
    let registry = Registry::new(pd.etcd()).at(&config.pd_urls());

    let pending = recovered.pending.iter().map(|open| (open.start_ts, open.floor));
    let progress = Arc::new(Progress::new(Sorter::recover(pending, recovered.watermark)));
    let clock = Arc::new(Clock::new(pd.clone(), progress.clone()));
    let now = clock.start(recovered.newest).await?;

    // Only now: whoever connects is answered at once. TiDB would wait for the whole of its write-timeout.
    let listener = Listener::tcp(&config.addresses().listen()).await.context("addr")?;
    let addr = listener.local_addr().ok_or_else(|| anyhow!("the listener has no address"))?;
    let flag = (!config.node_id.is_empty()).then_some(config.node_id.as_str());
    let node_id = data_dir.node_id(flag, addr.port())?;
    let host = config.addresses().registered(addr);
    if recovered.empty {
        membership::refuse_lost_store(&registry, &node_id, data_dir.path()).await?;
    }

    let group_bytes = usize::try_from(config.storage.group_commit_size.as_u64())?;
    let slow = Duration::try_from_secs_f64(config.storage.slow_write_threshold)?;
    let (writer, handle) =
        Writer::new(appender, reader.clone(), progress.clone(), &recovered, group_bytes, slow);
    // Holds the directory's lock until the last write is made.
    let lock = data_dir.clone();
    tasks.spawn_blocking("writer", move || {
        let result = writer.run();
        drop(lock);
        result.context("the store failed; whatever was not acknowledged may be lost, nothing else")
    });

    let hints = Arc::new(Hints::default());
    let forgotten = Arc::new(Forgotten::default());
    let tikv = Arc::new(Tikv::new(pd.clone(), config.security.clone()));
    let asker = Asker {
        tikv: tikv.clone(),
        clock: clock.clone(),
        progress: progress.clone(),
        reader: reader.clone(),
        writer: handle.clone(),
        forgotten: forgotten.clone(),
    };
    let state = Arc::new(StateCell::default());
    let resolver = Resolver::new(asker, state.clone(), hints.clone(), &recovered);
    tasks.spawn("resolver", resolver.run(going_down.clone()));
    let interval = config.tick_interval.get();
    tasks.spawn("ticks", clock.clone().run(interval, handle.clone(), health.clone(), going_down.clone()));
    tasks.spawn("disk", disk.clone().watch(health.clone(), going_down.clone()));

    let readers = Arc::new(Readers::default());
    let budget_total = u32::try_from(config.receive_budget.as_u64())?;
    let budget = ReceiveBudget::new(budget_total);
    let retention = Arc::new(Notify::new());
    let pull_budget = usize::try_from(config.pull_budget.as_u64())?;
    let intake = Arc::new(Intake {
        cluster_id,
        max_message: config.max_message_size.as_u64(),
        calls: Arc::new(Semaphore::new(calls_within(budget_total))),
        budget: budget.clone(),
        state: state.clone(),
        disk: disk.clone(),
        clock: clock.clone(),
        writer: handle.clone(),
        hints,
        metrics: metrics::Calls::default(),
    });
    let pull = PullService {
        intake: intake.clone(),
        reader: reader.clone(),
        progress: progress.clone(),
        budget: pull_budget,
        accept_gaps_upto: config.accept_gaps_upto,
        fake_interval: FAKES.min(config.gen_binlog_interval.get()),
        shutdown: going_down.clone(),
    };
    let drain = DrainService {
        cluster_id,
        reader: reader.clone(),
        progress: progress.clone(),
        clock: clock.clone(),
        readers: readers.clone(),
        budget: pull_budget,
        shutdown: going_down.clone(),
    };
    let (actions, asked) = mpsc::channel(1);
    let http = Http {
        node_id: node_id.clone(),
        state: state.clone(),
        registry: registry.clone(),
        clock: clock.clone(),
        actions,
        telemetry,
        retention: retention.clone(),
        token: config.admin.token.clone(),
        inspector: Inspector {
            reader: reader.clone(),
            progress: progress.clone(),
            tikv,
            clock: clock.clone(),
            values: config.show_row_values,
        },
        inspecting: Arc::new(Semaphore::new(1)),
    };
    let mut listeners = vec![listener];
    if !config.socket.is_empty() {
        let path = config.socket.strip_prefix("unix://").unwrap_or(&config.socket);
        listeners.push(Listener::unix(path.as_ref()).await.context("socket")?);
    }
    let limits = ServeLimits {
        drain: DRAIN_CALLS,
        max_concurrent_streams: Some(STREAMS),
        max_connections: config.max_connections as usize,
        ..ServeLimits::default()
    };
    let port = Port::new(intake, pull, drain, config.max_pull_streams as usize, http);
    tasks.spawn("port", node::serve::serve(listeners, port, tls, limits, going_down.clone()));

    status.fill(node_id.clone(), cluster_id, state.clone(), progress.clone(), disk, readers, reader.clone());
    settlement.fill(handle.clone(), progress.clone());
    let policy = Policy {
        keep: config.gc.get(),
        size: config.gc_size.map(|size| size.as_u64()),
        past_drainers: config.gc_past_drainers,
    };
    let housekeeping = Housekeeping {
        node_id: node_id.clone(),
        pd: pd.clone(),
        registry: registry.clone(),
        progress: progress.clone(),
        reader: reader.clone(),
        writer: handle.clone(),
        forgotten,
        state: state.clone(),
        health: health.clone(),
        accept_gaps_upto: config.accept_gaps_upto,
        policy,
        trigger: retention,
        budget,
    };
    tasks.spawn("housekeeping", housekeeping.run(going_down.clone()));

    let presence = registry.announce(NodeKind::Pump, Side::new(&node_id, &host)).await?;
    tasks.spawn("presence", presence.run(going_down.clone()));
    let membership = Membership {
        registry,
        node_id: node_id.clone(),
        host,
        state,
        clock,
        progress,
        reader,
        writer: handle,
        security: config.security.clone(),
        heartbeat: config.heartbeat(),
        update_clock: UpdateClock::new(now),
        health: health.clone(),
    };
    tasks.spawn("leaving", leaving(shutdown.clone(), going_down.clone()));
    tasks.spawn("membership", membership.run(asked, shutdown.clone(), going_down));
    Ok((node_id, addr))
}

/// Ends all, by returning, when a signal's [`LEAVE`] is over; the entry in the registry then stays as it is.
async fn leaving(asked: Shutdown, going_down: Shutdown) -> anyhow::Result<()> {
    let over = async {
        asked.cancelled().await;
        tokio::time::sleep(LEAVE).await;
        warn!("the registry does not answer, the pump ends without its word");
    };
    let _ = going_down.unless(over).await;
    Ok(())
}
