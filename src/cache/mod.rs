//! Reads: hit, miss or absent. The state machine between the disk and the other caches.
//!
//! A narinfo: [`narinfo`] looks into [`memory`] and the store, and asks upstreams ([`ask`]) whom it
//! trusts as [`trust`] says; [`prefetch`] asks ahead. A NAR: held, or a [`fill`], which finds
//! [`sources`] and moves one of them ([`transfer`], [`stall`]) through the [`ingest`] under a
//! permit ([`permits`], and [`relief`] while memory runs short) into the store; with no room, [`through`]; under an uploader's name,
//! [`alias`]. Whole [`closure`]s are brought ([`bring`]) where people say so, and [`pins`] stay; what is
//! held is read again from time to time ([`scrub`]). The rest: [`documents`], [`pushed`], what the
//! write side needs of us, and [`greet`],
//! the first contact with each upstream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::nix::{NarHash, NarName, PublicKey, SecretKey, StoreDir, StorePathHash, UploadName};
use crate::store::{self, Store};
use crate::upstream::{self, Proof, Upstream};

mod narinfo;
mod memory;
mod ask;
mod trust;
mod prefetch;
mod fill;
mod stream;
mod sources;
mod transfer;
mod stall;
mod permits;
mod relief;
mod through;
mod alias;
mod documents;
mod pushed;
mod greet;
mod errand;
mod closure;
mod bring;
mod fit;
mod pins;
mod pin_keeper;
mod outs;
mod scrub;
mod import;
pub(crate) mod ingest;

#[cfg(test)]
mod tests;

use memory::Memory;
use permits::Permits;
use prefetch::Prefetch;
use stall::{PATIENCE, Patience};

pub use alias::AliasAnswer;
pub use errand::{Errand, Lack, Step, Why};
pub(crate) use fit::KEPT_PERCENT;
pub use import::{ImportError, ImportPlan, ImportProgress, Imported, Named};
pub use outs::{Evicted, EvictedPath, OutShown};
pub use pins::{Fetched, PinMade, PinShown};
pub use relief::MemoryState;
pub use scrub::{
    ScrubError, ScrubFound, ScrubIs, ScrubProgress, ScrubState, Unrepaired, WantedFor,
};
pub use stream::{Cut, NarStream};

pub(crate) use pushed::Unpacking;

// The nouns of the floors below that answers are made of, for those above, who may not go there.
pub use crate::store::{
    Figures as StoreFigures, HeldNar, History as StoreHistory, State as StoreState,
};
pub use crate::upstream::{Health, HealthState};

/// What the daemon tells the cache.
#[derive(Debug, Clone)]
pub struct Config {
    /// zstd level of what is stored.
    pub compression_level: i32,
    /// Memory of codecs in all, shared by permits.
    pub codec_memory_bytes: u64,
    /// What one NAR may take of it and beyond, when it is unpacked alone.
    pub unpack_bytes_max: u64,
    /// Nix's store directory.
    pub store_dir: StoreDir,
    /// Our own keys, present and rotated: always trusted.
    pub own_keys: Vec<PublicKey>,
    /// Signs what was fetched and whose upstream's signature held; `None` leaves it as it is.
    pub signer: Option<SecretKey>,
    /// How long the scrub takes to read each byte once; `None`: only when it is asked to.
    pub scrub_every: Option<Duration>,
}

/// How a question ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<T> {
    /// From our own disk.
    Hit(T),
    /// From an upstream.
    Miss(T),
    /// Nowhere to be had now: 404.
    Absent,
}

/// A NAR as it is handed out.
#[derive(Debug)]
pub enum NarAnswer {
    /// Whole here.
    Held(store::HeldNar),
    /// Whole here by now: it came from an upstream while the client waited.
    Filled(store::HeldNar),
    /// On its way: followed from its start, no length known.
    Filling(NarStream),
    /// Nowhere to be had now, or a Range into something that is not whole: 404.
    Absent,
}

/// What of a NAR a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NarWant {
    /// HEAD: never starts a fill.
    Head,
    /// GET from the start.
    Whole,
    /// GET with a Range that asks for more than the start: only from a NAR that is whole here.
    Part,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

/// What the rooms share. No two of its locks are ever held together, none across an await.
struct Inner {
    config: Config,
    own: Mutex<Arc<trust::Own>>,
    store: Store,
    asked: Mutex<greet::Asked>,
    metrics: Metrics,
    memory: Memory,
    questions: Mutex<HashMap<StorePathHash, narinfo::Latest>>,
    question_places: Arc<Semaphore>,
    prefetch: Prefetch,
    fills: Mutex<HashMap<NarHash, fill::Fill>>,
    permits: Permits,
    relief: relief::Relief,
    documents: documents::Bounds,
    through: Arc<Semaphore>,
    brought: Semaphore,
    packed: Arc<Semaphore>,
    ingest: ingest::Ingest,
    scrub: scrub::Scrub,
    patience: Patience,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// Locks a map for a few lines. What was poisoned is still a map: each change of one is a single call.
fn locked<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Work of the cache's own, which its end waits for. A task costs 2 KiB of program for each type
    /// of work, so they are of one.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work.boxed());
    }

    /// Our own keys as they are now.
    fn own(&self) -> Arc<trust::Own> {
        Arc::clone(&locked(&self.own))
    }

    /// The upstreams as they are now, in the order of their priority.
    fn upstreams(&self) -> Arc<[Upstream]> {
        Arc::clone(&locked(&self.asked).upstreams)
    }

    fn is_degraded(&self) -> bool {
        matches!(self.store.state(), store::State::Degraded { .. })
    }
}

