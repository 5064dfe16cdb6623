//! PD's and TiKV's stand-ins over real connections, and etcd's services through PD's port.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test prepares may fail loudly"
)]

mod etcd;

use bytes::Bytes;
use etcd::Etcd;
use etcd_client::{Client, Compare, CompareOp, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use schemas::kvrpcpb::{Action, CheckTxnStatusRequest, Context};
use schemas::pdpb::pd_client::PdClient;
use schemas::pdpb::{
    GetMembersRequest, GetRegionRequest, GetStoreRequest, RequestHeader, TsoRequest,
    UpdateServiceGcSafePointRequest,
};
use schemas::tikvpb::tikv_client::TikvClient;
use simulator::cluster::Cluster;
use simulator::pd::MockPd;
use simulator::tikv::MockTikv;
use simulator::topology::Fault;
use tidb::ts::{CommitTs, StartTs, Tso};
use tonic::Code;

const CLUSTER: u64 = 7_000_000_000_000_000_001;

fn header() -> Option<RequestHeader> {
    Some(RequestHeader { cluster_id: CLUSTER, sender_id: 0 })
}

#[tokio::test]
async fn pd_answers_its_own_cluster() {
    let cluster = Cluster::live(CLUSTER);
    let pd = MockPd::start(cluster.clone(), "127.0.0.1:0", None).await.unwrap();
    let mut client = PdClient::connect(pd.url()).await.unwrap();

    let members = client.get_members(GetMembersRequest { header: None }).await.unwrap().into_inner();
    assert_eq!(members.header.unwrap().cluster_id, CLUSTER);
    assert_eq!(members.leader.unwrap().client_urls, [pd.url()]);

    let requests = [1, 10, 1].map(|count| TsoRequest { header: header(), count, dc_location: String::new() });
    let mut answers = client.tso(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut last = Tso::ZERO;
    while let Some(answer) = answers.message().await.unwrap() {
        let ts = answer.timestamp.unwrap();
        let ts = Tso::from_parts(ts.physical as u64, ts.logical as u64);
        assert!(ts.get() >= last.get() + u64::from(answer.count));
        last = ts;
    }
    assert_eq!(cluster.tso().physical_ms().saturating_sub(last.physical_ms()) / 60_000, 0);

    let foreign = TsoRequest { header: None, count: 1, dc_location: String::new() };
    let mut answers = client.tso(tokio_stream::iter([foreign])).await.unwrap().into_inner();
    let refused = answers.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("mismatch cluster id"), "{refused}");
}

#[tokio::test]
async fn safe_points() {
    let cluster = Cluster::live(CLUSTER);
    let pd = MockPd::start(cluster.clone(), "127.0.0.1:0", None).await.unwrap();
    let mut client = PdClient::connect(pd.url()).await.unwrap();
    let mut update = async |service: &'static str, ttl, safe_point| {
        let request = UpdateServiceGcSafePointRequest {
            header: header(),
            service_id: Bytes::from_static(service.as_bytes()),
            ttl,
            safe_point,
        };
        client.update_service_gc_safe_point(request).await.unwrap().into_inner().min_safe_point
    };
    assert_eq!(update("gc_worker", i64::MAX, 100).await, 100);
    assert_eq!(update("pump", 86_400, 200).await, 100);
    assert_eq!(update("gc_worker", i64::MAX, 300).await, 200);
    // Too late: 150 may be collected already.
    assert_eq!(update("late", 86_400, 150).await, 200);
    assert_eq!(cluster.safe_points().get("late"), None);
    assert_eq!(update("pump", 0, 0).await, 300);
}

