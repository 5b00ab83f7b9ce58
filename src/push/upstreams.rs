//! Who is asked and given to, which may change while the cache runs.

use std::sync::{Arc, PoisonError};

use tracing::info;

use super::status::Desk;
use super::{Inner, Push};
use crate::upstream::Upstream;

/// The upstreams as they are for a while; whoever works with them keeps the same ones.
pub(super) struct Upstreams {
    /// Where it is carried.
    pub(super) targets: Vec<Upstream>,
    /// How each of these is, in their order.
    pub(super) desks: Vec<Arc<Desk>>,
    /// Who is asked whether it is theirs already.
    pub(super) others: Vec<Upstream>,
}

impl Upstreams {
    pub(super) fn new(targets: Vec<Upstream>, others: Vec<Upstream>) -> Self {
        let desks = targets.iter().map(|target| Arc::new(Desk::new(target.url()))).collect();
        Self { targets, desks, others }
    }

    /// The desk of a target stays where it keeps its URL: what went up is counted on.
    fn after(before: &Self, targets: Vec<Upstream>, others: Vec<Upstream>) -> Self {
        let desk = |target: &Upstream| {
            let known = before.desks.iter().find(|desk| desk.is_of(target.url()));
            known.map_or_else(|| Arc::new(Desk::new(target.url())), Arc::clone)
        };
        Self { desks: targets.iter().map(desk).collect(), targets, others }
    }
}

impl Inner {
    /// As they are now.
    pub(super) fn upstreams(&self) -> Arc<Upstreams> {
        Arc::clone(&self.upstreams.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Push {
    /// These are the targets and the others from now on. Where a target is new, gone or otherwise
    /// configured, the workers begin anew: what they were sending begins again.
    pub fn set_upstreams(&self, targets: Vec<Upstream>, others: Vec<Upstream>) {
        let inner = &self.inner;
        let before = inner.upstreams();
        let is_same = before.targets.len() == targets.len()
            && before.targets.iter().zip(&targets).all(|(a, b)| a.is_same(b));
        let after = Arc::new(Upstreams::after(&before, targets, others));
        *inner.upstreams.lock().unwrap_or_else(PoisonError::into_inner) = after;
        inner.others_memory.forget_all();
        if !is_same {
            info!("the push targets have changed, their workers begin anew");
            inner.workers.change();
        }
    }

    /// Bytes a second that all targets together get from now on; `None` is no bound.
    pub fn set_limit(&self, bytes_a_second: Option<u64>) {
        self.inner.limit.set(bytes_a_second);
    }
}
