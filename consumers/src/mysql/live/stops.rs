//! Rows at which the process stops: it says which, waits, and goes on by itself when somebody has put them right.

use super::*;

fn t(definition: &[(&str, i32)]) -> Arc<Table> {
    let columns = definition.iter().zip(1..).map(|((name, kind), id)| column(id, name, *kind)).collect();
    table(1, "s", "t", columns, &[&[1]])
}

/// Applies events that stop, until `said` holds what it waits for; then `repair`s and waits for the end.
async fn stop_and_go(server: &Server, config: &mut Config, events: Vec<Event>, repair: &str) -> String {
    config.apply.on_stop = Some(OnStop::Hold);
    let (owner, session, stored) = attach(config).await;
    let shutdown = Shutdown::new();
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    let progress = Arc::new(FollowProgress::new());
    let health = Health::new();
    let renderer = crate::mysql::renderer(&session, config);
    let applier = Applier::new(Parts {
        config: config.clone(),
        meta,
        owner,
        session,
        position: stored,
        progress: progress.clone(),
        verdicts: Verdicts::default(),
        health: health.clone(),
        shutdown: shutdown.clone(),
    });
    let (sender, receiver) = queue::channel(64 << 20, &shutdown);
    let (work, todo) = mpsc::channel(1);
    let limits = Limits { rows: config.apply.batch_rows as u64, bytes: config.batch_bytes() };
    let prepared =
        tokio::spawn(Preparer::new(renderer, limits, GapPolicy::Stop, work).run(receiver, shutdown.clone()));
    let sent = tokio::task::spawn_blocking(move || {
        for event in events {
            if sender.send(event, 100).is_err() {
                return;
            }
        }
    });
    let applying = tokio::spawn(applier.run(todo));
    let waiting = || progress.to_json()["waiting_for"].as_str().map(str::to_owned);
    let said = loop {
        if let Some(said) = waiting() {
            break said;
        }
        assert!(!applying.is_finished(), "it did not stop");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(!health.is_ready(), "{said}");
    // Nothing of the transaction is there meanwhile.
    assert!(server.rows::<u64>("SELECT COUNT(*) FROM s.t WHERE id > 1").await == [0]);
    server.run(repair).await;
    applying.await.unwrap().unwrap();
    assert!(health.is_ready());
    assert_eq!(waiting(), None);
    shutdown.cancel();
    prepared.await.unwrap().unwrap();
    sent.await.unwrap();
    said
}

/// Upstream `DROP INDEX u` has begun: rows equal in it come, its own DDL comes after them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_being_dropped_is_dropped_by_hand() {
    let server = Server::start().await;
    server.run("CREATE DATABASE s").await;
    let r = |id, u| row(vec![Value::Int(id), Value::Int(u)]);
    let insert = |id, u| ChangeKind::Insert { after: r(id, u) };
    server.run("CREATE TABLE s.t (id INT PRIMARY KEY, u INT UNIQUE)").await;
    let by_primary = t(&[("id", 3), ("u", 3)]);
    let events = vec![
        txn(1, &by_primary, vec![insert(1, 5)]),
        txn(2, &by_primary, vec![insert(2, 6), insert(3, 5)]),
        end(2),
    ];
    let mut config = server.config("primary");
    let said = stop_and_go(&server, &mut config, events, "ALTER TABLE s.t DROP INDEX u").await;
    assert!(
        said.contains("in s.t (id=3), by its key u.") && said.contains("drop the key here by hand"),
        "{said}"
    );
    assert_eq!(
        server.rows::<(i64, i64)>("SELECT id, u FROM s.t ORDER BY id").await,
        [(1, 5), (2, 6), (3, 5)]
    );

    // It is the only key: which row is meant is told by all their values.
    server.run("DROP TABLE s.t").await;
    server.run("CREATE TABLE s.t (id INT NOT NULL, u INT, UNIQUE KEY k (id))").await;
    let mut by_unique = by_primary.definition.clone();
    by_unique.unique_keys[0].primary = false;
    by_unique.columns[0].not_null = true;
    let by_unique = Arc::new(Table::new(by_unique));
    let update = |from: Row, to: Row| ChangeKind::Update { before: from, after: to };
    let events = vec![
        txn(1, &by_unique, vec![insert(1, 1), insert(1, 2)]),
        // A schema change's place: what comes after it is another batch.
        Event::Passed(position(1)),
        txn(2, &by_unique, vec![update(r(1, 2), r(1, 3)), insert(4, 4)]),
        txn(3, &by_unique, vec![ChangeKind::Delete { before: r(1, 1) }]),
        end(3),
    ];
    let mut config = server.config("unique");
    config.apply.batch_rows = 1;
    let said = stop_and_go(&server, &mut config, events, "ALTER TABLE s.t DROP INDEX k").await;
    assert!(said.contains("by its key k"), "{said}");
    assert_eq!(server.rows::<(i64, i64)>("SELECT id, u FROM s.t ORDER BY id").await, [(1, 3), (4, 4)]);
}

/// TiDB can hold bytes in a text column that are no text (its checks can be switched off). They are not changed on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_text_stop_and_are_named() {
    let server = Server::start().await;
    server.run("CREATE DATABASE s").await;
    server.run("CREATE TABLE s.t (id INT PRIMARY KEY, note VARCHAR(20) CHARACTER SET utf8mb4)").await;
    let bytes = || Value::Bytes(bytes::Bytes::from_static(b"\xff\xfe"));
    let insert = |id| ChangeKind::Insert { after: row(vec![Value::Int(id), bytes()]) };
    let events = || {
        let text = ChangeKind::Insert { after: row(vec![Value::Int(2), text("fine")]) };
        vec![txn(1, &t(&[("id", 3), ("note", 15)]), vec![text, insert(7)]), end(1)]
    };
    let error = apply(&server.config("exits"), events()).await.unwrap_err().to_string();
    for part in ["in s.t (id=7)", "1366", "Column note", "VARBINARY"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let mut config = server.config("holds");
    let said = stop_and_go(&server, &mut config, events(), "ALTER TABLE s.t MODIFY note VARBINARY(20)").await;
    assert_eq!(said, error);
    assert_eq!(
        server.rows::<(i64, Vec<u8>)>("SELECT id, note FROM s.t ORDER BY id").await,
        [(2, b"fine".to_vec()), (7, vec![0xff, 0xfe])]
    );
}

/// MariaDB takes no JSON of more than 32 levels; without its CHECK it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_that_is_too_deep_for_mariadb_stops_and_is_named() {
    let server = Server::start().await;
    server.run("CREATE DATABASE s").await;
    server.run("CREATE TABLE s.t (id INT PRIMARY KEY, doc JSON)").await;
    let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
    let json = Value::Json(schemas::sluice::v1::Json { text: deep.clone(), binary: bytes::Bytes::new() });
    let insert = ChangeKind::Insert { after: row(vec![Value::Int(2), json]) };
    let events = vec![txn(1, &t(&[("id", 3), ("doc", 245)]), vec![insert]), end(1)];
    let mut config = server.config("deep");
    let said = stop_and_go(
        &server,
        &mut config,
        events,
        "ALTER TABLE s.t MODIFY doc LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    )
    .await;
    assert!(said.contains("in s.t (id=2)") && said.contains("32 levels"), "{said}");
    assert_eq!(server.rows::<String>("SELECT doc FROM s.t").await, [deep]);
}
