//! Sets up the stand-ins of a playback: what a harness starts before the pumps.

use std::sync::Arc;

use crate::cluster::{Cluster, Playback};
use crate::jobs::{DdlJobs, Lateness};
use crate::pd::MockPd;
use crate::schedule::Schedule;
use crate::script::Script;
use crate::status_port::{Registration, StatusPort, TidbSchema};
use crate::tikv::MockTikv;

/// Where the stand-ins listen and what they stand on.
#[derive(Clone, Debug)]
pub struct StageOptions {
    /// PD's (and etcd's) `host:port`; port 0: any free one.
    pub pd: String,
    /// TiKV's `host:port`.
    pub tikv: String,
    /// The `host:port` of TiDB's status port.
    pub status: String,
    /// URL of the etcd behind PD; without one there is nowhere to register.
    pub etcd: Option<String>,
    /// PD's cluster id.
    pub cluster_id: u64,
    /// Which DDL jobs enter the history late.
    pub lateness: Lateness,
    /// Chooses what a recording leaves open.
    pub seed: u64,
}

impl Default for StageOptions {
    fn default() -> Self {
        let any = || "127.0.0.1:0".to_owned();
        Self {
            pd: any(),
            tikv: any(),
            status: any(),
            etcd: None,
            cluster_id: 6_800_000_000_000_000_001,
            lateness: Lateness::default(),
            seed: 1,
        }
    }
}

/// The stand-ins of one cluster; they stop when dropped.
#[derive(Debug)]
pub struct Stage {
    /// The cluster behind them.
    pub cluster: Cluster,
    /// What TiDB knows of its schema.
    pub schema: TidbSchema,
    /// PD, and the etcd in it.
    pub pd: MockPd,
    /// TiKV.
    pub tikv: MockTikv,
    /// TiDB's status port.
    pub status: StatusPort,
    _registration: Option<Registration>,
}

impl Stage {
    /// For a playback at `rate` recorded seconds per second.
    pub async fn for_playback(
        script: &Arc<Script>,
        rate: f64,
        options: &StageOptions,
    ) -> anyhow::Result<Self> {
        let recorded = script.recorded();
        let schedule = Schedule::new(script.entries(), &recorded);
        let cluster = Cluster::playback(options.cluster_id, Playback::new(schedule, recorded, rate));
        Self::around(cluster, DdlJobs::new(script, options.lateness, options.seed), options).await
    }

    /// For an ordinary cluster with a clock that runs by itself.
    pub async fn live(options: &StageOptions) -> anyhow::Result<Self> {
        Self::around(Cluster::live(options.cluster_id), DdlJobs::default(), options).await
    }

    async fn around(cluster: Cluster, jobs: DdlJobs, options: &StageOptions) -> anyhow::Result<Self> {
        let schema = TidbSchema::new(cluster.clone(), jobs);
        let tikv = MockTikv::start(cluster.clone(), &options.tikv).await?;
        let pd = MockPd::start(cluster.clone(), &options.pd, options.etcd.as_deref()).await?;
        let status = StatusPort::start(schema.clone(), &options.status).await?;
        let registration = match &options.etcd {
            Some(_) => Some(Registration::announce(&pd.url(), &status).await?),
            None => None,
        };
        Ok(Self { cluster, schema, pd, tikv, status, _registration: registration })
    }
}