#[tokio::test]
async fn tikv_is_found_through_pd_and_asked_about_a_transaction() {
    let cluster = Cluster::live(CLUSTER);
    let tikv = MockTikv::start(cluster.clone(), "127.0.0.1:0").await.unwrap();
    let pd = MockPd::start(cluster.clone(), "127.0.0.1:0", None).await.unwrap();
    let mut client = PdClient::connect(pd.url()).await.unwrap();

    let mut region_key = Vec::new();
    tidb::memcomparable::encode(&mut region_key, b"primary");
    let request = GetRegionRequest { header: header(), region_key: region_key.into() };
    let found = client.get_region(request).await.unwrap().into_inner();
    let (region, leader) = (found.region.unwrap(), found.leader.unwrap());
    let request = GetStoreRequest { header: header(), store_id: leader.store_id };
    let store = client.get_store(request).await.unwrap().into_inner().store.unwrap();
    assert_eq!(store.address, tikv.address());
    let request = GetStoreRequest { header: header(), store_id: 99 };
    let missing = client.get_store(request).await.unwrap().into_inner();
    assert!(missing.header.unwrap().error.unwrap().message.contains("99"));

    let start_ts = StartTs(cluster.tso());
    let question = CheckTxnStatusRequest {
        context: Some(Context {
            region_id: region.id,
            region_epoch: region.region_epoch,
            peer: Some(leader),
        }),
        primary_key: Bytes::from_static(b"primary"),
        lock_ts: start_ts.get(),
        caller_start_ts: cluster.tso().get(),
        current_ts: cluster.tso().get(),
        ..CheckTxnStatusRequest::default()
    };
    let mut client = TikvClient::connect(format!("http://{}", store.address)).await.unwrap();
    let mut ask = async || client.kv_check_txn_status(question.clone()).await.unwrap().into_inner();
    assert!(ask().await.error.unwrap().txn_not_found.is_some());
    cluster.prewrite(start_ts, "primary");
    assert_eq!(ask().await.action(), Action::MinCommitTsPushed);
    cluster.inject([Fault::NotLeader]);
    assert!(ask().await.region_error.unwrap().not_leader.is_some());
    let commit_ts = CommitTs(cluster.tso());
    assert!(cluster.commit(start_ts, commit_ts));
    assert_eq!(ask().await.commit_version, commit_ts.get());
    cluster.bump_epochs();
    assert!(ask().await.region_error.unwrap().epoch_not_match.is_some());
    assert_eq!(cluster.questions(), 5);
}

#[tokio::test]
async fn a_stopped_stand_in_cuts_its_connections() {
    let cluster = Cluster::live(CLUSTER);
    let pd = MockPd::start(cluster, "127.0.0.1:0", None).await.unwrap();
    let mut client = PdClient::connect(pd.url()).await.unwrap();
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    requests.send(TsoRequest { header: header(), count: 1, dc_location: String::new() }).await.unwrap();
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut answers = client.tso(outgoing).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    drop(pd);
    assert!(answers.message().await.is_err());
}

#[tokio::test]
async fn without_an_etcd_its_calls_are_refused() {
    let pd = MockPd::start(Cluster::live(CLUSTER), "127.0.0.1:0", None).await.unwrap();
    let mut client = Client::connect([pd.url()], None).await.unwrap();
    let error = client.get("k", None).await.unwrap_err().to_string();
    assert!(error.contains("--etcd"), "{error}");
    // An etcd that is not there is named as the cause.
    let gone =
        MockPd::start(Cluster::live(CLUSTER), "127.0.0.1:0", Some("http://127.0.0.1:1")).await.unwrap();
    let mut client = Client::connect([gone.url()], None).await.unwrap();
    let error = client.get("k", None).await.unwrap_err().to_string();
    assert!(error.contains("etcd behind this PD"), "{error}");
}

#[tokio::test]
async fn etcd_through_pds_port() {
    let etcd = Etcd::start().await;
    let pd = MockPd::start(Cluster::live(CLUSTER), "127.0.0.1:0", Some(&etcd.url)).await.unwrap();
    let mut through = Client::connect([pd.url()], None).await.unwrap();
    let mut direct = Client::connect([&etcd.url], None).await.unwrap();

    // Both ways at once: the watch's stream stays open while keys are written.
    let options = WatchOptions::new().with_prefix();
    let mut watch = through.watch("/pumps/", Some(options)).await.unwrap();
    assert!(watch.message().await.unwrap().unwrap().created());
    direct.put("/pumps/a", "1", None).await.unwrap();
    let next = watch.message().await.unwrap().unwrap();
    assert_eq!(next.events()[0].kv().unwrap().key(), b"/pumps/a");

    let create = Txn::new()
        .when([Compare::mod_revision("/pumps/b", CompareOp::Equal, 0)])
        .and_then([TxnOp::put("/pumps/b", "2", None)]);
    assert!(through.txn(create.clone()).await.unwrap().succeeded());
    assert!(!through.txn(create).await.unwrap().succeeded());
    let all = through.get("/pumps/", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert_eq!(all.kvs().iter().map(|kv| kv.value()).collect::<Vec<_>>(), [b"1", b"2"]);

    let lease = through.lease_grant(60, None).await.unwrap().id();
    through.put("/pumps/c", "3", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let (mut keeper, mut kept) = through.lease_keep_alive(lease).await.unwrap();
    for _ in 0..3 {
        keeper.keep_alive().await.unwrap();
        assert_eq!(kept.message().await.unwrap().unwrap().ttl(), 60);
    }
    direct.lease_revoke(lease).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let message = watch.message().await.unwrap().unwrap();
        seen.extend(message.events().iter().map(|event| event.event_type()));
    }
    assert_eq!(seen, [EventType::Put, EventType::Put, EventType::Delete]);
    // An error of etcd's own arrives as such.
    let error = through.lease_revoke(lease).await.unwrap_err().to_string();
    assert!(error.contains("lease not found"), "{error}");
}
