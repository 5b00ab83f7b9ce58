//! What the tests of the push side stand on: uploads and acceptances made of a seed.

use super::kit::*;
use crate::nix::{Compression, FileHash, StorePathHash, UploadName};
use crate::store::{
    Acceptance, Alias, Error, HeldNar, Origin, Queued, Store, StoredNarInfo, TargetQueue,
};

pub(super) const ONE: &str = "s3://one?endpoint=s3.example";
pub(super) const TWO: &str = "file:///stick";

/// The name under which the NAR of a seed was uploaded.
pub(super) fn upload_name(seed: u64) -> UploadName {
    let file_hash = FileHash::from_bytes(*nar_hash(seed + 1_000_000).as_bytes());
    UploadName { file_hash, ending: Compression::Xz }
}

pub(super) fn alias_of(seed: u64, put_at_s: u64) -> Alias {
    Alias {
        nar_hash: nar_hash(seed),
        nar_size: 77,
        compression: Compression::Xz,
        file_size: 1000 + seed,
        put_at_s,
        bound: false,
    }
}

pub(super) fn ours(number: u64, seed: u64) -> StoredNarInfo {
    StoredNarInfo { upstream: String::new(), origin: Origin::Ours, ..narinfo(number, seed) }
}

pub(super) fn key(number: u64) -> StorePathHash {
    narinfo(number, 0).narinfo.store_path.hash()
}

pub(super) fn path(number: u64) -> Queued {
    Queued::Path(key(number))
}

/// A NAR comes as an upload.
pub(super) async fn upload(
    store: &Store,
    seed: u64,
    len: usize,
    at_s: u64,
) -> Result<HeldNar, Error> {
    let held = fill_as(store, seed, len, Origin::Ours).await?;
    store.keep_upload(upload_name(seed), alias_of(seed, at_s), held.clone()).await?;
    Ok(held)
}

/// The `number`th path binds the upload of `seed`.
pub(super) async fn accept(
    store: &Store,
    (number, seed): (u64, u64),
    nar: HeldNar,
    targets: &[&str],
    now_s: u64,
) -> Result<(), Error> {
    let acceptance = Acceptance {
        stored: ours(number, seed),
        nar,
        upload: Some(upload_name(seed)),
        targets: targets.iter().map(|target| (*target).to_owned()).collect(),
    };
    store.accept(acceptance, now_s).await
}

/// Uploads the NAR of `number` and accepts the path of that number.
pub(super) async fn push(
    store: &Store,
    number: u64,
    len: usize,
    targets: &[&str],
    now_s: u64,
) -> Result<(), Error> {
    let held = upload(store, number, len, now_s).await?;
    accept(store, (number, number), held, targets, now_s).await
}

/// The place of a path in a target's order.
pub(super) async fn seq_of(store: &Store, target: &str, what: Queued) -> Option<u64> {
    store.queue_row(target, what).await.unwrap().map(|row| row.seq)
}

pub(super) async fn strike(store: &Store, target: &str, what: Queued) {
    let seq = seq_of(store, target, what.clone()).await.unwrap();
    store.strike(target, what, seq).await.unwrap();
}

/// What the index says of a NAR.
pub(super) fn origin_of(store: &Store, seed: u64) -> Option<Origin> {
    let held = |nar: &&(u64, crate::store::records::NarRecord)| {
        nar.1.nar_hash == nar_hash(seed) && !nar.1.doomed
    };
    records(store).iter().find(held).map(|(_, record)| record.origin)
}

pub(super) fn queue_of(store: &Store, target: &str) -> Option<TargetQueue> {
    store.queues().into_iter().find(|queue| queue.target == target)
}

/// What is counted in memory is what the index says.
pub(super) async fn check_figures(store: &Store) {
    check_books(store).await;
    let session = store.shared.session().unwrap();
    let kept: u64 = records(store)
        .iter()
        .filter(|(_, record)| record.origin == Origin::Kept && !record.doomed)
        .map(|(_, record)| crate::store::layout::stream_takes(record.file_size))
        .sum();
    assert_eq!(store.kept_back_bytes(), kept);
    let mut loaded = session.index.read(crate::store::kept::Kept::load).unwrap();
    let unbound = (loaded.unbound.values().sum(), loaded.unbound.len() as u64);
    assert_eq!(store.unbound_uploads(), unbound);
    loaded.bytes = kept;
    assert_eq!(store.queues(), loaded.queues());
}
