//! Changing a node's state: `update-…` rewrites etcd, `pause-…` and `offline-…` ask the node itself.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::args::Args;
use super::{Report, ask};
use crate::registry::{NodeKind, NodeRecord, NodeState, Registry};

/// Of a node's answer, this much is read.
const ANSWER: usize = 64 * 1024;
/// The original's code for "accepted", whatever the HTTP status.
const ACCEPTED: i64 = 200;

/// What a node is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Pause,
    Close,
}

impl Change {
    /// As it stands in the URL.
    const fn action(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Close => "close",
        }
    }

    const fn goal(self) -> NodeState {
        match self {
            Self::Pause => NodeState::Paused,
            Self::Close => NodeState::Offline,
        }
    }
}

/// What the original's nodes answer.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    message: String,
    code: i64,
}

pub(super) async fn update(args: &Args, registry: &Registry, kind: NodeKind) -> anyhow::Result<Report> {
    let id = args.node_id();
    let state = args.state.context("-state is missing")?;
    let before = entry(registry, kind, id).await?;
    let record = registry.set_state(kind, id, state).await?;
    Ok(Report {
        text: format!(
            "{kind} {id}: {} -> {} in etcd (a running node rewrites it)",
            before.state, record.state
        ),
        json: json!({ "NodeID": id, "Before": before.state, "State": record.state }),
    })
}

pub(super) async fn apply(
    args: &Args,
    registry: &Registry,
    kind: NodeKind,
    change: Change,
) -> anyhow::Result<Report> {
    let id = args.node_id();
    let record = entry(registry, kind, id).await?;
    let message = ask_for(args, &record, change)
        .await
        .with_context(|| format!("{kind} {id} was not asked to {}", change.action()))?;
    let mut text = format!("{kind} {id} accepted {}: {message}", change.action());
    let mut state = record.state;
    if let Some(limit) = args.wait {
        state = wait(registry, kind, id, change.goal(), limit.get()).await?;
        text.push_str(&format!("\n{kind} {id} is {state}"));
    }
    Ok(Report {
        text,
        json: json!({ "NodeID": id, "Action": change.action(), "Message": message, "State": state }),
    })
}

/// The node's main entry; if there is none, the error names those that there are.
async fn entry(registry: &Registry, kind: NodeKind, id: &str) -> anyhow::Result<NodeRecord> {
    if let Some(record) = registry.get(kind, id).await?.and_then(|entry| entry.record) {
        return Ok(record);
    }
    let known: Vec<_> = registry.list(kind).await?.into_iter().map(|entry| entry.id).collect();
    let known = if known.is_empty() { "none is".to_owned() } else { format!("{} are", known.join(", ")) };
    bail!("no {kind} with node id `{id}` is registered; {known}")
}

async fn ask_for(args: &Args, record: &NodeRecord, change: Change) -> anyhow::Result<String> {
    let path = ["state", record.node_id.as_str(), change.action()];
    let url = ask::url(&args.common, &record.host, &path)
        .with_context(|| format!("its address `{}` is not host:port", record.host))?;
    let request = ask::request(&args.common, Method::PUT, url)?;
    let ask::Answer { status, body } = ask::answer(request, ANSWER, "it does not answer".into()).await?;
    let said = String::from_utf8_lossy(&body);
    match serde_json::from_slice::<Answer>(&body) {
        Ok(answer) if answer.code == ACCEPTED && status.is_success() => Ok(answer.message),
        Ok(answer) => bail!("it refuses: {} (code {})", answer.message, answer.code),
        Err(_) if !status.is_success() => bail!("it refuses: {status}: {}", said.trim()),
        Err(_) => bail!("it answers what is not understood: {}", said.trim()),
    }
}

/// Follows the registry until the node's entry says `goal`.
async fn wait(
    registry: &Registry,
    kind: NodeKind,
    id: &str,
    goal: NodeState,
    limit: Duration,
) -> anyhow::Result<NodeState> {
    // Draws only on a terminal.
    let spinner = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner} {msg} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    spinner.enable_steady_tick(Duration::from_millis(200));
    let mut last = None;
    let mut watch = registry.watch(kind);
    let reached = tokio::time::timeout(limit, async {
        loop {
            let entries = watch.next().await?;
            let state = entries.into_iter().find(|entry| entry.id == id).and_then(|entry| entry.state());
            last = state;
            let Some(state) = state else {
                bail!("{kind} {id} has disappeared from the registry");
            };
            if state == goal {
                return Ok(state);
            }
            spinner.set_message(format!("{kind} {id} is {state}, waiting for {goal}"));
        }
    })
    .await;
    spinner.finish_and_clear();
    reached.unwrap_or_else(|_| {
        let state = last.map_or("unknown", NodeState::name);
        Err(anyhow!("{kind} {id} accepted, but is still {state} after {limit:?}; it goes on by itself"))
    })
}