impl Cache {
    /// Opens the door, and asks each upstream in the background whether it is a cache for us. The
    /// order of the upstreams is their priority.
    pub fn new(config: Config, store: Store, upstreams: Vec<Upstream>, metrics: Metrics) -> Self {
        let cache = Self::patient(config, store, upstreams, metrics, PATIENCE);
        greet::all(&cache.inner);
        pin_keeper::start(&cache.inner);
        relief::start(&cache.inner);
        cache
    }

    fn patient(
        config: Config,
        store: Store,
        upstreams: Vec<Upstream>,
        metrics: Metrics,
        patience: Patience,
    ) -> Self {
        let tasks = TaskTracker::new();
        let inner = Inner {
            own: Mutex::new(trust::Own::new(config.own_keys.clone(), config.signer.clone())),
            store,
            asked: Mutex::new(greet::Asked::new(upstreams)),
            metrics,
            memory: Memory::new(),
            questions: Mutex::default(),
            question_places: Arc::new(Semaphore::new(narinfo::QUESTIONS_MAX)),
            prefetch: Prefetch::default(),
            fills: Mutex::default(),
            permits: Permits::new(config.codec_memory_bytes, config.unpack_bytes_max),
            relief: relief::Relief::default(),
            documents: documents::Bounds::default(),
            through: Arc::new(Semaphore::new(through::THROUGH_MAX)),
            brought: Semaphore::new(bring::BROUGHT_MAX),
            packed: Arc::new(Semaphore::new(alias::PACKED_MAX)),
            ingest: ingest::Ingest::new(tasks.clone()),
            scrub: scrub::Scrub::new(config.scrub_every),
            patience,
            tasks,
            closing: CancellationToken::new(),
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Other keys are ours from now on, and another one signs what is fetched.
    pub fn set_own_keys(&self, own_keys: Vec<PublicKey>, signer: Option<SecretKey>) {
        *locked(&self.inner.own) = trust::Own::new(own_keys, signer);
    }

    /// Others are asked from now on, in the order of their priority. What is under way goes on with
    /// those before; that a path is nowhere to be had is not remembered any more.
    pub fn set_upstreams(&self, upstreams: Vec<Upstream>) {
        locked(&self.inner.asked).replace(upstreams);
        self.inner.memory.forget_absences();
        greet::all(&self.inner);
    }

    /// A narinfo that is ready in memory: no waiting, for the reactor.
    pub fn ready_narinfo(&self, key: StorePathHash) -> Option<Bytes> {
        let ready = self.inner.memory.ready(key)?;
        (!self.inner.is_degraded()).then_some(ready)
    }

    /// The narinfo of this key, ready to be sent, within 2.5 s whatever happens.
    pub async fn narinfo(&self, key: StorePathHash) -> Outcome<Bytes> {
        narinfo::answer(&self.inner, key).await
    }

    /// The NAR by its canonical name.
    pub async fn nar(&self, name: NarName, want: NarWant) -> NarAnswer {
        if self.inner.is_degraded() {
            return NarAnswer::Absent;
        }
        match (self.inner.store.nar(name.nar_hash).await, want) {
            (Ok(Some(held)), _) => NarAnswer::Held(held),
            (Ok(None), NarWant::Whole) => Box::pin(fill::follow(&self.inner, name)).await,
            (Ok(None), NarWant::Head | NarWant::Part) | (Err(_), _) => NarAnswer::Absent,
        }
    }

    /// A NAR by the name that its uploader gave it; `may_fetch`: also when it was evicted.
    pub async fn alias(&self, name: UploadName, want: NarWant, may_fetch: bool) -> AliasAnswer {
        Box::pin(alias::answer(&self.inner, name, want, may_fetch)).await
    }

    /// The `.ls` of a store path.
    pub async fn listing(&self, key: StorePathHash) -> Outcome<Bytes> {
        documents::listing(&self.inner, key).await
    }

    /// A small document by its path (`log/*`, `realisations/*`, `build-trace-v2/*`, `debuginfo/*`).
    pub async fn document(&self, path: &str) -> Outcome<Bytes> {
        documents::document(&self.inner, path).await
    }

    /// How the store is, for page, status and health.
    pub fn store_state(&self) -> store::State {
        self.inner.store.state()
    }

    /// The store's figures.
    pub fn store_figures(&self) -> store::Figures {
        self.inner.store.figures()
    }

    /// Keeps these figures with the store.
    pub fn keep_history(&self, history: Arc<dyn StoreHistory>) {
        self.inner.store.keep_history(history);
    }

    /// Bytes of what may not be evicted: pinned, waiting to be pushed or for its narinfo.
    pub fn kept_back_bytes(&self) -> u64 {
        self.inner.store.kept_back_bytes()
    }

    /// The upstreams and how they are, in order.
    pub fn upstreams(&self) -> Vec<(String, upstream::Health)> {
        let upstreams = self.inner.upstreams();
        upstreams.iter().map(|it| (it.url().to_string(), it.health())).collect()
    }

    /// By how many seconds a clock that says `now_s` is behind what upstreams prove; negative when it
    /// is ahead.
    pub fn clock_behind_s(&self, now_s: u64) -> Option<i64> {
        Proof::behind_s(self.inner.upstreams().iter().filter_map(Upstream::proof), now_s)
    }

    /// Since when no upstream answers, in seconds; `None` while one does, or when there is none.
    pub fn offline_since_s(&self) -> Option<u64> {
        let upstreams = self.inner.upstreams();
        let mut since = None;
        for upstream in upstreams.iter().map(Upstream::health) {
            match upstream.state {
                HealthState::Up => return None,
                HealthState::Down | HealthState::Refusing => {
                    let down = upstream.since.as_secs();
                    since = Some(since.map_or(down, |since: u64| since.min(down)));
                }
            }
        }
        since
    }

    /// Ends what runs (fills, questions), within the caller's patience.
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}
