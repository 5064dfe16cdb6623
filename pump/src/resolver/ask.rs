//! One question: the primary key from the store, TiKV's word, the verdict made durable.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use schemas::binlog::Binlog;
use tidb::ts::{StartTs, Tso};

use super::judge::{Answer, judge, judge_forgotten};
use super::{AskError, Forgotten, Tikv, TxnStatus};
use crate::clock::Clock;
use crate::metrics;
use crate::progress::Progress;
use crate::store::Reader;
use crate::writer::{Refusal, Write, WriteHandle};

/// What a question needs. Shared by all questions under way.
pub struct Asker {
    /// Who knows.
    pub tikv: Arc<Tikv>,
    /// For T.
    pub clock: Arc<Clock>,
    /// For floors.
    pub progress: Arc<Progress>,
    /// For primary keys.
    pub reader: Reader,
    /// Makes verdicts durable.
    pub writer: WriteHandle,
    /// What TiKV may no longer know.
    pub forgotten: Arc<Forgotten>,
}

/// A question about one open prewrite.
pub(super) struct Question {
    pub(super) start_ts: StartTs,
    pub(super) key: Bytes,
    /// T, fetched before asking.
    pub(super) now: Tso,
    pub(super) rollback_seen: bool,
    /// TiKV is to make sure that an unknown transaction never commits.
    pub(super) fence: bool,
    forgotten: Tso,
}

/// What came of a question.
pub(super) struct Answered {
    pub(super) start_ts: StartTs,
    pub(super) answer: Answer,
    /// What the writer said to the verdict.
    pub(super) written: Result<(), Refusal>,
}

impl Asker {
    /// Questions about these, at one T; none if PD does not answer, or has not said yet what TiKV may have forgotten. With
    /// each goes its primary key if that is known already; otherwise it is read, one payload at a time.
    ///
    /// # Errors
    /// PD went back; the store cannot be read.
    pub(super) async fn prepare(&self, due: Vec<(StartTs, Option<Bytes>)>) -> anyhow::Result<Vec<Question>> {
        // Before asking: what TiKV says holds at a later moment.
        let now = match self.clock.fresh().await {
            Ok(now) => now,
            Err(error) if error.is_retryable() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let Some(forgotten) = self.forgotten.get() else {
            return Ok(Vec::new());
        };
        let reader = self.reader.clone();
        let question = move |(start_ts, key): (StartTs, Option<Bytes>)| {
            let key = match key {
                Some(key) => key,
                None => primary_key(&reader, start_ts)?,
            };
            Ok::<_, anyhow::Error>(Question {
                start_ts,
                key,
                now,
                rollback_seen: false,
                fence: false,
                forgotten,
            })
        };
        tokio::task::spawn_blocking(move || due.into_iter().map(question).collect()).await?
    }

    pub(super) async fn ask(self: Arc<Self>, question: Question) -> Answered {
        metrics::asked_tikv();
        let start_ts = question.start_ts;
        let answer = match self.answer(&question).await {
            Ok(answer) => answer,
            Err(error) => Answer::Failed(error),
        };
        let written = match &answer {
            Answer::Verdict(_, verdict) => {
                let write = Write::Verdict { start_ts, verdict: verdict.clone() };
                self.writer.write(write, None).await.map(|_| ())
            }
            Answer::Unpushable | Answer::Failed(_) => Ok(()),
        };
        Answered { start_ts, answer, written }
    }

    async fn answer(&self, question: &Question) -> Result<Answer, AskError> {
        let &Question { start_ts, now, rollback_seen, forgotten, .. } = question;
        // Its outcome lies above its floor; settled meanwhile, nothing is at stake.
        let remembered = self.progress.floor(start_ts).is_none_or(|floor| floor >= forgotten);
        let mut status = self.tikv.check(&question.key, start_ts, now, false).await?;
        if status == TxnStatus::NotFound && question.fence && remembered {
            status = self.tikv.check(&question.key, start_ts, now, true).await?;
        }
        if let TxnStatus::Committed(commit_ts) = status
            && commit_ts.0 > now
            && commit_ts.0 > self.clock.fresh().await?
        {
            return Err(AskError::Untrue(format!(
                "{start_ts} committed at {commit_ts}, which PD has not given out"
            )));
        }
        Ok(if remembered {
            judge(status, start_ts, now, rollback_seen)
        } else {
            judge_forgotten(status, forgotten)
        })
    }
}

/// Of an open prewrite. Open in the sorter means that it is being written or is written; not yet there: no key to ask for.
/// A copy: a part of the payload would keep all of it in memory.
fn primary_key(reader: &Reader, start_ts: StartTs) -> anyhow::Result<Bytes> {
    let payload = reader.prewrite(start_ts)?.unwrap_or_default();
    let binlog = Binlog::decode(payload)
        .map_err(|error| anyhow::anyhow!("stored prewrite {start_ts} does not decode: {error}"))?;
    Ok(Bytes::copy_from_slice(&binlog.prewrite_key.unwrap_or_default()))
}
