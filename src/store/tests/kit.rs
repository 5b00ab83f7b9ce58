//! What the store's tests stand on: a store in a folder of its own, NARs made of a seed.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::metrics::Metrics;
use crate::nix::{Compression, FileHash, NarHash, NarInfo, StorePath};
use crate::store::disk::Folder;
use crate::store::{
    Config, Disk, Error, Finished, HeldNar, NarWriter, Origin, State, Store, StoredNarInfo,
};
use crate::units::ByteSize;

/// A folder and what is to be opened in it.
pub(super) struct House {
    pub(super) folder: tempfile::TempDir,
    pub(super) config: Config,
    pub(super) metrics: Metrics,
}

impl House {
    pub(super) fn new(budget: u64) -> Self {
        let log = tracing_subscriber::fmt().with_test_writer().try_init();
        drop(log);
        let folder = tempfile::tempdir().unwrap();
        let marker = Some(folder.path().join("marker"));
        std::fs::create_dir(folder.path().join("store")).unwrap();
        let budget = Some(ByteSize(budget));
        let config = Config { budget, marker, ..Config::default() };
        Self { folder, config, metrics: Metrics::new() }
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    pub(super) async fn open(&self) -> Store {
        let store = self.start(Arc::new(Folder { path: self.path() }));
        assert_eq!(store.first_opened().await, State::Open);
        store
    }

    pub(super) fn start(&self, disk: Arc<dyn Disk>) -> Store {
        Store::start(self.config.clone(), disk, self.metrics.clone()).unwrap()
    }
}

/// Bytes that do not repeat, from a seed.
pub(super) fn stream(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out.into()
}

pub(super) fn file_hash(stream: &[u8]) -> FileHash {
    FileHash::from_bytes(Sha256::digest(stream).into())
}

pub(super) fn nar_hash(seed: u64) -> NarHash {
    NarHash::from_bytes(Sha256::digest(seed.to_be_bytes()).into())
}

pub(super) fn finished(seed: u64, stream: &[u8], origin: Origin) -> Finished {
    Finished {
        nar_hash: nar_hash(seed),
        nar_size: 3 * u64::try_from(stream.len()).unwrap() + 1,
        file_hash: file_hash(stream),
        origin,
        listing: Some(Bytes::from(format!("listing of {seed}"))),
    }
}

pub(super) async fn begin(store: &Store, len: usize) -> Result<NarWriter, Error> {
    let reservation = store.reserve(u64::try_from(len).unwrap()).await?;
    store.begin(reservation).await
}

/// Fills a NAR in pieces of 100 kB.
pub(super) async fn fill(store: &Store, seed: u64, len: usize) -> Result<HeldNar, Error> {
    fill_as(store, seed, len, Origin::Upstream).await
}

pub(super) async fn fill_as(
    store: &Store,
    seed: u64,
    len: usize,
    origin: Origin,
) -> Result<HeldNar, Error> {
    let bytes = stream(seed, len);
    let mut writer = begin(store, len).await?;
    let mut rest = bytes.clone();
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(100_000));
        writer.append(piece).await?;
    }
    writer.finish(finished(seed, &bytes, origin)).await
}

/// The whole stream of a held NAR.
pub(super) async fn whole(held: &HeldNar) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    loop {
        let bytes = held.read(u64::try_from(out.len()).unwrap()).await?;
        if bytes.is_empty() {
            return Ok(out);
        }
        out.extend_from_slice(&bytes);
    }
}

pub(super) async fn check_whole(held: &HeldNar) {
    let bytes = whole(held).await.unwrap();
    assert_eq!(u64::try_from(bytes.len()).unwrap(), held.file_size());
    assert_eq!(file_hash(&bytes), held.file_hash());
}

/// A narinfo of the `number`th path that names the NAR of `seed`.
pub(super) fn narinfo(number: u64, seed: u64) -> StoredNarInfo {
    let digits = crate::nix::base32::encode(&Sha256::digest(number.to_le_bytes())[..20]);
    let narinfo = NarInfo {
        store_path: StorePath::parse(&format!("{digits}-hello-{number}")).unwrap(),
        url: format!("nar/{number}.nar.xz"),
        compression: Compression::Xz,
        file_hash: None,
        file_size: Some(17),
        nar_hash: nar_hash(seed),
        nar_size: 123,
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        ca: None,
    };
    let upstream = "https://cache.example".to_owned();
    StoredNarInfo { narinfo, upstream, origin: Origin::Upstream }
}

/// Waits until something the store does in the background has come true.
pub(super) async fn until(store: &Store, true_of: impl Fn(&Store) -> bool) {
    let wait = async {
        while !true_of(store) {
            store.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), wait).await;
    assert!(waited.is_ok(), "it never came true: {:?}", store.figures());
}
