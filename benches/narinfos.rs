//! One lookup in the store's index, with as many narinfos as asked for: no HTTP, and no cache of
//! ready answers. `benches/run` compares a million with a thousand.
//!
//! usage: narinfos FOLDER COUNT; loads them into the folder unless they are there, and prints one
//! line of JSON.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use snowberry::metrics::Metrics;
use snowberry::nix::{
    Compression, FileHash, NarHash, NarInfo, Signature, StorePath, StorePathHash,
};
use snowberry::store::{Config, Origin, State, Store, StoredNarInfo, disk::Folder};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Narinfos handed to the store at once while loading: enough for its writer to make groups.
const LOADING_MAX: usize = 512;

/// Lookups timed: the median of so many is steady, and even with a million narinfos nearly every
/// one is of a key that was not looked up before.
const LOOKUPS: u64 = 20_000;

/// Lookups before, untimed: threads are awake and the page cache has been gone through.
const WARM_UP: u64 = 2_000;

/// Direct references of each, as a middling path has them.
const REFERENCES: u64 = 5;

/// A well-formed signature; nobody here checks it.
const SIGNATURE: &str = "cache.example.org-1:8O+7O94DTKI6edi4VAFDIXJM1/HuquGojmA2/A+35OQ6rttD3zIsK8\
                         eJNW/PcgIi5YXiKAgvXXoZooAzeHucAA==";

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (Some(folder), Some(count), None) = (args.next(), args.next(), args.next()) else {
        bail!("usage: narinfos FOLDER COUNT");
    };
    let count: u64 = count.parse().context("COUNT")?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(measure(PathBuf::from(folder), count))
}

async fn measure(folder: PathBuf, count: u64) -> Result<()> {
    std::fs::create_dir_all(&folder)?;
    let started = Instant::now();
    let store = open(&folder).await?;
    if store.figures().narinfos < count {
        load(&store, count).await?;
    }
    store.close().await;
    let load_s = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let store = open(&folder).await?;
    let open_ms = started.elapsed().as_secs_f64() * 1000.0;
    let held = store.figures().narinfos;
    let mut taken_ns = look_up(&store, count).await?;
    store.close().await;

    taken_ns.sort_unstable();
    let at = |part: usize| taken_ns.get(taken_ns.len() * part / 100).copied().unwrap_or(0);
    writeln!(
        std::io::stdout(),
        r#"{{"count":{count},"held":{held},"p50_ns":{},"p99_ns":{},"load_s":{load_s:.1},"open_ms":{open_ms:.1}}}"#,
        at(50),
        at(99),
    )?;
    Ok(())
}

async fn open(folder: &Path) -> Result<Store> {
    let disk = Arc::new(Folder { path: folder.to_path_buf() });
    let config = Config { path: Some(folder.to_path_buf()), ..Config::default() };
    let store = Store::start(config, disk, Metrics::new())?;
    match store.first_opened().await {
        State::Open => Ok(store),
        State::Degraded { reason, .. } => bail!("the store is degraded: {reason}"),
    }
}

async fn load(store: &Store, count: u64) -> Result<()> {
    stream::iter((0..count).map(Ok))
        .try_for_each_concurrent(LOADING_MAX, |number| async move {
            store.keep_narinfo(stored(number)?).await.context("keep a narinfo")
        })
        .await
}

/// One at a time, keys in no order, so that each takes its own way through the tree.
async fn look_up(store: &Store, count: u64) -> Result<Vec<u64>> {
    let picks = stream::iter(0..WARM_UP + LOOKUPS);
    picks
        .map(Ok)
        .and_then(|turn| async move {
            let pick = u64::try_from(mixed(turn, 0xfeed) % u128::from(count))?;
            let path = store_path(pick)?;
            let started = Instant::now();
            let found = store.lookup(path.hash()).await?;
            let took = u64::try_from(started.elapsed().as_nanos())?;
            match found {
                Some((stored, _)) if stored.narinfo.store_path == path => Ok((turn, took)),
                Some(_) | None => bail!("{path} was kept and is not found"),
            }
        })
        .try_filter_map(|(turn, took)| async move { Ok((turn >= WARM_UP).then_some(took)) })
        .try_collect()
        .await
}

fn mixed(number: u64, seed: u64) -> u128 {
    xxh3_128_with_seed(&number.to_le_bytes(), seed)
}

fn bytes_32(number: u64, seed: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    let (low, high) = bytes.split_at_mut(16);
    low.copy_from_slice(&mixed(number, seed).to_le_bytes());
    high.copy_from_slice(&mixed(number, seed + 1).to_le_bytes());
    bytes
}

fn store_path(number: u64) -> Result<StorePath> {
    let mut hash = [0; 20];
    for (to, from) in hash.iter_mut().zip(bytes_32(number, 1)) {
        *to = from;
    }
    let hash = StorePathHash::from_bytes(hash);
    Ok(StorePath::parse(&format!("{hash}-some-package-{number}.0"))?)
}

fn stored(number: u64) -> Result<StoredNarInfo> {
    let file_hash = FileHash::from_bytes(bytes_32(number, 3));
    let mut references: Vec<StorePath> = (1..=REFERENCES)
        .map(|back| store_path(number.saturating_sub(back * back)))
        .collect::<Result<_>>()?;
    references.sort();
    references.dedup();
    let narinfo = NarInfo {
        store_path: store_path(number)?,
        url: format!("nar/{}.nar.xz", file_hash.to_nix32()),
        compression: Compression::Xz,
        file_hash: Some(file_hash),
        file_size: Some(100_000 + number),
        nar_hash: NarHash::from_bytes(bytes_32(number, 5)),
        nar_size: 400_000 + number,
        references,
        deriver: None,
        signatures: vec![Signature::parse(SIGNATURE)?],
        ca: None,
    };
    Ok(StoredNarInfo {
        narinfo,
        upstream: "https://cache.example.org".to_owned(),
        origin: Origin::Upstream,
    })
}
