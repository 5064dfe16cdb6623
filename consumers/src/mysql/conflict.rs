//! A batch row by row: what becomes of rows that are not as the log says, and of rows that the target refuses.
//!
//! Runs within the batch's transaction, so a crash or a stop here leaves nothing behind. The order is that of the batch.

use mysql_async::Error;
use tracing::warn;

use super::apply::{Applier, Failed};
use super::batch::Batch;
use super::config::ConflictPolicy;
use super::error::ApplyError;
use super::session::{is_transient, server_text};
use super::sql::{Kind, Single, Statement};
use crate::metrics;

/// Duplicate entry for a key.
const DUPLICATE: u16 = 1062;
/// A value is no text in the column's charset.
const NO_TEXT: u16 = 1366;
/// A CHECK is not met.
const CHECK: u16 = 4025;

/// What else may be behind a row in the way.
const KEY_GOING: &str = ", or the upstream is dropping that key: as soon as it begins to, rows come that are equal in it, and \
                         its own DROP comes after them. Then drop the key here by hand, and leave its job out with \
                         `binlogctl ddl skip` if the target refuses it later";

impl Applier {
    /// Row by row: here the conflict policy decides.
    pub(super) async fn singly(&mut self, batch: &Batch) -> Result<(), Failed> {
        let renderer = super::renderer(&self.session, &self.config);
        let singles = renderer.render_singles(&batch.folded).map_err(|error| {
            Failed::Stop(ApplyError::Render { seq: batch.first_seq, reason: error.to_string() })
        })?;
        for single in &singles {
            self.single(single, batch).await?;
        }
        Ok(())
    }

    async fn single(&mut self, single: &Single, batch: &Batch) -> Result<(), Failed> {
        let Single { statement, exact, .. } = single;
        if exact.is_some() {
            self.own("SAVEPOINT one").await?;
        }
        let mut outcome = self.execute(statement).await;
        if let (Ok(affected), Some(exact)) = (&outcome, exact)
            && *affected > statement.rows
        {
            // The key tells rows apart no more: the upstream is dropping it.
            self.own("ROLLBACK TO SAVEPOINT one").await?;
            outcome = self.execute(exact).await;
        }
        match outcome {
            Ok(affected) if affected == statement.rows => {
                metrics::written(statement.kind.name(), affected);
                Ok(())
            }
            Ok(affected) => self.missing(single, affected, batch).await,
            Err(Error::Server(server)) if server.code == DUPLICATE => {
                self.present(single, key_in(&server.message), batch).await
            }
            Err(error) => Err(self.failed(error, statement, &single.key, batch)),
        }
    }

    /// A delete or update found fewer rows than there must be.
    async fn missing(&mut self, single: &Single, affected: u64, batch: &Batch) -> Result<(), Failed> {
        let Single { statement, insert_if_missing, .. } = single;
        let rows = statement.rows.abs_diff(affected);
        let policy = self.config.apply.conflict;
        if policy == ConflictPolicy::Stop || affected > statement.rows {
            let what = match statement.kind {
                _ if affected > statement.rows => "a statement for one row found several",
                Kind::Delete => "a row to delete is missing",
                Kind::Update | Kind::Insert => "a row to update is missing",
            };
            return Err(Failed::Stop(self.conflict(what, single, None, batch)));
        }
        let (kind, done) = match (statement.kind, insert_if_missing) {
            (Kind::Update, Some(insert)) => {
                match self.execute(insert).await {
                    Ok(_) => {}
                    Err(Error::Server(server)) if server.code == DUPLICATE => {
                        let what = "a row to update is missing, and another row holds its unique key";
                        let index = key_in(&server.message);
                        return Err(Failed::Stop(self.conflict(what, single, index, batch)));
                    }
                    Err(error) => return Err(self.failed(error, insert, &single.key, batch)),
                }
                ("update_of_missing", "inserted instead")
            }
            _ => ("delete_of_missing", "nothing to delete"),
        };
        metrics::conflict(kind, rows);
        let key = self.shown(&single.key);
        warn!(
            first_seq = batch.first_seq,
            table = statement.table_name(),
            key,
            rows,
            kind,
            done,
            "a row was missing"
        );
        Ok(())
    }

