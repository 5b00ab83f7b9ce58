//! Reads: hit, miss or absent. The state machine between the disk and the other caches.

use bytes::Bytes;

use crate::metrics::Metrics;
use crate::nix::{FileHash, NarName, PublicKey, StoreDir, StorePathHash};
use crate::store::{self, Store};
use crate::upstream::{self, Upstream};

// The nouns of the floors below that answers are made of, for those above, who may not go there.
pub use crate::store::{Figures as StoreFigures, HeldNar, State as StoreState};
pub use crate::upstream::{Health, HealthState};

/// What the daemon tells the cache.
#[derive(Debug, Clone)]
pub struct Config {
    /// zstd level of what is stored.
    pub compression_level: i32,
    /// Memory of codecs in all, shared by permits: 48 MiB unless configured.
    pub codec_memory_bytes: u64,
    /// Nix's store directory.
    pub store_dir: StoreDir,
    /// Our own keys, present and rotated: always trusted.
    pub own_keys: Vec<PublicKey>,
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
pub enum NarAnswer {
    /// Whole here.
    Held(store::HeldNar),
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

/// A NAR's zstd stream as it comes. An error means: cut the response, never end it cleanly.
pub struct NarStream {}

impl NarStream {
    /// The next bytes; `None` after the last, when the NAR's hash was right.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Cut> {
        todo!()
    }
}

/// The NAR went wrong in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the NAR could not be completed")]
pub struct Cut;

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Cache {}

impl Cache {
    /// Opens the door.
    pub fn new(
        _config: Config,
        _store: Store,
        _upstreams: Vec<Upstream>,
        _metrics: Metrics,
    ) -> Self {
        todo!()
    }
    /// A narinfo that is ready in memory: no waiting, for the reactor.
    pub fn ready_narinfo(&self, _key: StorePathHash) -> Option<Bytes> {
        todo!()
    }
    /// The narinfo of this key, ready to be sent, within 2.5 s whatever happens.
    pub async fn narinfo(&self, _key: StorePathHash) -> Outcome<Bytes> {
        todo!()
    }
    /// The NAR by its canonical name.
    pub async fn nar(&self, _name: NarName, _want: NarWant) -> NarAnswer {
        todo!()
    }
    /// The NAR file by an uploader's file name: for the push side.
    pub async fn alias(&self, _file_hash: FileHash) -> Option<NarName> {
        todo!()
    }
    /// The `.ls` of a store path.
    pub async fn listing(&self, _key: StorePathHash) -> Outcome<Bytes> {
        todo!()
    }
    /// A small document by its path (`log/…`, `realisations/…`, `build-trace-v2/…`, `debuginfo/…`).
    pub async fn document(&self, _path: &str) -> Outcome<Bytes> {
        todo!()
    }
    /// How the store is, for page, status and health.
    pub fn store_state(&self) -> store::State {
        todo!()
    }
    /// The store's figures.
    pub fn store_figures(&self) -> store::Figures {
        todo!()
    }
    /// The upstreams and how they are, in order.
    pub fn upstreams(&self) -> Vec<(String, upstream::Health)> {
        todo!()
    }
    /// Since when no upstream answers, in seconds; `None` while one does.
    pub fn offline_since_s(&self) -> Option<u64> {
        todo!()
    }
    /// Ends what runs (fills, questions), within the caller's patience.
    pub async fn close(&self) {
        todo!()
    }
}
