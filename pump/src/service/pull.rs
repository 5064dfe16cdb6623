//! The original `PullBinlogs`, as the original drainer expects it: one transaction a message, prewrite and commit joined,
//! strictly increasing commit_ts, and fakes that tell how far the stream is complete.
//!
//! Fakes are made here from the watermark and never stored. The one difference to the original: a position whose
//! transactions were collected is refused, not skipped over. (Position 0 means "from the oldest", as ever.)
//!
//! The protocol cannot carry a declared gap. A stream that comes to one ends with DATA_LOSS behind the last transaction
//! before it, and so does the next one, until the operator accepts the gap (`accept-gaps-upto`): the original drainer would
//! go on as if nothing had been there, and its downstream would differ for good without anybody having been told.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use node::shutdown::Shutdown;
use prost::Message as _;
use schemas::binlog::pump_server::Pump;
use schemas::binlog::{
    Binlog, BinlogType, Entity, Meta, PullBinlogReq, PullBinlogResp, WriteBinlogReq, WriteBinlogResp,
};
use tidb::ts::Tso;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::admit::Slot;
use super::ahead::{Ahead, Ended};
use super::write::Intake;
use crate::metrics;
use crate::progress::Progress;
use crate::store::{Reader, Stored};

const PROTOCOL: &str = "original";

/// Serves the original's `Pump` service.
#[derive(Clone)]
pub struct PullService {
    /// For `WriteBinlog`, where this service is called directly.
    pub intake: Arc<Intake>,
    /// The store.
    pub reader: Reader,
    /// The watermark.
    pub progress: Arc<Progress>,
    /// Bytes read ahead for one stream.
    pub budget: usize,
    /// Streams may pass gaps that end at or below it.
    pub accept_gaps_upto: Tso,
    /// At least this long between two fakes.
    pub fake_interval: Duration,
    /// Ends the streams.
    pub shutdown: Shutdown,
}

#[tonic::async_trait]
impl Pump for PullService {
    /// The port routes `WriteBinlog` around this service (see `framing`); the meaning is the same.
    async fn write_binlog(
        &self,
        request: Request<WriteBinlogReq>,
    ) -> Result<Response<WriteBinlogResp>, Status> {
        let WriteBinlogReq { cluster_id, payload } = request.into_inner();
        self.intake.check_size(payload.len() as u64)?;
        let _call = self.intake.admit_call().await?;
        let share = self.intake.reserve(payload.len() as u64).await?;
        self.intake.write(cluster_id, payload, Some(share)).await?;
        Ok(Response::new(WriteBinlogResp::default()))
    }

    type PullBinlogsStream = Pin<Box<dyn Stream<Item = Result<PullBinlogResp, Status>> + Send>>;

    async fn pull_binlogs(
        &self,
        request: Request<PullBinlogReq>,
    ) -> Result<Response<Self::PullBinlogsStream>, Status> {
        let gzip =
            request.metadata().get("grpc-encoding").is_some_and(|encoding| encoding.as_bytes() == b"gzip");
        let peer = request.extensions().get::<node::serve::Peer>().and_then(|peer| peer.address);
        let slot = request.extensions().get::<Slot>().cloned();
        let request = request.into_inner();
        let ours = self.intake.cluster_id;
        if request.cluster_id != ours {
            return Err(Status::unknown(format!(
                "cluster ID are mismatch, {} vs {ours}",
                request.cluster_id
            )));
        }
        let mut after = Tso::from_i64(request.start_from.map_or(0, |pos| pos.offset));
        let collected = self.reader.collected();
        if after.is_zero() {
            after = collected;
        } else if after < collected {
            let text = format!(
                "position {after} was collected, the oldest is {collected}: transactions may be missing"
            );
            return Err(Status::out_of_range(text));
        }
        info!(?peer, %after, "drainer pulls by the original protocol");
        let feed = Feed::new(self.clone(), after, slot);
        let stream = futures::stream::unfold(Some(feed), |feed| async {
            let mut feed = feed?;
            match feed.next().await {
                Ok(Some(message)) => Some((Ok(message), Some(feed))),
                Ok(None) => None,
                Err(status) => {
                    feed.failed = true;
                    Some((Err(status), None))
                }
            }
        });
        let mut response = Response::new(Box::pin(stream) as Self::PullBinlogsStream);
        if !gzip {
            // As the original: answer compressed only to who asks compressed.
            response.disable_compression();
        }
        Ok(response)
    }
}

