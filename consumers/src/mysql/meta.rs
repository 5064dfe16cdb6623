//! What a consumer keeps in its target: the lease of the one active instance and the position.
//!
//! ```text
//! sluice_meta.lease     (consumer, owner, owner_epoch, expires_at)        one active instance
//! sluice_meta.progress  (consumer, feed_id, epoch, seq, commit_ts, commits_offset, owner_epoch)
//! ```
//!
//! The position changes in the same transaction as the rows, `WHERE` it is still what it was and the lease is still ours:
//! an instance that lost its lease finds no row to change and cannot commit, however long it was asleep. Times are the
//! target's own clock.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, Row as DbRow, params};
use tidb::ts::CommitTs;

use super::literal::quoted;
use crate::position::{FeedId, Position};

/// Names of the tables, and whose rows are ours.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    database: String,
    consumer: String,
}

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnerEpoch(pub(crate) u64);

/// What became of the attempt to take the lease.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    Granted(OwnerEpoch),
    /// Another instance holds it.
    Held {
        owner: String,
        seconds: i64,
    },
}

impl Meta {
    pub(crate) fn new(database: &str, consumer: &str) -> Self {
        Self { database: quoted(database), consumer: consumer.to_owned() }
    }

    pub(crate) fn consumer(&self) -> &str {
        &self.consumer
    }

    pub(crate) fn table(&self, name: &str) -> String {
        format!("{}.{}", self.database, quoted(name))
    }

    /// Makes the tables if they are not there.
    pub(crate) async fn create(&self, conn: &mut Conn) -> Result<(), Error> {
        let name = "consumer VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL";
        let text = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";
        let tables = [
            format!(
                "CREATE TABLE IF NOT EXISTS {} ({name}, owner VARCHAR(512) {text} NOT NULL, owner_epoch BIGINT UNSIGNED \
                 NOT NULL, expires_at DATETIME(6) NOT NULL, PRIMARY KEY (consumer))",
                self.table("lease")
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {} ({name}, feed_id CHAR(32) {text} NOT NULL, epoch BIGINT UNSIGNED NOT NULL, \
                 seq BIGINT UNSIGNED NOT NULL, commit_ts BIGINT UNSIGNED NOT NULL, commits_offset BIGINT NOT NULL, \
                 owner_epoch BIGINT UNSIGNED NOT NULL, PRIMARY KEY (consumer))",
                self.table("progress")
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {} ({name}, seq BIGINT UNSIGNED NOT NULL, job_id BIGINT NOT NULL, commit_ts \
                 BIGINT UNSIGNED NOT NULL, statements LONGTEXT {text} NOT NULL, step INT UNSIGNED NOT NULL, state \
                 VARCHAR(16) {text} NOT NULL, connection_id BIGINT UNSIGNED NOT NULL, before_step LONGTEXT {text} NOT \
                 NULL, PRIMARY KEY (consumer, seq))",
                self.table("ddl_journal")
            ),
        ];
        conn.query_drop(format!("CREATE DATABASE IF NOT EXISTS {}", self.database)).await?;
        for table in tables {
            conn.query_drop(table).await?;
        }
        self.prune_journal(conn).await
    }

    /// Keeps the last schema changes, for whoever wants to know what was run.
    async fn prune_journal(&self, conn: &mut Conn) -> Result<(), Error> {
        const KEPT: u64 = 1000;
        let journal = self.table("ddl_journal");
        let consumer = &self.consumer;
        let oldest: Option<u64> = conn
            .exec_first(
                format!("SELECT seq FROM {journal} WHERE consumer = :consumer ORDER BY seq DESC LIMIT 1 OFFSET {KEPT}"),
                params! { consumer },
            )
            .await?;
        let Some(oldest) = oldest else { return Ok(()) };
        let delete =
            format!("DELETE FROM {journal} WHERE consumer = :consumer AND seq <= :oldest AND state = 'done'");
        conn.exec_drop(delete, params! { consumer, oldest }).await
    }

    /// Takes the lease if nobody else holds it, or if `owner` is who held it last: then its process is dead, for the data
    /// directory is locked by us.
    pub(crate) async fn take_lease(
        &self,
        conn: &mut Conn,
        owner: &str,
        ttl_seconds: f64,
    ) -> Result<Taking, Error> {
        let lease = self.table("lease");
        let consumer = &self.consumer;
        conn.exec_drop(
            format!("INSERT IGNORE INTO {lease} VALUES (:consumer, '', 0, '1970-01-01 00:00:00')"),
            params! { consumer },
        )
        .await?;
        conn.query_drop("BEGIN").await?;
        let held: Option<(String, u64, i64)> = conn
            .exec_first(
                format!(
                    "SELECT owner, owner_epoch, CAST(CEILING(TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), expires_at) / \
                     1000000) AS SIGNED) FROM {lease} WHERE consumer = :consumer FOR UPDATE"
                ),
                params! { consumer },
            )
            .await?;
        let (holder, epoch, seconds) = held.unwrap_or_default();
        if seconds > 0 && holder != owner {
            conn.query_drop("ROLLBACK").await?;
            return Ok(Taking::Held { owner: holder, seconds });
        }
        let owner_epoch = epoch + 1;
        let micros = (ttl_seconds * 1e6) as u64;
        conn.exec_drop(
            format!(
                "UPDATE {lease} SET owner = :owner, owner_epoch = :owner_epoch, expires_at = UTC_TIMESTAMP(6) + INTERVAL \
                 :micros MICROSECOND WHERE consumer = :consumer"
            ),
            params! { owner, owner_epoch, micros, consumer },
        )
        .await?;
        conn.exec_drop(
            format!(
                "UPDATE {} SET owner_epoch = :owner_epoch WHERE consumer = :consumer",
                self.table("progress")
            ),
            params! { owner_epoch, consumer },
        )
        .await?;
        conn.query_drop("COMMIT").await?;
        Ok(Taking::Granted(OwnerEpoch(owner_epoch)))
    }

