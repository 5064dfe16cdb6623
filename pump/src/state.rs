//! The pump's state as its parts see it.
//!
//! ```text
//! joining ─▶ online ─▶ pausing ─▶ paused     (pause, signals)
//!                  └─▶ closing ─▶ offline    (close: once everything is drained)
//! ```
//!
//! Prewrites are taken only while online; commits and rollbacks always. The registry knows `joining` as `paused`, which
//! TiDB does not write to and drainers do list.

use node::registry::NodeState;
use tokio::sync::watch;

/// The pump's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Registered; waits until every live drainer lists it.
    Joining,
    /// Takes binlogs.
    Online,
    /// Going down, to come back.
    Pausing,
    /// Down.
    Paused,
    /// Leaving for good, once drained.
    Closing,
    /// Left.
    Offline,
}

impl State {
    /// All names, for metrics.
    pub const NAMES: [&'static str; 6] = ["joining", "online", "pausing", "paused", "closing", "offline"];

    /// As in messages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Online => "online",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Closing => "closing",
            Self::Offline => "offline",
        }
    }

    /// As in the registry.
    pub fn registered(self) -> NodeState {
        match self {
            Self::Joining | Self::Paused => NodeState::Paused,
            Self::Online => NodeState::Online,
            Self::Pausing => NodeState::Pausing,
            Self::Closing => NodeState::Closing,
            Self::Offline => NodeState::Offline,
        }
    }
}

/// Where the state is kept; cheap to read.
#[derive(Debug)]
pub struct StateCell(watch::Sender<State>);

impl Default for StateCell {
    fn default() -> Self {
        Self(watch::Sender::new(State::Joining))
    }
}

impl StateCell {
    /// The present state.
    pub fn get(&self) -> State {
        *self.0.borrow()
    }

    /// Moves on.
    pub fn set(&self, state: State) {
        crate::metrics::state(state.name(), &State::NAMES);
        self.0.send_replace(state);
    }

    /// Moves on from `from`, unless the state is another one by now. Tells whether it did.
    pub fn change(&self, from: State, to: State) -> bool {
        let moved = self.0.send_if_modified(|state| {
            let moved = *state == from;
            if moved {
                *state = to;
            }
            moved
        });
        if moved {
            crate::metrics::state(to.name(), &State::NAMES);
        }
        moved
    }

    /// For whoever waits for a change.
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }
}
