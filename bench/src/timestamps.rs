//! A timestamp of its own for whoever asks, as TiDB's sessions get them: one stream to PD, one request for all who wait.

use anyhow::{Context as _, ensure};
use schemas::pdpb::pd_client::PdClient;
use schemas::pdpb::{RequestHeader, TsoRequest};
use simulator::cluster::Cluster;
use tidb::ts::Tso;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

/// Where timestamps come from. Clones are the same source.
#[derive(Clone, Debug)]
pub enum Timestamps {
    /// A stand-in in this process.
    Own(Cluster),
    /// PD, through the task that [`Timestamps::connect`] started.
    Pd(mpsc::Sender<oneshot::Sender<Tso>>),
}

impl Timestamps {
    /// From the PD at one of its client URLs, which must be the leader's.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn connect(url: &str, cluster_id: u64) -> anyhow::Result<Self> {
        let mut client = PdClient::connect(url.to_owned()).await.with_context(|| url.to_owned())?;
        let (sender, mut waiting) = mpsc::channel::<oneshot::Sender<Tso>>(4096);
        let (requests, stream) = mpsc::channel(1);
        let header = Some(RequestHeader { cluster_id, ..RequestHeader::default() });
        tokio::spawn(async move {
            let mut answers = None;
            let mut stream = Some(ReceiverStream::new(stream));
            let mut waiters = Vec::new();
            // When it ends, for whatever reason, those who wait are told by their dropped senders.
            while waiting.recv_many(&mut waiters, 1024).await > 0 {
                let request = TsoRequest { header, count: waiters.len() as u32, ..TsoRequest::default() };
                requests.send(request).await?;
                if let Some(stream) = stream.take() {
                    answers = Some(client.tso(stream).await?.into_inner());
                }
                let answers = answers.as_mut().context("no stream")?;
                let answer = answers.message().await?.context("PD ended the stream")?;
                let last = answer.timestamp.context("PD gave no timestamp")?;
                ensure!(last.logical >= waiters.len() as i64 - 1, "PD gave {last:?}");
                for (waiter, back) in waiters.drain(..).rev().zip(0..) {
                    // Who gave up does not listen any more.
                    let _ = waiter.send(Tso::from_parts(last.physical as u64, (last.logical - back) as u64));
                }
            }
            anyhow::Ok(())
        });
        Ok(Self::Pd(sender))
    }

    /// The next one; nobody else gets it.
    ///
    /// # Errors
    /// PD gives none.
    pub async fn next(&self) -> anyhow::Result<Tso> {
        match self {
            Self::Own(cluster) => Ok(cluster.tso()),
            Self::Pd(queue) => {
                let (waiter, timestamp) = oneshot::channel();
                queue.send(waiter).await.ok().context("PD gives no timestamps any more")?;
                timestamp.await.context("PD gives no timestamps any more")
            }
        }
    }
}
