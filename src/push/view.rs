//! What `/push` has: the same store seen without its upstreams.
//!
//! What it calls there, an uploader leaves out. So it says so only of what is safe: held here, and
//! at every target or on its way there.

use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, warn};

use super::others::{Heard, Said};
use super::{Inner, Push, now_s};
use crate::nix::StorePathHash;
use crate::store::{Acceptance, HeldNar, Origin, Queued, StoredNarInfo};

/// How long targets are asked what they have. A target that does not answer costs the upload of
/// what it may have, which is safe.
const TARGETS_WAIT: Duration = Duration::from_secs(2);

impl Push {
    /// The narinfo at `/push/<key>.narinfo`.
    pub async fn view_narinfo(&self, key: StorePathHash) -> Option<Bytes> {
        self.check_open().ok()?;
        let inner = &self.inner;
        match inner.store.lookup(key).await {
            Ok(Some((stored, Some(held)))) => {
                if !self.is_safe(key, &stored, held.clone()).await {
                    return None;
                }
                Some(inner.cache.shown(&stored.narinfo, Some(&held)))
            }
            Ok(Some((_, None)) | None) => {
                self.ask_others_ahead(key);
                inner.at_all_targets(key).await
            }
            Err(error) => {
                debug!(%key, error = &error as &dyn std::error::Error, "lookup failed");
                None
            }
        }
    }

    /// A document below `/push/`: what is held here was pushed, is queued, or came from upstream.
    pub async fn view_document(&self, name: &str) -> Option<Bytes> {
        self.check_open().ok()?;
        self.inner.store.document(name).await.ok().flatten()
    }

    /// The `.ls` of a path whose NAR is held.
    pub async fn view_listing(&self, key: StorePathHash) -> Option<Bytes> {
        self.check_open().ok()?;
        let store = &self.inner.store;
        if let Ok(Some((stored, Some(_)))) = store.lookup(key).await
            && let Ok(Some(listing)) = store.listing(stored.narinfo.nar_hash).await
        {
            return Some(listing);
        }
        self.view_document(&format!("{key}.ls")).await
    }

    /// Whether a held path is at every target or on its way there; sees to it where it is not.
    async fn is_safe(&self, key: StorePathHash, stored: &StoredNarInfo, nar: HeldNar) -> bool {
        let inner = &self.inner;
        let mut lacking = Vec::new();
        for target in &inner.upstreams().targets {
            let url: &str = target.url();
            match inner.store.queue_row(url, Queued::Path(key)).await {
                Ok(Some(_)) => {}
                Ok(None) if stored.upstream == url => {}
                Ok(None) => lacking.push(target.clone()),
                Err(_) => return false,
            }
        }
        if lacking.is_empty() || inner.is_of_others(stored) {
            return true;
        }
        let nar_hash = stored.narinfo.nar_hash;
        let mut targets = Vec::new();
        for target in lacking {
            let heard = inner.hear(std::slice::from_ref(&target), key, TARGETS_WAIT).await;
            match heard.of(nar_hash) {
                Said::Same(_) | Said::Differs => {}
                Said::Absent | Said::Unknown => targets.push(target.url().to_string()),
            }
        }
        if targets.is_empty() {
            return true;
        }
        let acceptance = Acceptance { stored: stored.clone(), nar, upload: None, targets };
        match inner.store.accept(acceptance, now_s()).await {
            Ok(()) => {
                self.tell_queued();
                true
            }
            Err(error) => {
                warn!(%key, error = &error as &dyn std::error::Error, "path could not be queued");
                false
            }
        }
    }
}

impl Inner {
    /// Whether another upstream has it, which then need not be carried anywhere.
    fn is_of_others(&self, stored: &StoredNarInfo) -> bool {
        !self.config.everything
            && stored.origin == Origin::Upstream
            && self.upstreams().others.iter().any(|other| **other.url() == *stored.upstream)
    }

    /// The narinfo of a path that is not here, when every target has it with one NAR.
    async fn at_all_targets(&self, key: StorePathHash) -> Option<Bytes> {
        let upstreams = self.upstreams();
        let targets = &upstreams.targets;
        if targets.is_empty() {
            return None;
        }
        let Heard { found, .. } = self.hear(targets, key, TARGETS_WAIT).await;
        let first = &found.first()?.narinfo;
        let agree = found.iter().all(|found| found.narinfo.nar_hash == first.nar_hash);
        (found.len() == targets.len() && agree).then(|| self.cache.shown(first, None))
    }
}
