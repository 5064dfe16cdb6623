//! Two instances, broken connections, rows that are not as the log says.

use super::*;
use crate::mysql::batch::{Batch, Work};
use crate::mysql::config::ConflictPolicy;

fn t() -> Arc<Table> {
    table(1, "c", "t", vec![column(1, "id", 3), column(2, "u", 3), column(3, "v", 3)], &[&[1], &[2]])
}

fn r(id: i64, u: i64, v: i64) -> Row {
    row(vec![Value::Int(id), Value::Int(u), Value::Int(v)])
}

fn insert(id: i64, u: i64, v: i64) -> ChangeKind {
    ChangeKind::Insert { after: r(id, u, v) }
}

async fn server() -> Server {
    let server = Server::start().await;
    server.run("CREATE DATABASE c").await;
    server.run("CREATE TABLE c.t (id INT PRIMARY KEY, u INT UNIQUE, v INT)").await;
    server
}

async fn all(server: &Server) -> Vec<(i64, i64, i64)> {
    server.rows("SELECT id, u, v FROM c.t ORDER BY id").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_instance_waits_or_takes_over_and_the_first_one_writes_nothing_more() {
    let server = server().await;
    let config = server.config("two");
    let (first, session, stored) = attach(&config).await;
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    let mut other = server.session().await;
    // Another owner waits while the lease lasts.
    let taking = meta.take_lease(&mut other.conn, "somebody else", 60.0).await.unwrap();
    assert!(
        matches!(taking, Taking::Held { ref owner, seconds } if owner == "test" && seconds > 50),
        "{taking:?}"
    );
    assert!(meta.renew_lease(&mut other.conn, first, 60.0).await.unwrap());
    // The same owner, started again, takes it at once.
    let taking = meta.take_lease(&mut other.conn, "test", 0.001).await.unwrap();
    assert_eq!(taking, Taking::Granted(OwnerEpoch(first.0 + 1)));
    assert!(!meta.renew_lease(&mut other.conn, first, 60.0).await.unwrap());
    // The first instance wakes up and tries to write.
    let (work, todo) = mpsc::channel(4);
    let shutdown = Shutdown::new();
    let applier = applier(&config, meta.clone(), first, session, stored, &shutdown);
    work.send(Work::Batch(Box::new(batch(&server, &[insert(1, 1, 1)], 1).await))).await.unwrap();
    let error = applier.run(todo).await.unwrap_err();
    assert!(matches!(error, ApplyError::Fenced { .. }), "{error}");
    assert!(all(&server).await.is_empty());
    // The lease of the second one has run out, so anybody may have it now.
    let taking = meta.take_lease(&mut other.conn, "somebody else", 60.0).await.unwrap();
    assert!(matches!(taking, Taking::Granted(_)), "{taking:?}");
}

/// A batch of one transaction, as the preparer makes it.
async fn batch(server: &Server, kinds: &[ChangeKind], seq: u64) -> Batch {
    let mut fold = crate::mysql::fold::Fold::new();
    for kind in kinds {
        fold.add(Change { table: t(), kind: kind.clone(), cost: 10 });
    }
    let changes = fold.changes();
    let (folded, anomalies) = fold.finish();
    let renderer = crate::mysql::renderer(&server.session().await, &server.config("any"));
    let statements = renderer.render(&folded).unwrap();
    Batch {
        statements,
        folded,
        after: Some(position(seq)),
        first_seq: seq,
        transactions: 1,
        changes,
        anomalies,
    }
}

/// A commit whose answer was lost: the stored position tells that it happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_not_repeated_when_its_answer_is_lost() {
    let server = server().await;
    let config = server.config("lost");
    let (owner, session, stored) = attach(&config).await;
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    let connection = session.conn.id();
    // What the lost transaction did.
    let mut other = server.session().await;
    assert!(meta.advance(&mut other.conn, &position(0), &position(1), owner).await.unwrap());
    other.conn.query_drop("INSERT INTO c.t VALUES (1, 1, 1)").await.unwrap();
    // Our connection is gone, and we do not know.
    other.conn.query_drop(format!("KILL {connection}")).await.unwrap();
    let (work, todo) = mpsc::channel(4);
    let shutdown = Shutdown::new();
    let applier = applier(&config, meta, owner, session, stored, &shutdown);
    work.send(Work::Batch(Box::new(batch(&server, &[insert(1, 1, 1)], 1).await))).await.unwrap();
    work.send(Work::Batch(Box::new(batch(&server, &[insert(2, 2, 2)], 2).await))).await.unwrap();
    work.send(Work::Finish(position(2))).await.unwrap();
    applier.run(todo).await.unwrap();
    assert_eq!(all(&server).await, [(1, 1, 1), (2, 2, 2)]);
}

