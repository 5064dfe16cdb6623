//! Load on the site's pumps, and whether everything that it committed is there.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::sluice::pump::v1::Transaction;
use simulator::client::{ClientOptions, PumpClient};
use simulator::jobs::DdlJobs;
use simulator::load::workload::Kind;
use simulator::load::{Load, LoadError, LoadOptions, LoadReport};
use simulator::pumps::Strategy;
use simulator::status_port::TidbSchema;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{CLUSTER, Drainer, Site, soon, until};

/// Eight sessions with small orders, without an end of their own.
pub fn light() -> LoadOptions {
    LoadOptions {
        kind: Kind::Orders,
        sessions: 8,
        rate: None,
        payload: 300,
        transactions: None,
        duration: None,
        rollback_share: 0.05,
        orphan_share: 0.05,
        seed: 7,
    }
}

/// A TiDB with sessions that run transactions on whatever pumps are online.
pub struct UnderLoad {
    pub load: Load,
    stop: CancellationToken,
    task: JoinHandle<Result<LoadReport, LoadError>>,
}

impl UnderLoad {
    /// Begins once `pumps` are online. A pump that does not answer is given up after a second, as by a TiDB whose
    /// write-timeout is set so.
    pub async fn begin(site: &Site, pumps: usize, options: LoadOptions) -> Self {
        let how = ClientOptions {
            strategy: Strategy::Range,
            write_timeout: Duration::from_secs(1),
            follower_patience: Duration::from_secs(20),
        };
        let client = PumpClient::connect(&site.pd_url, CLUSTER, how).await.unwrap();
        soon("the pumps are online", client.wait_online(pumps)).await;
        let schema = TidbSchema::new(site.cluster.clone(), DdlJobs::default());
        let load = Load::new(site.cluster.clone(), schema, client, options);
        let (stop, running) = (CancellationToken::new(), load.clone());
        let cancelled = stop.clone();
        let task = tokio::spawn(async move { running.run(cancelled).await });
        Self { load, stop, task }
    }

    /// Until so many more transactions have committed.
    pub async fn goes_on(&self, count: u64) {
        let target = self.load.report().committed + count;
        until("transactions commit", || async {
            assert!(!self.task.is_finished(), "the load ended");
            self.load.report().committed >= target
        })
        .await;
    }

    /// Ends the sessions. No writer was disturbed: none was refused, no living transaction was killed.
    pub async fn end(self) -> LoadReport {
        self.stop.cancel();
        let report = soon("the load ends", self.task).await.unwrap().expect("some pump took every prewrite");
        assert_eq!((report.refused, report.aborted), (0, 0));
        report
    }
}

/// All that TiKV calls committed stands in the streams, with one commit_ts and one content, and nothing else does.
/// Returns how many transactions stand in more than one.
pub fn assert_complete<'a>(site: &Site, streams: impl IntoIterator<Item = &'a Drainer>) -> usize {
    let mut found: BTreeMap<u64, &Transaction> = BTreeMap::new();
    let mut copies = 0;
    for transaction in streams.into_iter().flat_map(|stream| &stream.received) {
        if let Some(other) = found.insert(transaction.commit_ts, transaction) {
            assert_eq!(other, transaction);
            copies += 1;
        }
    }
    let found: Vec<_> = found.values().map(|found| (found.start_ts, found.commit_ts)).collect();
    let truth = site.cluster.committed();
    let truth: Vec<_> = truth.iter().map(|(start, commit)| (start.get(), commit.get())).collect();
    let missing = truth.iter().filter(|pair| found.binary_search_by_key(&pair.1, |f| f.1).is_err()).count();
    assert_eq!(missing, 0, "of {} committed transactions", truth.len());
    assert_eq!(found, truth);
    copies
}
