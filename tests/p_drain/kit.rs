//! What these tests stand on: a store and the push side's door in this process, paths that are
//! accepted straight into the queue, targets that are folders or scripted buckets.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use snowberry::cache::{self, Cache};
use snowberry::metrics::Metrics;
use snowberry::nix::{FileHash, SecretKey, Signature, StoreDir};
use snowberry::push::{Config, Push, TargetStatus};
use snowberry::store::{
    self, Acceptance, Finished, HeldNar, Origin, QueueRow, Queued, Store, StoredNarInfo,
    disk::Folder,
};
use snowberry::units::ByteSize;
use snowberry::upstream::{self, Upstream};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::made::Made;
use crate::world::until;

/// Everything here is small and on loopback; a back-off of 5 s is waited for once.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Our own key.
pub(crate) fn own_key() -> SecretKey {
    SecretKey::from_seed("pi-1", [9; 32]).unwrap()
}

/// A table of `[[upstream]]` with `push = true`.
pub(crate) fn target(url: &str, more: &str) -> upstream::Config {
    toml::from_str(&format!("url={url:?}\nunsigned=true\npush=true\n{more}\n")).unwrap()
}

/// The process: store, door, workers.
pub(crate) struct House {
    pub(crate) store: Store,
    pub(crate) push: Push,
    pub(crate) metrics: Metrics,
    pub(crate) urls: Vec<String>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    folder: Arc<TempDir>,
}

impl House {
    /// With a store of its own.
    pub(crate) async fn new(targets: &[upstream::Config]) -> Self {
        let folder = Arc::new(TempDir::new().unwrap());
        Self::on(&folder, targets, |_| {}).await
    }

    pub(crate) async fn on(
        folder: &Arc<TempDir>,
        targets: &[upstream::Config],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        Self::with(folder.path(), folder.clone(), targets, change).await
    }

    /// With the store of this folder, which stays.
    pub(crate) async fn at(
        store: &Path,
        folder: Arc<TempDir>,
        targets: &[upstream::Config],
        limit: Option<u64>,
    ) -> Self {
        Self::with(store, folder, targets, |config| config.limit = limit).await
    }

    async fn with(
        store: &Path,
        folder: Arc<TempDir>,
        targets: &[upstream::Config],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        drop(
            tracing_subscriber::fmt()
                .with_test_writer()
                .with_max_level(tracing::Level::DEBUG)
                .try_init(),
        );
        let metrics = Metrics::new();
        let store = open(store, &metrics).await;
        let store_dir = StoreDir::default();
        let upstream = |config| Upstream::new(config, &store_dir, &metrics).unwrap();
        let targets: Vec<_> = targets.iter().map(upstream).collect();
        let urls = targets.iter().map(|target| target.url().to_string()).collect();
        let cache_config = cache::Config {
            compression_level: 3,
            codec_memory_bytes: 48 << 20,
            unpack_bytes_max: 160 << 20,
            store_dir: store_dir.clone(),
            own_keys: vec![own_key().public()],
            signer: None,
            scrub_every: None,
        };
        let cache = Cache::new(cache_config, store.clone(), Vec::new(), metrics.clone());
        let mut config = Config {
            store_dir,
            compression_level: 3,
            nar_size_max: 1 << 40,
            everything: false,
            limit: None,
        };
        change(&mut config);
        let both = (targets, Vec::new());
        let push =
            Push::new(config, Some(own_key()), (store.clone(), cache), both, metrics.clone());
        let (stop, tasks) = (CancellationToken::new(), JoinSet::new());
        Self { store, push, metrics, urls, stop, tasks, folder }
    }

    /// Begins to carry.
    pub(crate) fn run(&mut self) {
        let (push, stop) = (self.push.clone(), self.stop.clone());
        self.tasks.spawn(async move { push.run(stop).await });
    }