    /// Renews the lease; false if it is not ours any more.
    pub(crate) async fn renew_lease(
        &self,
        conn: &mut Conn,
        epoch: OwnerEpoch,
        ttl_seconds: f64,
    ) -> Result<bool, Error> {
        let micros = (ttl_seconds * 1e6) as u64;
        conn.exec_drop(
            format!(
                "UPDATE {} SET expires_at = UTC_TIMESTAMP(6) + INTERVAL :micros MICROSECOND WHERE consumer = :consumer \
                 AND owner_epoch = :epoch",
                self.table("lease")
            ),
            params! { micros, "consumer" => &self.consumer, "epoch" => epoch.0 },
        )
        .await?;
        Ok(conn.affected_rows() == 1)
    }

    /// Lets the lease go, so that a successor need not wait.
    pub(crate) async fn release_lease(&self, conn: &mut Conn, epoch: OwnerEpoch) -> Result<(), Error> {
        conn.exec_drop(
            format!(
                "UPDATE {} SET expires_at = UTC_TIMESTAMP(6) WHERE consumer = :consumer AND owner_epoch = :epoch",
                self.table("lease")
            ),
            params! { "consumer" => &self.consumer, "epoch" => epoch.0 },
        )
        .await
    }

    /// The stored position.
    pub(crate) async fn position(&self, conn: &mut Conn) -> Result<Option<StoredPosition>, Error> {
        let row: Option<DbRow> = conn
            .exec_first(
                format!(
                    "SELECT feed_id, epoch, seq, commit_ts, commits_offset, owner_epoch FROM {} WHERE consumer = :consumer",
                    self.table("progress")
                ),
                params! { "consumer" => &self.consumer },
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let (feed_id, epoch, seq, commit_ts, commits_offset, owner_epoch) =
            mysql_async::from_row_opt::<(String, u64, u64, u64, i64, u64)>(row)
                .map_err(|error| Error::Other(Box::new(error)))?;
        let feed_id: FeedId = feed_id.parse().map_err(|error| Error::Other(Box::new(error)))?;
        let position = Position { feed_id, epoch, seq, commit_ts: CommitTs::new(commit_ts), commits_offset };
        Ok(Some(StoredPosition { position, owner_epoch: OwnerEpoch(owner_epoch) }))
    }

    /// Stores the first position.
    pub(crate) async fn attach(
        &self,
        conn: &mut Conn,
        position: &Position,
        epoch: OwnerEpoch,
    ) -> Result<(), Error> {
        conn.exec_drop(
            format!(
                "INSERT INTO {} (consumer, feed_id, epoch, seq, commit_ts, commits_offset, owner_epoch) VALUES (:consumer, \
                 :feed_id, :feed_epoch, :seq, :commit_ts, :commits_offset, :owner_epoch)",
                self.table("progress")
            ),
            params! {
                "consumer" => &self.consumer,
                "feed_id" => position.feed_id.to_string(),
                "feed_epoch" => position.epoch,
                "seq" => position.seq,
                "commit_ts" => position.commit_ts.get(),
                "commits_offset" => position.commits_offset,
                "owner_epoch" => epoch.0,
            },
        )
        .await
    }

    /// Within a transaction: moves the position from one to the other. False: it is not at `from`, or not ours.
    pub(crate) async fn advance(
        &self,
        conn: &mut Conn,
        from: &Position,
        to: &Position,
        epoch: OwnerEpoch,
    ) -> Result<bool, Error> {
        // Numbers and hexadecimal digits only: written out, it needs no round trip to prepare.
        conn.query_drop(format!(
            "UPDATE {} SET epoch = {}, seq = {}, commit_ts = {}, commits_offset = {} WHERE consumer = {} AND feed_id = \
             '{}' AND seq = {} AND commit_ts = {} AND commits_offset = {} AND owner_epoch = {}",
            self.table("progress"),
            to.epoch,
            to.seq,
            to.commit_ts,
            to.commits_offset,
            {
                let mut consumer = String::new();
                super::literal::string(&mut consumer, &self.consumer);
                consumer
            },
            from.feed_id,
            from.seq,
            from.commit_ts,
            from.commits_offset,
            epoch.0,
        ))
        .await?;
        Ok(conn.affected_rows() == 1)
    }
}

/// A position with the lease under which it was stored last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredPosition {
    pub(crate) position: Position,
    pub(crate) owner_epoch: OwnerEpoch,
}
