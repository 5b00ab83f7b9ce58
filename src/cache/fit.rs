//! Whether a closure has room: beside what is pinned and what waits, or only for a while.

use super::closure::Member;
use super::errand::Figures;
use super::{Errand, Inner};
use crate::units::ByteSize;

/// What is pinned and what waits to be pushed may take this part of the budget, in hundredths: the
/// rest is what a cache lives by.
pub(crate) const KEPT_PERCENT: u64 = 80;

/// A closure that is only fetched may take this part of the budget beside what is kept: with more,
/// its end would push out its beginning.
const FETCHED_PERCENT: u64 = 94;

fn figures(inner: &Inner, nars: &[Member]) -> Figures {
    let store = inner.store.figures();
    let budget = store.budget_bytes;
    let more = nars.iter().filter(|it| !it.is_kept).map(|it| it.takes_bytes).sum();
    Figures {
        closure: ByteSize(nars.iter().map(|it| it.takes_bytes).sum()),
        more: ByteSize(more),
        pinned: ByteSize(store.pinned_bytes),
        waiting: ByteSize(inner.store.waiting_bytes()),
        most: ByteSize(budget / 100 * KEPT_PERCENT),
        budget: ByteSize(budget),
    }
}

pub(super) fn fits(inner: &Inner, more_bytes: u64) -> bool {
    let most = inner.store.figures().budget_bytes / 100 * KEPT_PERCENT;
    inner.store.kept_back_bytes().saturating_add(more_bytes) <= most
}

pub(super) fn no_fit(inner: &Inner, nars: &[Member]) -> Errand {
    Errand::NoFit { what: "the closure", figures: figures(inner, nars) }
}

/// Whether these may be pinned beside what is kept.
pub(super) fn check_fit(inner: &Inner, nars: &[Member]) -> Result<(), Errand> {
    let more = nars.iter().filter(|it| !it.is_kept).map(|it| it.takes_bytes).sum();
    if fits(inner, more) { Ok(()) } else { Err(no_fit(inner, nars)) }
}

/// Whether these can be here at the same time.
pub(super) fn check_room(inner: &Inner, nars: &[Member]) -> Result<(), Errand> {
    let figures = figures(inner, nars);
    let most = figures.budget.0 / 100 * FETCHED_PERCENT;
    if inner.store.kept_back_bytes().saturating_add(figures.more.0) <= most {
        return Ok(());
    }
    Err(Errand::NoFit { what: "the closure", figures: Figures { most: ByteSize(most), ..figures } })
}
