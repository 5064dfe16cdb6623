//! The pump's state as its parts see it.
//!
//! ```text
//! joining ─▶ online ─▶ pausing ─▶ paused     (pause, signals)
//!                  └─▶ closing ─▶ offline    (close: once everything is drained)
//! ```
//!
//! Prewrites are taken only while online; commits and rollbacks always. The registry knows `joining` as `paused`, which
//! TiDB does not write to and drainers do list.

use std::sync::{Mutex, PoisonError};

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
pub struct StateCell {
    state: watch::Sender<State>,
    waiting_for: Mutex<Option<String>>,
}

impl Default for StateCell {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::Joining), waiting_for: Mutex::default() }
    }
}

impl StateCell {
    /// The present state.
    pub fn get(&self) -> State {
        *self.state.borrow()
    }

    /// Moves on.
    pub fn set(&self, state: State) {
        crate::metrics::state(state.name(), &State::NAMES);
        self.waits_for(None);
        self.state.send_replace(state);
    }

    /// What keeps a pump joining or closing, for the operator.
    pub fn waits_for(&self, reason: Option<String>) {
        *self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// See [`Self::waits_for`].
    pub fn waiting_for(&self) -> Option<String> {
        self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
