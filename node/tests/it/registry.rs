//! The registry in a real etcd.

use std::time::Duration;

use etcd_client::{CompactionOptions, GetOptions};
use node::registry::{Entry, NodeKind, NodeRecord, NodeState, Registry, RegistryError, Side};
use node::shutdown::Shutdown;
use node::tls::Security;
use serde_json::json;
use tidb::ts::{CommitTs, Tso};

use crate::rig::etcd::Etcd;
use crate::rig::{soon, until};

async fn registry(etcd: &Etcd) -> Registry {
    Registry::new(etcd.client().await)
}

async fn raw(etcd: &Etcd, key: &str) -> Option<String> {
    let mut client = etcd.client().await;
    let response = client.get(key, None).await.unwrap();
    response.kvs().first().map(|kv| kv.value_str().unwrap().to_owned())
}

fn ids(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(Entry::id).collect()
}

#[tokio::test]
async fn entries_are_created_updated_and_listed() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd).await;
    let mut record = NodeRecord::new("host:8250", "10.0.0.1:8250", NodeState::Online);
    let missing = registry.update(NodeKind::Pump, &record).await.unwrap_err();
    assert!(matches!(missing, RegistryError::NotFound { id, .. } if id == "host:8250"));
    registry.create(NodeKind::Pump, &record).await.unwrap();
    let twice = registry.create(NodeKind::Pump, &record).await.unwrap_err();
    assert!(matches!(twice, RegistryError::Exists { .. }));
    record.max_commit_ts = CommitTs::new(412_518_831_548_007_863);
    record.update_ts = Tso::new(412_518_831_338_292_471);
    registry.put(NodeKind::Pump, &record).await.unwrap();
    assert_eq!(
        raw(&etcd, "/tidb-binlog/v1/pumps/host:8250").await.unwrap(),
        r#"{"nodeId":"host:8250","host":"10.0.0.1:8250","state":"online","isAlive":false,"score":0,"label":null,"maxCommitTS":412518831548007863,"updateTS":412518831338292471}"#
    );
    let entries = registry.list(NodeKind::Pump).await.unwrap();
    assert_eq!(ids(&entries), ["host:8250"]);
    assert_eq!(entries[0].record, Some(record.clone()));
    assert_eq!(registry.list(NodeKind::Drainer).await.unwrap(), []);
    assert_eq!(registry.get(NodeKind::Pump, "other").await.unwrap(), None);

    let changed = registry.set_state(NodeKind::Pump, "host:8250", NodeState::Paused).await.unwrap();
    assert_eq!(changed, NodeRecord { state: NodeState::Paused, ..record });
    assert_eq!(registry.get(NodeKind::Pump, "host:8250").await.unwrap().unwrap().record, Some(changed));
    for id in ["", "a/b"] {
        let bad = NodeRecord::new(id, "h", NodeState::Online);
        assert!(matches!(registry.put(NodeKind::Pump, &bad).await, Err(RegistryError::BadId(_))));
    }
}

#[tokio::test]
async fn what_is_not_understood_is_named_by_its_key() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd).await;
    let mut client = etcd.client().await;
    for (key, value) in [
        ("/tidb-binlog/v1/pumps/p", "{\"nodeId\":\"p\"}"),
        ("/tidb-binlog/v1/pumps/p", "{\"nodeId\":\"q\",\"host\":\"h\",\"state\":\"online\"}"),
        ("/tidb-binlog/v1/pumps/a/b", "{}"),
        ("/sluice/v1/pumps/p", "{}"),
    ] {
        client.put(key, value, None).await.unwrap();
        let error = registry.list(NodeKind::Pump).await.unwrap_err();
        assert!(matches!(&error, RegistryError::Malformed { key: named, .. } if named == key), "{error}");
        assert!(!error.is_retryable());
        client.delete(key, None).await.unwrap();
    }
    // What is wrong elsewhere does not matter.
    client.put("/tidb-binlog/v1/drainers/d", "?", None).await.unwrap();
    assert_eq!(registry.list(NodeKind::Pump).await.unwrap(), []);
}

