//! The client of PD against a stand-in that misbehaves on request.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use node::pd::{Pd, PdError};
use node::shutdown::Shutdown;
use node::tls::Security;
use tidb::ts::Tso;

use crate::rig::pd::{CLUSTER, Cluster, MockPd};
use crate::rig::{free_port, soon, until};

/// Where no etcd is needed.
const NO_ETCD: &str = "http://127.0.0.1:1";

async fn connect(mock: &MockPd) -> Pd {
    Pd::connect(std::slice::from_ref(&mock.url), &Security::default()).await.unwrap()
}

#[tokio::test]
async fn timestamps_grow_and_the_cluster_is_known() {
    let (mock, cluster) = MockPd::start(NO_ETCD).await;
    let pd = connect(&mock).await;
    assert_eq!(pd.cluster_id(), CLUSTER);
    let first = pd.tso().await.unwrap();
    assert_eq!(first, Tso::new(1000 << 18));
    cluster.clock.fetch_add(5, Ordering::SeqCst);
    assert!(pd.tso().await.unwrap() > first);
}

#[tokio::test]
async fn who_waits_together_shares_one_request() {
    let (mock, cluster) = MockPd::start(NO_ETCD).await;
    let pd = connect(&mock).await;
    pd.tso().await.unwrap();
    cluster.hold.send_replace(true);
    // One request is under way and held; everybody else gathers behind it.
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let pd = pd.clone();
            tokio::spawn(async move { pd.tso().await.unwrap() })
        })
        .collect();
    tokio::task::yield_now().await;
    cluster.hold.send_replace(false);
    let mut seen = BTreeSet::new();
    for caller in callers {
        seen.insert(soon("a timestamp", caller).await.unwrap());
    }
    let requests = cluster.requests.load(Ordering::SeqCst);
    assert_eq!(seen.len(), requests - 1);
    assert!(requests < 20, "{requests} requests for 1000 callers");
}

#[tokio::test]
async fn a_timestamp_is_never_older_than_the_call() {
    let (mock, cluster) = MockPd::start(NO_ETCD).await;
    let pd = connect(&mock).await;
    let ask = || {
        let pd = pd.clone();
        tokio::spawn(async move { pd.tso().await.unwrap() })
    };
    cluster.hold.send_replace(true);
    let early = ask();
    until("the first request", async || cluster.requests.load(Ordering::SeqCst) == 1).await;
    // The first timestamp is under way when PD gives others out; who asks after that must not get it.
    let before = cluster.clock.fetch_add(100, Ordering::SeqCst) + 100;
    let late = ask();
    tokio::task::yield_now().await;
    cluster.hold.send_replace(false);
    assert!(soon("the first timestamp", early).await.unwrap().get() < before);
    let late = soon("the second timestamp", late).await.unwrap();
    assert!(late.get() >= before, "{late} is older than {before}");
}

#[tokio::test]
async fn a_clock_that_goes_back_is_an_error_for_good() {
    let (mock, cluster) = MockPd::start(NO_ETCD).await;
    let pd = connect(&mock).await;
    let last = pd.tso().await.unwrap();
    // The same again is no step back.
    cluster.clock.store(last.get(), Ordering::SeqCst);
    assert_eq!(pd.tso().await.unwrap(), last);
    cluster.clock.store(last.get() - 10, Ordering::SeqCst);
    let error = pd.tso().await.unwrap_err();
    assert!(
        matches!(error, PdError::WentBack { last: l, got } if l == last && got == Tso::new(last.get() - 10))
    );
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn another_leader_is_found() {
    let cluster = Cluster::new(1000 << 18);
    let (first, second) = (MockPd::member(&cluster, NO_ETCD).await, MockPd::member(&cluster, NO_ETCD).await);
    *cluster.leader.lock().unwrap() = first.url.clone();
    let urls = [second.url.clone(), first.url.clone()];
    let pd = Pd::connect(&urls, &Security::default()).await.unwrap();
    let before = pd.tso().await.unwrap();
    assert_eq!(pd.region(b"t").await.unwrap().address, "tikv-4:20160");
    // The leader hands over and stays: it refuses.
    *cluster.leader.lock().unwrap() = second.url.clone();
    let after = soon("a timestamp of the second leader", pd.tso()).await.unwrap();
    assert!(after > before);
    soon("a region of the second leader", pd.region(b"t")).await.unwrap();
    // The leader dies; for a while nobody leads.
    *cluster.leader.lock().unwrap() = String::new();
    second.stop();
    let waiting = {
        let pd = pd.clone();
        tokio::spawn(async move { pd.tso().await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    *cluster.leader.lock().unwrap() = first.url.clone();
    assert!(soon("a timestamp of the first leader", waiting).await.unwrap().unwrap() > after);
}

#[tokio::test]
async fn regions_are_asked_for_in_pds_order_of_keys() {
    let (mock, cluster) = MockPd::start(NO_ETCD).await;
    let pd = connect(&mock).await;
    // Spawned, as the pump's resolver does: the future can move between threads.
    let route = tokio::spawn(async move { pd.region(b"12345678z").await.unwrap() }).await.unwrap();
    assert_eq!((route.region.id, route.leader.id, route.leader.store_id), (2, 3, 4));
    let expected = b"12345678\xffz\0\0\0\0\0\0\0\xf8".to_vec();
    assert_eq!(*cluster.region_keys.lock().unwrap(), [expected]);
}

#[tokio::test]
async fn service_safe_points() {
    let (mock, cluster) = MockPd::start(NO_ETCD).await;
    let pd = connect(&mock).await;
    cluster.safe_points.lock().unwrap().insert("gc_worker".to_owned(), (i64::MAX, 500));
    let day = Duration::from_secs(86_400);
    assert_eq!(
        pd.update_service_safe_point("sluice-pump-a", day, Tso::new(400)).await.unwrap(),
        Tso::new(400)
    );
    assert_eq!(cluster.safe_points.lock().unwrap()["sluice-pump-a"], (86_400, 400));
    assert_eq!(
        pd.update_service_safe_point("sluice-pump-a", day, Tso::new(600)).await.unwrap(),
        Tso::new(500)
    );
    pd.remove_service_safe_point("sluice-pump-a").await.unwrap();
    assert!(!cluster.safe_points.lock().unwrap().contains_key("sluice-pump-a"));
}

#[tokio::test]
async fn nobody_there() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let error = Pd::connect(std::slice::from_ref(&url), &Security::default()).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let shutdown = Shutdown::new();
    let (urls, security, until_shutdown) = ([url], Security::default(), shutdown.clone());
    let waiting = tokio::spawn(async move { Pd::connect_until(&urls, &security, &until_shutdown).await });
    tokio::task::yield_now().await;
    shutdown.cancel();
    assert!(matches!(soon("the end", waiting).await.unwrap(), Err(PdError::Ended)));
    let error = Pd::connect(&["https://pd:2379".to_owned()], &Security::default()).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("ssl-ca"), "{error}");
}

#[tokio::test]
async fn connecting_waits_for_pd() {
    let cluster = Cluster::new(1000 << 18);
    let mock = MockPd::member(&cluster, NO_ETCD).await;
    let (urls, shutdown) = ([mock.url.clone()], Shutdown::new());
    let waiting =
        tokio::spawn(async move { Pd::connect_until(&urls, &Security::default(), &shutdown).await.unwrap() });
    until("a first attempt", async || !waiting.is_finished()).await;
    *cluster.leader.lock().unwrap() = mock.url.clone();
    assert_eq!(soon("the connection", waiting).await.unwrap().cluster_id(), CLUSTER);
}
