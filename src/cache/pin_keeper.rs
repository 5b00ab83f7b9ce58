//! Pins that lost a NAR to damage are made whole again.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::{Inner, bring};

/// How long a pin that lost a NAR waits for others to be found that went with it.
const MEND_AFTER: Duration = Duration::from_secs(5);

/// How long after a pin could not be mended it is tried again.
const MEND_AGAIN: Duration = Duration::from_mins(10);

/// What is pinned and went missing, because it was damaged, is fetched again, for as long as it
/// takes. One that is still being pinned is whoever's who pins it.
pub(super) fn start(inner: &Arc<Inner>) {
    let keeper = Arc::clone(inner);
    inner.spawn(async move {
        let closing = keeper.closing.clone();
        closing.run_until_cancelled(Box::pin(keep_whole(&keeper))).await;
    });
}

async fn keep_whole(inner: &Arc<Inner>) {
    let mut hurt = inner.store.pins_hurt();
    loop {
        if hurt.wait_for(|count| *count > 0).await.is_err() {
            return;
        }
        loop {
            tokio::time::sleep(MEND_AFTER).await;
            hurt.borrow_and_update();
            if mend(inner).await {
                break;
            }
            tokio::time::sleep(MEND_AGAIN).await;
        }
        if hurt.changed().await.is_err() {
            return;
        }
    }
}

/// Fetches what pins that hold have lost. False: not all of it came.
async fn mend(inner: &Arc<Inner>) -> bool {
    let Ok(pins) = inner.store.pins().await else { return false };
    let mut whole = true;
    for pin in pins.into_iter().filter(|pin| pin.is_whole) {
        let missing = match inner.missing(pin.id, &[]).await {
            Ok(missing) => missing,
            Err(error) => {
                warn!(
                    name = pin.name,
                    error = &error as &dyn std::error::Error,
                    "a pin has lost a path that cannot be had"
                );
                whole = false;
                continue;
            }
        };
        if missing.is_empty() {
            continue;
        }
        let came = bring::all(inner, &missing, None, |_| {}, || true).await;
        warn!(
            name = pin.name,
            lost = missing.len(),
            fetched = came.nars,
            "a pin had lost NARs, which were fetched again"
        );
        whole &= came.lacks.is_empty();
    }
    whole
}
