//! The first contact with each upstream: is it a Nix cache, one for our store directory, and may we
//! read it? A bucket that denies everything looks like an empty one afterwards, so what is wrong
//! is told at the start, in the log and in the upstream's health.

use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Inner, locked};
use crate::upstream::{Error, Upstream};

/// First rest after a contact that failed: at boot the network comes a moment later.
const REST_MIN: Duration = Duration::from_secs(5);

/// Longest rest: once the upstream is mended, it is noticed within this time, and until then one
/// small question costs nobody anything.
const REST_MAX: Duration = Duration::from_mins(5);

/// Who is asked now.
pub(super) struct Asked {
    pub(super) upstreams: Arc<[Upstream]>,
    /// Ends the greeting of these, once others take their place.
    replaced: CancellationToken,
}

impl Asked {
    pub(super) fn new(upstreams: Vec<Upstream>) -> Self {
        Self { upstreams: upstreams.into(), replaced: CancellationToken::new() }
    }

    pub(super) fn replace(&mut self, upstreams: Vec<Upstream>) {
        self.replaced.cancel();
        *self = Self::new(upstreams);
    }
}

/// Greets all of them in the background.
pub(super) fn all(inner: &Arc<Inner>) {
    let (upstreams, replaced) = {
        let asked = locked(&inner.asked);
        (Arc::clone(&asked.upstreams), asked.replaced.clone())
    };
    for upstream in &*upstreams {
        let upstream = upstream.clone();
        let (closing, replaced) = (inner.closing.clone(), replaced.clone());
        inner.spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = replaced.cancelled() => {}
                () = greet(&upstream) => {}
            }
        });
    }
}

async fn greet(upstream: &Upstream) {
    let mut rest = REST_MIN;
    let mut told = None;
    while let Err(error) = upstream.cache_info().await {
        if is_news(&error, &mut told) {
            warn!(upstream = %upstream.url(), error = &error as &dyn std::error::Error,
                "an upstream cannot be used");
        }
        sleep(rest).await;
        rest = (rest * 2).min(REST_MAX);
    }
    if told.is_some() {
        info!(upstream = %upstream.url(), "the upstream can be used now");
    }
}

/// Whether it is to be told: each kind of trouble once in a row, and not that nobody was asked.
fn is_news(error: &Error, told: &mut Option<Discriminant<Error>>) -> bool {
    if matches!(error, Error::Resting { .. } | Error::Busy { .. }) {
        return false;
    }
    let kind = Some(discriminant(error));
    std::mem::replace(told, kind) != kind
}
