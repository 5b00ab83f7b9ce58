//! narinfos of references, fetched ahead of the client, which walks a closure level by level and
//! would pay each level's way to the upstream and back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::narinfo::{self, Local};
use super::{Inner, locked};
use crate::nix::StorePathHash;

/// Keys that wait to be asked ahead: a big closure's; what does not fit is asked by the client.
const WAITING_MAX: usize = 8192;

/// Questions asked ahead at once: enough to keep one h2 connection busy, few enough to leave a
/// client's own question its place.
const WORKERS_MAX: usize = 16;

/// What waits, and how many work on it.
#[derive(Debug, Default)]
pub(super) struct Prefetch {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<StorePathHash>,
    workers: usize,
}

/// Puts the references of `of` into the queue, as far as they are not at hand and there is room.
pub(super) fn ahead(
    inner: &Arc<Inner>,
    of: StorePathHash,
    references: impl Iterator<Item = StorePathHash>,
) {
    let unknown = references
        .filter(|key| *key != of)
        .filter(|key| inner.memory.ready(*key).is_none() && !inner.memory.absent.holds(key));
    for key in unknown {
        if inner.closing.is_cancelled() || !enter(inner, key) {
            return;
        }
    }
}

/// One key into the queue, and one worker more when there may be; `false` when it is full.
fn enter(inner: &Arc<Inner>, key: StorePathHash) -> bool {
    let mut state = locked(&inner.prefetch.state);
    if state.waiting.len() >= WAITING_MAX {
        return false;
    }
    state.waiting.push_back(key);
    if state.workers < WORKERS_MAX {
        state.workers += 1;
        let worker = Worker(Arc::clone(inner));
        inner.spawn(async move {
            let closing = worker.0.closing.clone();
            closing.run_until_cancelled(Box::pin(work(&worker.0))).await;
        });
    }
    true
}

/// Counts a worker while it lives.
struct Worker(Arc<Inner>);

impl Drop for Worker {
    fn drop(&mut self) {
        let mut state = locked(&self.0.prefetch.state);
        state.workers -= 1;
    }
}

async fn work(inner: &Arc<Inner>) {
    while let Some(key) = next(inner) {
        if let Local::Ask(stored) = narinfo::local(inner, key).await
            && let Some(mut running) = narinfo::question(inner, key, stored)
        {
            // How it ended is kept by the question itself, its references queued again.
            running.wait_for(Option::is_some).await.ok();
        }
    }
}

fn next(inner: &Inner) -> Option<StorePathHash> {
    let mut state = locked(&inner.prefetch.state);
    state.waiting.pop_front()
}