    /// An insert met a row.
    async fn present(&mut self, single: &Single, index: Option<&str>, batch: &Batch) -> Result<(), Failed> {
        let replace = single
            .replace_if_present
            .as_ref()
            .filter(|_| self.config.apply.conflict == ConflictPolicy::Overwrite);
        let Some(replace) = replace else {
            return Err(Failed::Stop(self.conflict(
                "a row to insert, or one with its unique key, is already there",
                single,
                index,
                batch,
            )));
        };
        if let Err(error) = self.execute(replace).await {
            return Err(self.failed(error, replace, &single.key, batch));
        }
        metrics::conflict("insert_of_present", 1);
        let key = self.shown(&single.key);
        warn!(
            first_seq = batch.first_seq,
            table = replace.table_name(),
            key,
            "a row was in the way and was replaced"
        );
        Ok(())
    }

    fn conflict(
        &self,
        what: &'static str,
        single: &Single,
        index: Option<&str>,
        batch: &Batch,
    ) -> ApplyError {
        let policy = match self.config.apply.conflict {
            ConflictPolicy::Heal => "heal",
            ConflictPolicy::Stop => "stop",
            ConflictPolicy::Overwrite => "overwrite",
        };
        let mut key = self.named(&single.key);
        if let Some(index) = index {
            key.push_str(", by its key ");
            key.push_str(index);
        }
        let may_go = |index: &str| index != "PRIMARY" || !single.statement.table.has_lasting_identity();
        let cause = if index.is_some_and(may_go) { KEY_GOING } else { "" };
        ApplyError::Conflict {
            seq: batch.first_seq,
            what,
            table: single.statement.table_name(),
            key,
            cause,
            policy,
        }
    }

    /// A statement failed, other than by a row in its way. `key` is that of its row, if it is about one.
    pub(super) fn failed(&self, error: Error, statement: &Statement, key: &str, batch: &Batch) -> Failed {
        if is_transient(&error) {
            return Failed::Transient(error);
        }
        let mut reason = server_text(&error, self.config.apply.show_values);
        if let Error::Server(server) = &error {
            match server.code {
                NO_TEXT => {
                    let column = column_in(&server.message).unwrap_or("?");
                    reason.push_str(&format!(
                        ". Column {column} holds bytes that are no text in its charset, which TiDB lets through where its checks \
                         are off. Put the value right upstream, or make the column VARBINARY or BLOB here by hand; this \
                         process tries the row again by itself"
                    ));
                }
                CHECK => reason.push_str(
                    ". A CHECK refuses it; JSON of more than 32 levels is none for MariaDB. Make the column here LONGTEXT \
                     without the CHECK by hand; this process tries the row again by itself",
                ),
                _ => {}
            }
        }
        Failed::Stop(ApplyError::Refused {
            seq: batch.first_seq,
            kind: statement.kind.name(),
            table: statement.table_name(),
            key: self.named(key),
            reason,
        })
    }

    fn shown(&self, key: &str) -> String {
        if self.config.apply.show_values { key.to_owned() } else { String::new() }
    }

    fn named(&self, key: &str) -> String {
        if self.config.apply.show_values {
            format!(" ({key})")
        } else {
            " (set apply.show-values to see its key)".to_owned()
        }
    }
}

/// The name of the key in `Duplicate entry '…' for key 'u'`, without the table that MySQL 8 puts before it. The value
/// before it may hold anything.
fn key_in(message: &str) -> Option<&str> {
    let (_, name) = message.rsplit_once("for key '")?;
    let name = name.strip_suffix('\'')?;
    Some(name.rsplit_once('.').map_or(name, |(_, name)| name))
}

/// The name of the column in `Incorrect string value: '…' for column `d`.`t`.`c` at row 1`, or `'c'` of MySQL.
fn column_in(message: &str) -> Option<&str> {
    let (_, name) = message.rsplit_once("for column ")?;
    let (name, _) = name.rsplit_once(" at row ")?;
    Some(name.rsplit_once("`.`").map_or(name, |(_, name)| name).trim_matches(['`', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_s_message_is_about() {
        assert_eq!(key_in("Duplicate entry '5' for key 'u'"), Some("u"));
        assert_eq!(key_in("Duplicate entry 'x for key 'v'' for key 't.u'"), Some("u"));
        assert_eq!(key_in("Duplicate entry '5' for key 'PRIMARY'"), Some("PRIMARY"));
        assert_eq!(key_in("something else"), None);
        let mariadb = "Incorrect string value: '\\xFF' for column `d`.`t`.`no``te` at row 1";
        assert_eq!(column_in(mariadb), Some("no``te"));
        assert_eq!(column_in("Incorrect string value: '\\xFF' for column 'note' at row 1"), Some("note"));
    }
}