    /// Ends as the daemon does, and gives back the folder.
    pub(crate) async fn stop(mut self) -> Arc<TempDir> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.store.close().await;
        self.folder.clone()
    }

    /// Accepts a path for all targets, as the write side does, signed by our own key. Each time
    /// with one more signature, if `more`.
    pub(crate) async fn accept(&self, made: &Made) {
        self.accept_signed(made, &[]).await;
    }

    pub(crate) async fn accept_signed(&self, made: &Made, more: &[Signature]) {
        accept(&self.store, made, more, &self.urls).await;
    }

    pub(crate) async fn rows(&self, target: usize) -> Vec<QueueRow> {
        self.store.queue(&self.urls[target], 0, 1000).await.unwrap()
    }

    pub(crate) fn status(&self, target: usize) -> TargetStatus {
        let found = self.push.status().into_iter().find(|it| it.target == self.urls[target]);
        found.unwrap()
    }

    /// Waits until this target's status is as wanted.
    pub(crate) async fn shows(
        &self,
        what: &str,
        target: usize,
        is: impl Fn(&TargetStatus) -> bool,
    ) -> TargetStatus {
        until(what, LIMIT, || async { Some(self.status(target)).filter(|it| is(it)) }).await
    }

    /// Waits until nothing waits at this target.
    pub(crate) async fn drained(&self, target: usize) {
        self.shows("an empty queue", target, |it| it.waiting == 0).await;
    }
}

/// Opens a store below a folder.
pub(crate) async fn open(folder: &Path, metrics: &Metrics) -> Store {
    let path = folder.join("store");
    std::fs::create_dir_all(&path).unwrap();
    let config = store::Config {
        budget: Some(ByteSize(1 << 30)),
        marker: Some(folder.join("marker")),
        ..store::Config::default()
    };
    let store = Store::start(config, Arc::new(Folder { path }), metrics.clone()).unwrap();
    assert_eq!(store.first_opened().await, store::State::Open);
    store
}

/// The stored stream of a path's NAR.
pub(crate) fn stream_of(made: &Made) -> Vec<u8> {
    zstd::encode_all(&made.nar[..], 3).unwrap()
}

/// Where the bucket gets its NAR.
pub(crate) fn nar_key(made: &Made) -> String {
    let file_hash = FileHash::from_bytes(Sha256::digest(stream_of(made)).into());
    format!("nar/{}.nar.zst", file_hash.to_nix32())
}

pub(crate) fn narinfo_key(made: &Made) -> String {
    format!("{}.narinfo", made.store_path_hash())
}

async fn hold(store: &Store, made: &Made) -> HeldNar {
    let stream = stream_of(made);
    let reservation = store.reserve(stream.len().try_into().unwrap()).await.unwrap();
    let mut writer = store.begin(reservation).await.unwrap();
    for piece in stream.chunks(100_000) {
        writer.append(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    let finished = Finished {
        nar_hash: made.nar_hash(),
        nar_size: made.nar.len().try_into().unwrap(),
        file_hash: FileHash::from_bytes(Sha256::digest(&stream).into()),
        origin: Origin::Ours,
        listing: None,
    };
    writer.finish(finished).await.unwrap()
}

/// Holds a path's NAR, publishes the path and queues it.
pub(crate) async fn accept(store: &Store, made: &Made, more: &[Signature], targets: &[String]) {
    let held = store.nar(made.nar_hash()).await.unwrap();
    let nar = if let Some(held) = held { held } else { hold(store, made).await };
    let mut narinfo = made.narinfo();
    narinfo.signatures = vec![own_key().sign(&narinfo.fingerprint(&StoreDir::default()))];
    narinfo.signatures.extend(more.iter().cloned());
    narinfo.signatures.sort();
    let stored = StoredNarInfo { narinfo, upstream: String::new(), origin: Origin::Ours };
    let targets = targets.to_vec();
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let acceptance = Acceptance { stored, nar, upload: None, targets };
    store.accept(acceptance, now_s.as_secs()).await.unwrap();
}

/// Its name in a queue.
pub(crate) fn queued(made: &Made) -> Queued {
    Queued::Path(made.store_path_hash())
}
