//! A question on its way, and what its silence says about the upstream.

use std::time::Instant;

use super::{Asked, Error, Inner};

/// A question on its way. Dropped before its answer, it tells how long the asker waited in vain.
pub(super) struct Waiting<'a> {
    pub(super) inner: &'a Inner,
    pub(super) asked: &'a Asked,
    pub(super) since: Instant,
    pub(super) answered: bool,
    /// It was counted as trouble already.
    pub(super) counted: bool,
}

impl Waiting<'_> {
    /// What it is as long as nothing comes.
    pub(super) fn silent(&self) -> Error {
        Error::Silent { asked: self.asked.clone(), waited_s: self.since.elapsed().as_secs() }
    }

    /// Trouble, although the answer may still come.
    pub(super) fn count(&mut self) {
        self.counted = true;
        self.inner.record_trouble(&self.silent());
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let in_vain = self.since.elapsed() >= self.inner.patience.given_up;
        if in_vain && !self.answered && !self.counted {
            self.count();
        }
    }
}
