//! What the store's tests stand on: a store in a folder of its own, NARs made of a seed.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::metrics::Metrics;
use crate::nix::{Compression, FileHash, NarHash, NarInfo, StorePath};
use crate::store::disk::Folder;
use crate::store::keys::{id_of_key, row_key};
use crate::store::records::NarRecord;
use crate::store::removal::takes_of;
use crate::store::segment::number_of;
use crate::store::tables::NAR;
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

    /// Opens on a disk of the test's.
    pub(super) async fn open_on(&self, disk: impl Disk) -> Store {
        let store = self.start(Arc::new(disk));
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

/// Numbers from a seed (splitmix64), so that a failure can be replayed.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    /// A number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// How often seeded tests go round.
pub(super) fn rounds() -> u64 {
    std::env::var("SNOWBERRY_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// Waits until the store is open (or degraded) again.
pub(super) async fn until_state(store: &Store, open: bool) {
    let mut changes = store.shared.first_opened.subscribe();
    let wait = async {
        while matches!(store.state(), State::Open) != open {
            changes.changed().await.unwrap();
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_mins(1), wait).await;
    assert!(waited.is_ok(), "{:?}", store.state());
}

/// Waits until the writer has nothing left to do of its own accord.
pub(super) async fn until_idle(store: &Store) {
    let idle = |store: &Store| {
        let busy = store.shared.session().unwrap();
        !busy.busy.load(std::sync::atomic::Ordering::Acquire)
    };
    store.flush().await.unwrap();
    // Said anew by the writer after all that was asked before.
    store.shared.session().unwrap().busy.store(true, std::sync::atomic::Ordering::Release);
    until(store, idle).await;
}

/// The records of all NARs in the index, doomed ones too.
pub(super) fn records(store: &Store) -> Vec<(u64, NarRecord)> {
    let session = store.shared.session().unwrap();
    let rows = session.index.read(|txn| NAR.scan(txn, &[], usize::MAX, |_| true)).unwrap();
    let record = |(key, body): &(Vec<u8>, Vec<u8>)| {
        (id_of_key(key).unwrap(), NarRecord::from_bytes(NAR, body).unwrap())
    };
    rows.iter().map(record).collect()
}

/// When the store is idle its count is what its records say, and its segments hold their rows
/// and no others.
pub(super) async fn check_books(store: &Store) {
    until_idle(store).await;
    let records = records(store);
    let takes = |(_, record): &(u64, NarRecord)| -> u64 {
        takes_of(&record.parts, record.file_size).values().sum()
    };
    assert_eq!(store.figures().used_bytes, records.iter().map(takes).sum::<u64>());
    assert_eq!(store.figures().nars, u64::try_from(records.len()).unwrap());
    let mut expected = BTreeSet::new();
    for (id, record) in &records {
        for part in &record.parts {
            let rows = part.first_row..part.first_row + part.rows;
            expected.extend(rows.map(|row| (part.segment, row_key(*id, row))));
        }
    }
    let session = store.shared.session().unwrap();
    let mut found = BTreeSet::new();
    for name in store.shared.disk.names().unwrap() {
        let Some(segment) = number_of(&name) else { continue };
        let rows = session.segments.keys(segment).unwrap();
        found.extend(rows.into_iter().map(|row| (segment, row)));
    }
    assert!(found == expected, "{} rows found, {} expected", found.len(), expected.len());
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