#[tokio::test]
async fn a_watch_tells_every_change_also_after_a_compaction() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd).await;
    let mut watch = registry.watch(NodeKind::Pump);
    assert_eq!(soon("the first list", watch.next()).await.unwrap(), []);
    let mut record = NodeRecord::new("p1", "h:1", NodeState::Paused);
    registry.create(NodeKind::Pump, &record).await.unwrap();
    assert_eq!(ids(&soon("a new node", watch.next()).await.unwrap()), ["p1"]);
    record.state = NodeState::Online;
    registry.update(NodeKind::Pump, &record).await.unwrap();
    assert_eq!(soon("a new state", watch.next()).await.unwrap()[0].state(), Some(NodeState::Online));
    // Something else's change is none of ours: the next list is that of the side entry.
    registry.create(NodeKind::Drainer, &NodeRecord::new("d", "h:2", NodeState::Online)).await.unwrap();
    let presence = registry.announce(NodeKind::Pump, Side::new("p2", "h:3")).await.unwrap();
    assert_eq!(ids(&soon("a side entry", watch.next()).await.unwrap()), ["p1", "p2"]);
    let shutdown = Shutdown::new();
    shutdown.cancel();
    presence.run(shutdown).await.unwrap();
    assert_eq!(ids(&soon("its end", watch.next()).await.unwrap()), ["p1"]);

    let mut client = etcd.client().await;
    client.put("/tidb-binlog/v1/pumps/p3", "garbage", None).await.unwrap();
    assert!(matches!(soon("garbage", watch.next()).await, Err(RegistryError::Malformed { .. })));
    client.delete("/tidb-binlog/v1/pumps/p3", None).await.unwrap();
    assert_eq!(ids(&soon("the garbage's end", watch.next()).await.unwrap()), ["p1"]);

    let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();
    let mut late = registry.watch(NodeKind::Pump);
    assert_eq!(ids(&soon("a list after the compaction", late.next()).await.unwrap()), ["p1"]);
    registry.create(NodeKind::Pump, &NodeRecord::new("p4", "h:4", NodeState::Online)).await.unwrap();
    for watch in [&mut watch, &mut late] {
        assert_eq!(ids(&soon("a change after the compaction", watch.next()).await.unwrap()), ["p1", "p4"]);
    }
}

#[tokio::test]
async fn a_watch_dropped_at_any_await_loses_nothing() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd).await;
    let mut watch = registry.watch(NodeKind::Pump);
    for n in 0..20u32 {
        registry
            .create(NodeKind::Pump, &NodeRecord::new(format!("p{n:02}"), "h", NodeState::Online))
            .await
            .unwrap();
        // Cut short again and again, at whatever point a growing time reaches.
        let mut patience = Duration::from_micros(1);
        let seen = soon("the change", async {
            loop {
                if let Ok(entries) = tokio::time::timeout(patience, watch.next()).await {
                    let entries = entries.unwrap();
                    if entries.len() == n as usize + 1 {
                        return entries;
                    }
                }
                patience = patience * 3 / 2;
            }
        })
        .await;
        assert_eq!(seen.last().unwrap().id(), format!("p{n:02}"));
    }
}

#[tokio::test]
async fn presence_lives_with_the_process_and_tells_its_facts() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd).await;
    let presence = registry.announce(NodeKind::Drainer, Side::new("d1", "h:1")).await.unwrap();
    let facts = presence.facts();
    let shutdown = Shutdown::new();
    let running = tokio::spawn(presence.run(shutdown.clone()));
    let entry = registry.get(NodeKind::Drainer, "d1").await.unwrap().unwrap();
    // A standby: alive, and in nobody's list.
    assert!(entry.record.is_none() && entry.is_alive(Tso::ZERO));
    assert_eq!(raw(&etcd, "/tidb-binlog/v1/drainers/d1").await, None);

    facts.set(json!({ "role": "leader" }));
    until("the new facts", async || {
        let entry = registry.get(NodeKind::Drainer, "d1").await.unwrap().unwrap();
        entry.side.unwrap().facts == json!({ "role": "leader" })
    })
    .await;

    // Its lease vanishes (as after a long pause of the process): it comes back by itself.
    let mut client = etcd.client().await;
    let kv = client.get("/sluice/v1/drainers/d1", None).await.unwrap().kvs()[0].clone();
    client.lease_revoke(kv.lease()).await.unwrap();
    assert!(registry.get(NodeKind::Drainer, "d1").await.unwrap().is_none());
    until("its return", async || registry.get(NodeKind::Drainer, "d1").await.unwrap().is_some()).await;
    let entry = registry.get(NodeKind::Drainer, "d1").await.unwrap().unwrap();
    assert_eq!(entry.side.unwrap().facts, json!({ "role": "leader" }));

    shutdown.cancel();
    soon("the end", running).await.unwrap().unwrap();
    assert!(registry.get(NodeKind::Drainer, "d1").await.unwrap().is_none());
}

#[tokio::test]
async fn a_node_id_belongs_to_one_living_process() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd).await;
    let first = registry.announce(NodeKind::Pump, Side::new("p", "h:1")).await.unwrap();
    // The same address: an earlier self, whose lease is simply taken over from.
    let again = registry.announce(NodeKind::Pump, Side::new("p", "h:1")).await.unwrap();
    drop(first);
    let shutdown = Shutdown::new();
    let running = tokio::spawn(again.run(shutdown.clone()));
    let error =
        soon("the refusal", registry.announce(NodeKind::Pump, Side::new("p", "h:2"))).await.unwrap_err();
    assert!(matches!(&error, RegistryError::InUse { host, .. } if host == "h:1"), "{error}");
    // Once the first has ended, the id is free.
    shutdown.cancel();
    running.await.unwrap().unwrap();
    registry.announce(NodeKind::Pump, Side::new("p", "h:2")).await.unwrap();
}

