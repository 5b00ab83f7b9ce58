//! Carries a target's queue up, for as long as it takes.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Inner, Push};
use crate::upstream::Upstream;

/// How each target's worker is.
pub(super) struct Workers;

impl Workers {
    pub(super) fn new(_targets: &[Upstream]) -> Self {
        Self
    }
}

/// One worker for each target, and the sweep of unbound uploads, until `stop`.
pub(super) async fn run(_inner: &Arc<Inner>, _stop: CancellationToken) {
    todo!()
}

impl Push {
    /// Every worker tries at once, whatever its back-off says, and parked rows are tried again.
    pub fn retry(&self) {
        todo!()
    }
}
