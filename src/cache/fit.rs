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

/// What goes once the whole closure is here: what its name held before and nothing else keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Leaving(pub(super) u64);

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

/// Whether so much more may be kept: beside what stays as a part of the budget, and for as long as
/// what leaves is still here as a larger one.
pub(super) fn fits(inner: &Inner, more_bytes: u64, leaving: Leaving) -> bool {
    let budget_bytes = inner.store.figures().budget_bytes;
    may_be_kept(budget_bytes, inner.store.kept_back_bytes().saturating_add(more_bytes), leaving)
}

const fn may_be_kept(budget_bytes: u64, kept_bytes: u64, leaving: Leaving) -> bool {
    kept_bytes.saturating_sub(leaving.0) <= budget_bytes / 100 * KEPT_PERCENT
        && kept_bytes
            <= budget_bytes / 100 * if leaving.0 > 0 { FETCHED_PERCENT } else { KEPT_PERCENT }
}

pub(super) fn no_fit(inner: &Inner, nars: &[Member]) -> Errand {
    Errand::NoFit { what: "the closure", figures: figures(inner, nars) }
}

/// Whether these may be pinned beside what is kept.
pub(super) fn check_fit(inner: &Inner, nars: &[Member], leaving: Leaving) -> Result<(), Errand> {
    let more = nars.iter().filter(|it| !it.is_kept).map(|it| it.takes_bytes).sum();
    if fits(inner, more, leaving) { Ok(()) } else { Err(no_fit(inner, nars)) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_makes_room_as_far_as_both_can_be_here() {
        for (kept_bytes, leaving_bytes, may) in [
            (800, 0, true),
            (801, 0, false),
            (801, 1, true),
            (940, 140, true),
            (940, 139, false),
            (941, 900, false),
        ] {
            let found = may_be_kept(1000, kept_bytes, Leaving(leaving_bytes));
            assert_eq!(found, may, "{kept_bytes} {leaving_bytes}");
        }
    }
}
