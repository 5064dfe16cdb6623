//! `/status` of the admin listener: what an operator asks first, as JSON.

use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use crate::disk::Disk;
use crate::progress::Progress;
use crate::readers::Readers;
use crate::state::StateCell;
use crate::store::Reader;

/// Gaps shown at most.
const GAPS: usize = 100;

/// The page; says "starting" until it is filled. Clones are the same page.
#[derive(Clone, Default)]
pub(crate) struct StatusPage(Arc<OnceLock<Parts>>);

struct Parts {
    node_id: String,
    cluster_id: u64,
    state: Arc<StateCell>,
    progress: Arc<Progress>,
    disk: Arc<Disk>,
    readers: Arc<Readers>,
    reader: Reader,
}

impl StatusPage {
    #[expect(clippy::too_many_arguments, reason = "what is shown, each once")]
    pub(crate) fn fill(
        &self,
        node_id: String,
        cluster_id: u64,
        state: Arc<StateCell>,
        progress: Arc<Progress>,
        disk: Arc<Disk>,
        readers: Arc<Readers>,
        reader: Reader,
    ) {
        // Filled once, by the one start of this pump.
        let _ = self.0.set(Parts { node_id, cluster_id, state, progress, disk, readers, reader });
    }

    pub(crate) fn render(&self) -> Value {
        let Some(parts) = self.0.get() else {
            return json!({ "state": "starting" });
        };
        let progress = parts.progress.snapshot();
        let drainers: Vec<_> = parts
            .readers
            .list()
            .into_iter()
            .map(|puller| json!({ "drainer": puller.drainer, "sent": puller.sent.get() }))
            .collect();
        let gaps: Vec<_> = parts
            .reader
            .gaps(GAPS)
            .into_iter()
            .map(|gap| {
                let (after, upto) = (gap.after.get(), gap.upto.get());
                json!({ "start_ts": gap.start_ts.get(), "after": after, "upto": upto, "cause": gap.cause })
            })
            .collect();
        json!({
            "node_id": parts.node_id,
            "cluster_id": parts.cluster_id,
            "state": parts.state.get().name(),
            "waiting_for": parts.state.waiting_for(),
            "watermark": progress.watermark.get(),
            "watermark_lag_seconds": progress.newest.seconds_since(progress.watermark),
            "newest_timestamp": progress.newest.get(),
            "pending": progress.pending,
            "holding_watermark": progress.lowest.map(|(start_ts, floor)| {
                json!({ "start_ts": start_ts.get(), "floor": floor.get() })
            }),
            "collected": parts.reader.collected().get(),
            "pulling": drainers,
            "disk": { "available": parts.disk.available(), "capacity": parts.disk.capacity() },
            "gaps": gaps,
        })
    }
}