#[tokio::test]
async fn an_etcd_that_comes_later_is_waited_for() {
    // In etcd's place somebody who hangs up.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let urls = [format!("http://127.0.0.1:{port}")];
    let client = node::etcd::connect(&urls, &Security::default()).await.unwrap();
    let registry = Registry::new(client).at(&urls);
    let announcing = {
        let registry = registry.clone();
        tokio::spawn(async move { registry.announce(NodeKind::Pump, Side::new("p", "h:1")).await })
    };
    for _ in 0..3 {
        drop(soon("another attempt", listener.accept()).await.unwrap());
    }
    drop(listener);
    let _etcd = Etcd::start_at(port).await;
    let presence = soon("the entry", announcing).await.unwrap().unwrap();
    assert!(registry.get(NodeKind::Pump, "p").await.unwrap().is_some_and(|entry| entry.is_alive(Tso::ZERO)));
    drop(presence);
}

/// Long enough that a busy machine keeps a lease alive.
const TTL: Duration = Duration::from_secs(5);

#[tokio::test]
async fn one_leads_at_a_time() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd).await;
    let first = registry.campaign("drainer", "d1", TTL).await.unwrap();
    assert_eq!(registry.leader("drainer").await.unwrap().as_deref(), Some("d1"));
    // Other names are other elections.
    registry.campaign("other", "d9", TTL).await.unwrap().resign().await.unwrap();
    let waiting = {
        let registry = registry.clone();
        tokio::spawn(async move { registry.campaign("drainer", "d2", TTL).await.unwrap() })
    };
    // Longer than the lease: it is kept.
    tokio::time::sleep(TTL + Duration::from_secs(1)).await;
    assert!(first.is_held() && !waiting.is_finished());
    let revision = first.revision();
    first.resign().await.unwrap();
    let second = soon("the second leader", waiting).await.unwrap();
    assert!(second.revision() > revision);
    assert_eq!(registry.leader("drainer").await.unwrap().as_deref(), Some("d2"));
    // Dropped without a word, as by a crash: the lease runs out.
    drop(second);
    let third = soon("the third leader", registry.campaign("drainer", "d3", TTL)).await.unwrap();
    assert!(third.is_held());
}

/// A leader that froze wakes with a heartbeat on its lips: its successor has retired its entry, and so it stays.
#[tokio::test]
async fn a_former_leader_cannot_rewrite_its_entry() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd).await;
    let first = registry.campaign("drainer", "d1", TTL).await.unwrap();
    let record = NodeRecord::new("d1", "h:1", NodeState::Online);
    assert!(registry.put_leading(&first, NodeKind::Drainer, &record).await.unwrap());
    let later = NodeRecord { max_commit_ts: CommitTs::new(7), ..record.clone() };
    assert!(registry.put_leading(&first, NodeKind::Drainer, &later).await.unwrap());

    // The lease runs out without the first one's knowledge.
    let mut client = etcd.client().await;
    let kv = client.get("/sluice/v1/leaders/drainer", None).await.unwrap().kvs()[0].clone();
    client.lease_revoke(kv.lease()).await.unwrap();
    let woken = registry.put_leading(&first, NodeKind::Drainer, &record).await.unwrap();
    assert!(!woken, "nobody leads");
    let second = registry.campaign("drainer", "d2", TTL).await.unwrap();
    let retired = registry.set_state(NodeKind::Drainer, "d1", NodeState::Offline).await.unwrap();
    assert!(!registry.put_leading(&first, NodeKind::Drainer, &record).await.unwrap());
    let entry = registry.get(NodeKind::Drainer, "d1").await.unwrap().unwrap();
    assert_eq!(entry.record, Some(retired.clone()));
    assert_eq!((retired.state, retired.max_commit_ts), (NodeState::Offline, CommitTs::new(7)));
    let successor = NodeRecord::new("d2", "h:2", NodeState::Online);
    assert!(registry.put_leading(&second, NodeKind::Drainer, &successor).await.unwrap());
}

#[tokio::test]
async fn leadership_is_lost_with_the_key_or_with_etcd() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd).await;
    let leadership = registry.campaign("drainer", "d1", TTL).await.unwrap();
    let mut client = etcd.client().await;
    client
        .delete("/sluice/v1/leaders/", Some(etcd_client::DeleteOptions::new().with_prefix()))
        .await
        .unwrap();
    soon("the loss of the key", leadership.lost()).await;
    assert!(!leadership.is_held());

    let leadership = registry.campaign("drainer", "d2", TTL).await.unwrap();
    etcd.freeze(true);
    soon("the loss without etcd", leadership.lost()).await;
    etcd.freeze(false);
    // Nothing was left but the key, which goes with its lease.
    until("the lease's end", async || {
        let found = client.get("/sluice/v1/leaders/", Some(GetOptions::new().with_prefix())).await;
        found.is_ok_and(|found| found.kvs().is_empty())
    })
    .await;
}