/// One stream's position.
struct Feed {
    service: PullService,
    watermark: watch::Receiver<Tso>,
    ready: VecDeque<PullBinlogResp>,
    ahead: Ahead<PullBinlogResp>,
    /// Everything up to here is read.
    read: Tso,
    /// The last commit_ts sent or ready to be, fakes included.
    sent: Tso,
    /// Why the stream cannot go on behind what is ready.
    lost: Option<Status>,
    fake_due: Instant,
    began: Instant,
    failed: bool,
    _slot: Option<Slot>,
}

impl Feed {
    fn new(service: PullService, after: Tso, slot: Option<Slot>) -> Self {
        metrics::puller(PROTOCOL, true);
        let watermark = service.progress.subscribe();
        let ahead = Ahead::new(service.reader.clone(), service.budget, PROTOCOL, joined);
        Self {
            service,
            ahead,
            watermark,
            ready: VecDeque::new(),
            read: after,
            sent: after,
            lost: None,
            fake_due: Instant::now(),
            began: Instant::now(),
            failed: false,
            _slot: slot,
        }
    }

    async fn next(&mut self) -> Result<Option<PullBinlogResp>, Status> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Some(message));
            }
            if let Some(status) = self.lost.take() {
                return Err(status);
            }
            // Whatever comes later is above what was read up to, and so above the fake.
            let fake = self.sent < self.read;
            if fake && Instant::now() >= self.fake_due {
                self.sent = self.read;
                self.fake_due = Instant::now() + self.service.fake_interval;
                return Ok(Some(fake_binlog(self.read)));
            }
            let watermark = *self.watermark.borrow_and_update();
            if self.read < watermark {
                self.read_on(watermark).await?;
                continue;
            }
            tokio::select! {
                changed = self.watermark.changed() => if changed.is_err() { return Ok(None) },
                () = tokio::time::sleep_until(self.fake_due), if fake => {}
                () = self.service.shutdown.cancelled() => return Ok(None),
            }
        }
    }

    async fn read_on(&mut self, watermark: Tso) -> Result<(), Status> {
        let after = self.read;
        let stretch = match self.ahead.next(after, watermark).await {
            Ok(stretch) => stretch,
            Err(Ended::Collected(oldest)) => {
                let text =
                    format!("position {after} was collected while it was read, the oldest is {oldest}");
                return Err(Status::out_of_range(text));
            }
            Err(Ended::Broken(status)) => return Err(status),
        };
        let accepted = after.max(self.service.accept_gaps_upto);
        if let Some(gap) = self.service.reader.gaps_within(accepted, stretch.reached).into_iter().next() {
            self.ready.extend(stretch.transactions.into_iter().filter(|sent| commit_ts(sent) < gap.upto));
            let text = format!(
                "transaction {} is lost, it committed after {} and by {} if at all ({}): this protocol cannot say so \
                 in the stream; set accept-gaps-upto = {} to go on without it",
                gap.start_ts, gap.after, gap.upto, gap.cause, gap.upto
            );
            warn!(%after, reason = text, "an original pull stream ends at a declared gap");
            self.lost = Some(Status::data_loss(text));
            return Ok(());
        }
        self.sent = stretch.last.unwrap_or(self.sent);
        self.ready.extend(stretch.transactions);
        self.read = stretch.reached;
        Ok(())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        metrics::puller(PROTOCOL, false);
        metrics::rpc("PullBinlogs", self.began.elapsed(), !self.failed);
    }
}

