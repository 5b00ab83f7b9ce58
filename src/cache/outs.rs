//! What would go next, and what goes because somebody says so.

use std::sync::Arc;

use tracing::info;

use super::{Cache, Errand, Inner};
use crate::nix::{NarHash, StorePathHash};
use crate::store::{self, Gone, Out, Queued};

/// NARs that are told one by one; more are counted.
const OUTS_MAX: usize = 10_000;

/// Paths of a NAR whose ready narinfos are forgotten when it goes.
const PATHS_MAX: usize = 64;

/// A NAR that goes, or would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutShown {
    /// Its paths by name, some of them; none when their narinfos have gone.
    pub paths: Vec<String>,
    /// What it takes in the store.
    pub bytes: u64,
    /// No upstream is known to have it.
    pub is_only_here: bool,
    /// When it was certainly not used any more, in seconds since 1970.
    pub unused_since_s: Option<u64>,
}

/// What went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evicted {
    /// The NARs, some of them.
    pub outs: Vec<OutShown>,
    /// How many they are.
    pub count: usize,
    /// What they took.
    pub bytes: u64,
    /// What may not go: pinned, waiting to be pushed or for its narinfo.
    pub kept_bytes: u64,
    /// What is left, without what went and is still read by somebody.
    pub left_bytes: u64,
}

/// How a path went that was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EvictedPath {
    /// Its NAR goes, for all paths that have it.
    Out(OutShown),
    /// It is not here.
    NotHere,
    /// It stays, because of this.
    Stays(String),
}

impl Cache {
    /// What would go next, in its order, until `bytes` are free by that, at most `count_max`.
    pub async fn next_out(&self, bytes: u64, count_max: usize) -> Result<Vec<OutShown>, Errand> {
        let outs = self.inner.store.next_out(bytes, count_max.min(OUTS_MAX)).await?;
        Ok(self.inner.shown_outs(outs).await)
    }

    /// Lets go what goes next until at most `to_bytes` are used; `told` hears how many bytes went.
    pub async fn evict_to(
        &self,
        to_bytes: u64,
        told: impl Fn(u64, usize) + Send + Sync,
    ) -> Result<Evicted, Errand> {
        let store = &self.inner.store;
        let mut evicted = Evicted::default();
        loop {
            let store::Outs { nars: outs, left_bytes } = store.evict_to(to_bytes).await?;
            evicted.left_bytes = left_bytes;
            if outs.is_empty() {
                break;
            }
            evicted.count += outs.len();
            evicted.bytes += outs.iter().map(|out| out.takes_bytes).sum::<u64>();
            let left = OUTS_MAX.saturating_sub(evicted.outs.len());
            let shown = self.inner.gone(outs).await;
            evicted.outs.extend(shown.into_iter().take(left));
            told(evicted.bytes, evicted.count);
        }
        evicted.kept_bytes = store.kept_back_bytes();
        info!(nars = evicted.count, bytes = evicted.bytes, "evicted by hand");
        Ok(evicted)
    }

    /// Lets the NAR of a path go. Its narinfo stays, as that of any path that was evicted. One that is
    /// not here is not looked for any more, should it have been lost to the disk.
    pub async fn evict_path(&self, key: StorePathHash) -> Result<EvictedPath, Errand> {
        let Self { inner } = self;
        let Some(stored) = inner.store.peek_narinfo(key).await? else {
            inner.scrub.repairs.let_go(key, None);
            return Ok(EvictedPath::NotHere);
        };
        let nar_hash = stored.narinfo.nar_hash;
        match inner.store.evict_nar(nar_hash).await? {
            Gone::Out(out) => {
                let shown = inner.gone(vec![out]).await.into_iter().next();
                info!(%key, "evicted by hand");
                Ok(shown.map_or(EvictedPath::NotHere, EvictedPath::Out))
            }
            Gone::NotHere => {
                inner.scrub.repairs.let_go(key, Some(nar_hash));
                Ok(EvictedPath::NotHere)
            }
            Gone::Kept => Ok(EvictedPath::Stays(inner.why_kept(nar_hash).await?)),
        }
    }
}

impl Inner {
    async fn shown_outs(self: &Arc<Self>, outs: Vec<Out>) -> Vec<OutShown> {
        let mut shown = Vec::with_capacity(outs.len());
        for out in outs {
            let mut paths = Vec::new();
            for key in out.paths {
                // Looked at without counting as used: who looks at what goes does not keep it.
                if let Ok(Some(stored)) = self.store.peek_narinfo(key).await {
                    paths.push(stored.narinfo.store_path.base_name().to_owned());
                }
            }
            shown.push(OutShown {
                paths,
                bytes: out.takes_bytes,
                is_only_here: out.is_only_here,
                unused_since_s: out.unused_since_s,
            });
        }
        shown
    }

    /// The same of what went: what was ready to be said of it is old.
    async fn gone(self: &Arc<Self>, outs: Vec<Out>) -> Vec<OutShown> {
        for out in &outs {
            let paths = self.store.paths_of(out.nar_hash, PATHS_MAX).await;
            for key in paths.unwrap_or_default() {
                self.memory.forget_ready(key);
            }
        }
        self.shown_outs(outs).await
    }

    async fn why_kept(&self, nar_hash: NarHash) -> Result<String, Errand> {
        let pins = self.store.pins_of(nar_hash).await?;
        if let Some(name) = pins.first() {
            return Ok(format!("it is pinned by {}: snowberry unpin {name}", pins.join(", ")));
        }
        for queue in self.store.queues() {
            for key in self.store.paths_of(nar_hash, PATHS_MAX).await? {
                let row = self.store.queue_row(&queue.target, Queued::Path(key)).await?;
                if row.is_some_and(|row| !row.lost) {
                    return Ok(format!("it waits to be pushed to {}", queue.target));
                }
            }
        }
        Ok("it was just uploaded and waits for its narinfo".to_owned())
    }
}
