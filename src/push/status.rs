//! How each target is, for page, status and the admin socket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Push, now_s};
use crate::store::{Queued, TargetQueue};

/// Names of paths that are shown as being otherwise elsewhere: the last ones.
const DIFFERS_MAX: usize = 16;

/// What a target's worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetState {
    /// Nothing waits.
    Idle,
    /// It is carrying.
    Sending,
    /// It waits before it tries again.
    Waiting,
    /// The target refuses; tried now and then, and goes on when it is mended.
    Stopped,
    /// It is not in the configuration any more: its rows stay until they are forgotten.
    Gone,
}

/// How a target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetStatus {
    /// Its URL without user data.
    pub target: String,
    /// What its worker does.
    pub state: TargetState,
    /// Rows that wait.
    pub waiting: u64,
    /// Bytes of those.
    pub waiting_bytes: u64,
    /// Age of the oldest, in seconds.
    pub oldest_s: Option<u64>,
    /// Rows that are parked: the target does not take them, or what they refer to.
    pub parked: u64,
    /// Rows whose bytes are damaged.
    pub lost: u64,
    /// Objects and bytes that it was given since start.
    pub pushed: u64,
    /// Bytes of those.
    pub pushed_bytes: u64,
    /// What is being carried now, by name.
    pub sending: Vec<String>,
    /// Paths that it, another upstream or this cache has with another NAR, so that ours was not put:
    /// the last few.
    pub differs: Vec<String>,
    /// The last trouble, in a sentence, while there is any.
    pub last_error: Option<String>,
    /// Seconds until it tries again.
    pub retry_in_s: Option<u64>,
}

/// What a worker lays out for others to see.
#[derive(Debug)]
pub(super) struct Desk {
    target: Arc<str>,
    shown: Mutex<Shown>,
}

/// What is laid out.
#[derive(Debug)]
pub(super) struct Shown {
    state: TargetState,
    pub(super) parked: u64,
    pushed: u64,
    pushed_bytes: u64,
    sending: BTreeMap<Queued, String>,
    differs: Vec<String>,
    refused: Option<String>,
    last_error: Option<String>,
    retry_at: Option<Instant>,
}

impl Shown {
    /// The trouble it is in.
    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.clone()
    }
}

impl Desk {
    pub(super) fn new(target: &Arc<str>) -> Self {
        let shown = Shown {
            state: TargetState::Idle,
            parked: 0,
            pushed: 0,
            pushed_bytes: 0,
            sending: BTreeMap::new(),
            differs: Vec::new(),
            refused: None,
            last_error: None,
            retry_at: None,
        };
        Self { target: target.clone(), shown: Mutex::new(shown) }
    }

    /// Whether it is the desk of the target of this URL.
    pub(super) fn is_of(&self, url: &str) -> bool {
        *self.target == *url
    }

    pub(super) fn shown(&self) -> MutexGuard<'_, Shown> {
        // Each change leaves it whole.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name under which something is being carried.
    pub(super) fn names(&self, what: &Queued, name: impl Into<String>) {
        self.shown().sending.insert(what.clone(), name.into());
    }

    /// It is not being carried any more. Says its name.
    pub(super) fn ends(&self, what: &Queued) -> Option<String> {
        self.shown().sending.remove(what)
    }

    /// This went up.
    pub(super) fn pushed(&self, bytes: u64) {
        let mut shown = self.shown();
        shown.pushed += 1;
        shown.pushed_bytes += bytes;
    }

    /// This did not, because it is otherwise elsewhere.
    pub(super) fn differs(&self, name: String) {
        let mut shown = self.shown();
        shown.differs.retain(|known| *known != name);
        if shown.differs.len() == DIFFERS_MAX {
            shown.differs.remove(0);
        }
        shown.differs.push(name);
    }

    /// The trouble it is in; `None` once that is over.
    pub(super) fn trouble(&self, said: Option<String>) {
        self.shown().last_error = said;
    }

    /// How the worker is, with what a parked row was refused with.
    pub(super) fn show(
        &self,
        state: TargetState,
        parked: u64,
        refused: Option<String>,
        retry_at: Option<Instant>,
    ) {
        let mut shown = self.shown();
        (shown.state, shown.parked) = (state, parked);
        (shown.refused, shown.retry_at) = (refused, retry_at);
    }

    fn status(&self, queue: Option<&TargetQueue>) -> TargetStatus {
        let shown = self.shown();
        let retry_in = shown.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
        TargetStatus {
            state: shown.state,
            parked: shown.parked,
            pushed: shown.pushed,
            pushed_bytes: shown.pushed_bytes,
            sending: shown.sending.values().cloned().collect(),
            differs: shown.differs.clone(),
            last_error: shown.last_error.as_ref().or(shown.refused.as_ref()).cloned(),
            retry_in_s: retry_in.map(|left| left.as_secs()),
            ..of_queue(&self.target, queue)
        }
    }
}

/// What the store alone knows of a target.
fn of_queue(target: &str, queue: Option<&TargetQueue>) -> TargetStatus {
    let oldest = queue.and_then(|queue| queue.oldest_at_s);
    TargetStatus {
        target: target.to_owned(),
        state: TargetState::Gone,
        waiting: queue.map_or(0, |queue| queue.waiting),
        waiting_bytes: queue.map_or(0, |queue| queue.waiting_bytes),
        oldest_s: oldest.map(|oldest| now_s().saturating_sub(oldest)),
        parked: 0,
        lost: queue.map_or(0, |queue| queue.lost),
        pushed: 0,
        pushed_bytes: 0,
        sending: Vec::new(),
        differs: Vec::new(),
        last_error: None,
        retry_in_s: None,
    }
}

impl Push {
    /// Every target that is configured or has rows.
    pub fn status(&self) -> Vec<TargetStatus> {
        let queues = self.inner.store.queues();
        let desks = &self.inner.upstreams().desks;
        let configured = desks.iter().map(|desk| {
            let queue = queues.iter().find(|queue| *queue.target == *desk.target);
            desk.status(queue)
        });
        let is_gone =
            |queue: &&TargetQueue| !desks.iter().any(|desk| *queue.target == *desk.target);
        let gone = queues.iter().filter(is_gone);
        configured.chain(gone.map(|queue| of_queue(&queue.target, Some(queue)))).collect()
    }

    /// Forgets the rows of a target (or only its lost ones). Says how many.
    pub async fn forget(&self, target: &str, only_lost: bool) -> Result<u64, crate::store::Error> {
        let forgotten = self.inner.store.forget_target(target, only_lost).await?;
        tracing::info!(upstream = target, only_lost, forgotten, "rows of the queue were forgotten");
        // What refers to them need not wait for them any more.
        self.retry();
        Ok(forgotten)
    }
}