/// The commit binlog with what the prewrite carried, as the original joins them.
fn joined(stored: &Stored) -> Result<PullBinlogResp, prost::DecodeError> {
    let prewrite = Binlog::decode(stored.prewrite.clone())?;
    let commit = Binlog::decode(stored.commit.clone())?;
    let (start_ts, commit_ts) = (stored.start_ts.0.to_i64(), stored.commit_ts.0.to_i64());
    let binlog = Binlog {
        tp: Some(BinlogType::Commit.into()),
        start_ts: Some(start_ts),
        commit_ts: Some(commit_ts),
        prewrite_key: commit.prewrite_key,
        prewrite_value: prewrite.prewrite_value,
        ddl_query: prewrite.ddl_query,
        ddl_job_id: Some(prewrite.ddl_job_id.unwrap_or(0)),
        ddl_schema_state: Some(prewrite.ddl_schema_state.unwrap_or(0)),
    };
    Ok(message(&binlog, start_ts, commit_ts))
}

fn commit_ts(message: &PullBinlogResp) -> Tso {
    let meta = message.entity.as_ref().and_then(|entity| entity.meta.as_ref());
    meta.map_or(Tso::ZERO, |meta| Tso::from_i64(meta.commit_ts))
}

/// "Everything up to here was sent": a rollback whose two timestamps are equal.
fn fake_binlog(watermark: Tso) -> PullBinlogResp {
    let ts = watermark.to_i64();
    let binlog = Binlog {
        tp: Some(BinlogType::Rollback.into()),
        start_ts: Some(ts),
        commit_ts: Some(ts),
        ddl_job_id: Some(0),
        ddl_schema_state: Some(0),
        ..Binlog::default()
    };
    message(&binlog, ts, ts)
}

fn message(binlog: &Binlog, start_ts: i64, commit_ts: i64) -> PullBinlogResp {
    let payload = Bytes::from(binlog.encode_to_vec());
    let meta = Some(Meta { start_ts, commit_ts });
    PullBinlogResp { entity: Some(Entity { payload, meta, ..Entity::default() }) }
}

#[cfg(test)]
mod tests {
    use tidb::ts::{CommitTs, StartTs};

    use super::*;

    fn payload(response: PullBinlogResp) -> Bytes {
        response.entity.unwrap().payload
    }

    #[test]
    fn a_fake_has_the_originals_bytes() {
        // tp 2, both timestamps 300, job id and state written although zero.
        let expected = [0x08, 0x02, 0x10, 0xac, 0x02, 0x18, 0xac, 0x02, 0x38, 0x00, 0x40, 0x00];
        assert_eq!(payload(fake_binlog(Tso::new(300)))[..], expected);
    }

    #[test]
    fn a_commit_carries_what_its_prewrite_had() {
        let prewrite = Binlog {
            tp: Some(0),
            start_ts: Some(5),
            commit_ts: Some(0),
            prewrite_key: Some(Bytes::from_static(b"k")),
            prewrite_value: Some(Bytes::from_static(b"rows")),
            ddl_query: Some(Bytes::from_static(b"drop")),
            ddl_job_id: Some(9),
            ddl_schema_state: Some(1),
        };
        let commit = Binlog { tp: Some(1), commit_ts: Some(7), prewrite_value: None, ..prewrite.clone() };
        let mut stored = Stored {
            start_ts: StartTs::new(5),
            commit_ts: CommitTs::new(7),
            prewrite: prewrite.encode_to_vec().into(),
            commit: commit.encode_to_vec().into(),
        };
        let entity = joined(&stored).unwrap().entity.unwrap();
        assert_eq!(entity.meta, Some(Meta { start_ts: 5, commit_ts: 7 }));
        let sent = Binlog::decode(entity.payload).unwrap();
        assert_eq!(sent, Binlog { prewrite_value: prewrite.prewrite_value.clone(), ..commit });
        // Learned from TiKV: no commit binlog, so no key, as in the original.
        stored.commit = Bytes::new();
        let sent = Binlog::decode(payload(joined(&stored).unwrap())).unwrap();
        assert_eq!(sent, Binlog { tp: Some(1), commit_ts: Some(7), prewrite_key: None, ..prewrite });
    }
}