/// A connection that breaks between transactions, or a server error that passes, is survived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_row_is_waited_for() {
    let server = server().await;
    server.run("INSERT INTO c.t VALUES (1, 1, 1)").await;
    server.run("SET GLOBAL innodb_lock_wait_timeout = 1").await;
    let config = server.config("locked");
    let mut holder = server.session().await;
    holder.conn.query_drop("BEGIN").await.unwrap();
    holder.conn.query_drop("SELECT * FROM c.t WHERE id = 1 FOR UPDATE").await.unwrap();
    let table = t();
    let applying = tokio::spawn(async move {
        let update = ChangeKind::Update { before: r(1, 1, 1), after: r(1, 1, 2) };
        apply(&config, vec![txn(1, &table, vec![update]), end(1)]).await
    });
    // It has met the lock once it has waited for it in vain at least once.
    loop {
        let waits: Vec<(String, u64)> = server.rows("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_waits'").await;
        if waits[0].1 > 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(all(&server).await, [(1, 1, 1)]);
    holder.conn.query_drop("ROLLBACK").await.unwrap();
    applying.await.unwrap().unwrap();
    assert_eq!(all(&server).await, [(1, 1, 2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_not_as_the_log_says() {
    let server = server().await;
    let table = t();
    let missing_update = || ChangeKind::Update { before: r(1, 1, 1), after: r(1, 1, 2) };
    let missing_delete = || ChangeKind::Delete { before: r(9, 9, 9) };
    // Rows around it, so that the statement is one for many.
    let around = || vec![insert(5, 5, 5), insert(6, 6, 6)];
    for (name, policy, kinds, expected) in [
        (
            "heal",
            ConflictPolicy::Heal,
            vec![missing_update(), missing_delete()],
            Ok(vec![(1, 1, 2), (5, 5, 5), (6, 6, 6)]),
        ),
        (
            "stop1",
            ConflictPolicy::Stop,
            vec![missing_update()],
            Err("a row to update is missing in c.t (id=1)"),
        ),
        (
            "stop2",
            ConflictPolicy::Stop,
            vec![missing_delete()],
            Err("a row to delete is missing in c.t (id=9)"),
        ),
        ("present", ConflictPolicy::Heal, vec![insert(7, 7, 7)], Err("already there in c.t (id=7)")),
        (
            "unique",
            ConflictPolicy::Heal,
            vec![insert(8, 7, 8)],
            Err(
                "already there in c.t (id=8), by its key u. The target was changed by somebody else, or was not where the log \
                 begins, or the upstream is dropping that key",
            ),
        ),
        (
            "over",
            ConflictPolicy::Overwrite,
            vec![insert(8, 7, 8), missing_update()],
            Ok(vec![(1, 1, 2), (5, 5, 5), (6, 6, 6), (8, 7, 8)]),
        ),
    ] {
        server.run("TRUNCATE TABLE c.t").await;
        let stands_in_the_way = matches!(name, "present" | "unique" | "over");
        if stands_in_the_way {
            server.run("INSERT INTO c.t VALUES (7, 7, 0)").await;
        }
        let mut config = server.config(name);
        config.apply.conflict = policy;
        let mut all_kinds = around();
        all_kinds.extend(kinds);
        let result = apply(&config, vec![txn(1, &table, all_kinds), end(1)]).await;
        match (result, expected) {
            (Ok(()), Ok(rows)) => assert_eq!(all(&server).await, rows, "{name}"),
            (Err(error), Err(text)) => {
                assert!(error.to_string().contains(text), "{name}: {error}");
                // Nothing of the transaction stays, and the position does not move.
                let left = if stands_in_the_way { vec![(7, 7, 0)] } else { vec![] };
                assert_eq!(all(&server).await, left, "{name}");
                let at: Vec<u64> = server.rows(&format!("SELECT seq FROM meta_{name}.progress")).await;
                assert_eq!(at, [0], "{name}");
            }
            (result, expected) => panic!("{name}: {result:?} instead of {expected:?}"),
        }
    }
}

/// Values do not reach logs and errors unless they may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_keep_values_to_themselves() {
    let server = server().await;
    server.run("INSERT INTO c.t VALUES (424242, 1, 0)").await;
    let mut config = server.config("quiet");
    config.apply.show_values = false;
    let error = apply(&config, vec![txn(1, &t(), vec![insert(424_242, 2, 2)]), end(1)]).await.unwrap_err();
    let said = format!("{error:?} {error}");
    assert!(!said.contains("424242") && said.contains("c.t"), "{said}");
}

/// The commit of a connection that broke goes through only after the position was looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_arrives_late_is_not_somebody_else_s() {
    let server = server().await;
    let config = server.config("late");
    let (owner, session, stored) = attach(&config).await;
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    // The lost transaction, about to commit: another server's, say, whose connection we cannot end.
    let mut other = server.session().await;
    other.conn.query_drop("BEGIN").await.unwrap();
    assert!(meta.advance(&mut other.conn, &position(0), &position(1), owner).await.unwrap());
    other.conn.query_drop("INSERT INTO c.t VALUES (1, 1, 1)").await.unwrap();
    let (work, todo) = mpsc::channel(4);
    let shutdown = Shutdown::new();
    let id = session.conn.id();
    let applier = applier(&config, meta, owner, session, stored, &shutdown);
    work.send(Work::Batch(Box::new(batch(&server, &[insert(1, 1, 1)], 1).await))).await.unwrap();
    work.send(Work::Batch(Box::new(batch(&server, &[insert(2, 2, 2)], 2).await))).await.unwrap();
    work.send(Work::Finish(position(2))).await.unwrap();
    let applying = tokio::spawn(applier.run(todo));
    // It saw the position before the commit, and now waits for the row.
    let waits = format!(
        "SELECT COUNT(*) FROM information_schema.processlist WHERE id = {id} AND info LIKE 'UPDATE%'"
    );
    while server.rows::<i64>(&waits).await != [1] {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    other.conn.query_drop("COMMIT").await.unwrap();
    applying.await.unwrap().unwrap();
    assert_eq!(all(&server).await, [(1, 1, 1), (2, 2, 2)]);
}

/// The connection that broke may be running still: it is ended before the position is believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_left_behind_is_ended() {
    let server = server().await;
    let mut left = server.session().await;
    let mut session = server.session().await;
    let id = left.conn.id();
    session.end(id.into()).await.unwrap();
    assert!(left.conn.query_drop("SELECT 1").await.is_err());
    assert!(
        server
            .rows::<u64>(&format!("SELECT id FROM information_schema.processlist WHERE id = {id}"))
            .await
            .is_empty()
    );
    // Once more: it is gone already.
    session.end(id.into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_a_gap_is_applied() {
    let server = server().await;
    let config = server.config("gap");
    let gap = schemas::sluice::v1::Gap { from: 10, to: 20, cause: "a lost disk".into() };
    let events =
        vec![txn(1, &t(), vec![insert(1, 1, 1)]), Event::Gap { gap, after: Some(position(2)) }, end(3)];
    let error = apply(&config, events).await.unwrap_err().to_string();
    assert!(error.contains("(10, 20]") && error.contains("a lost disk"), "{error}");
    assert_eq!(all(&server).await, [(1, 1, 1)]);
    assert_eq!(server.rows::<u64>("SELECT seq FROM meta_gap.progress").await, [1]);
}
