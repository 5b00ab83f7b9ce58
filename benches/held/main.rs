//! A store that holds as many gibibytes as asked for, crashed in the middle of a write and opened
//! again: how long until it answers, and what a small path acknowledged and an eviction cost then. The disk is in memory ([`disk`]), so only the work counts, not
//! a medium; bytes are exact. `benches/run` compares 1 and 200 GiB.
//!
//! usage: held GIB; prints one line of JSON.

mod disk;

use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use snowberry::metrics::Metrics;
use snowberry::nix::{
    Compression, FileHash, NarHash, NarInfo, StorePath, StorePathHash, UploadName,
};
use snowberry::store::{Acceptance, Alias, Config, Finished, Origin, State, Store, StoredNarInfo};
use snowberry::units::ByteSize;
use xxhash_rust::xxh3::xxh3_128;

use disk::{FILLER, Memory};

/// Bytes of each NAR as stored: above the mean of a NixOS closure (3 MiB), so that loading takes
/// minutes and not an hour, and still 25,600 records at 200 GiB.
const NAR_LEN: u64 = 8 << 20;

/// Small paths of which the median is told.
const PUSHES: u64 = 9;

/// Bytes of a small path's NAR as stored: a page.
const SMALL_LEN: u64 = 4000;

/// Bytes of one piece of a NAR as ingest would hand it over.
const PIECE_LEN: usize = 256 << 10;

/// When it was pushed: any date will do.
const PUT_AT_S: u64 = 1_795_232_196;

/// Where it is to be carried.
const TARGET: &str = "s3://nix-cache?endpoint=https://minio.example.org";

/// A store that opens takes well under a second; one that is still degraded after so long is.
const OPEN_WAIT_MAX: Duration = Duration::from_mins(2);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (Some(gib), None) = (args.next(), args.next()) else { bail!("usage: held GIB") };
    let gib: u64 = gib.parse().context("GIB")?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(measure(gib))
}

async fn measure(gib: u64) -> Result<()> {
    let count = (gib << 30) / NAR_LEN;
    let disk = Memory::default();
    let started = Instant::now();
    let store = open(&disk, gib).await?;
    for number in 0..count {
        hold(&store, number).await.with_context(|| format!("NAR {number} of {count}"))?;
    }
    // Everything durable: a clean close, then a few NARs more and one that is only half there.
    store.close().await;
    let load_s = started.elapsed().as_secs_f64();
    let written = disk.written_bytes();
    let store = open(&disk, gib).await?;
    hold(&store, count).await?;
    let half = begin(&store, count + 1).await?;
    let crashed = disk.crash();
    drop(half);
    // Not closed: closing waits for a disk that does not answer any more.
    drop(store);

    let started = Instant::now();
    let store = open(&crashed, gib).await?;
    let open_ms = started.elapsed().as_secs_f64() * 1000.0;
    let first = store_path(0)?;
    let (_, held) = store.lookup(first.hash()).await?.context("a narinfo is gone")?;
    let first_ms = started.elapsed().as_secs_f64() * 1000.0;
    let held = held.context("a NAR is gone")?;
    if held.read(0).await?.first() != Some(&FILLER) {
        bail!("a NAR has other bytes");
    }
    drop(held);
    let figures = store.figures();
    // The first one after an opening chooses a segment, and notes it; the others are as they are
    // from then on.
    let (first_push_ms, first_push_bytes) = cost(&crashed, small_push(&store, count + 2)).await?;
    let mut pushes = Vec::new();
    for number in 0..PUSHES {
        pushes.push(cost(&crashed, small_push(&store, count + 3 + number)).await?);
    }
    pushes.sort_by_key(|(_, bytes)| *bytes);
    let (_, push_bytes) = *pushes.get(pushes.len() / 2).context("no push")?;
    pushes.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let (push_ms, _) = *pushes.get(pushes.len() / 2).context("no push")?;
    let (evict_ms, evict_bytes) = cost(&crashed, evict(&store, 1)).await?;
    writeln!(
        std::io::stdout(),
        r#"{{"gib":{gib},"nars":{},"used_bytes":{},"open_ms":{open_ms:.1},"first_ms":{first_ms:.1},"first_push_ms":{first_push_ms:.1},"first_push_bytes":{first_push_bytes},"push_ms":{push_ms:.1},"push_bytes":{push_bytes},"evict_ms":{evict_ms:.1},"evict_bytes":{evict_bytes},"load_s":{load_s:.1},"written":{written}}}"#,
        figures.nars,
        figures.used_bytes,
    )?;
    store.close().await;
    Ok(())
}

/// Milliseconds and bytes written of something that ends with all of it durable.
async fn cost(disk: &Memory, act: impl Future<Output = Result<()>>) -> Result<(f64, u64)> {
    let (started, before) = (Instant::now(), disk.written_bytes());
    act.await?;
    Ok((started.elapsed().as_secs_f64() * 1000.0, disk.written_bytes() - before))
}

/// What is done for an upload of one small path before its 200: a NAR of 4 KiB as stored, under the
/// name that it was put, then its narinfo and its place in a target's queue.
async fn small_push(store: &Store, number: u64) -> Result<()> {
    let mut writer = store.begin(store.reserve(SMALL_LEN).await?).await?;
    writer.append(Bytes::from(vec![FILLER; usize::try_from(SMALL_LEN)?])).await?;
    let origin = Origin::Ours;
    let nar = writer.finish(Finished { nar_size: SMALL_LEN, origin, ..finished(number) }).await?;
    let name = UploadName { file_hash: nar.file_hash(), ending: Compression::Zstd };
    let alias = Alias {
        nar_hash: nar.nar_hash(),
        nar_size: SMALL_LEN,
        compression: Compression::Zstd,
        file_size: SMALL_LEN,
        put_at_s: PUT_AT_S,
        bound: false,
    };
    store.keep_upload(name, alias, nar.clone()).await?;
    let mut stored = stored(number)?;
    (stored.origin, stored.upstream) = (Origin::Ours, String::new());
    let targets = vec![TARGET.to_owned()];
    let acceptance = Acceptance { stored, nar, upload: Some(name), targets };
    Ok(store.accept(acceptance, PUT_AT_S).await?)
}

/// The removal of one NAR of 8 MiB, as eviction does it, to its end.
async fn evict(store: &Store, number: u64) -> Result<()> {
    let used = store.figures().used_bytes;
    store.withdraw_nar(NarHash::from_bytes(bytes_32(number))).await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    while store.figures().used_bytes + NAR_LEN > used {
        ticks.tick().await;
    }
    Ok(store.flush().await?)
}

async fn open(disk: &Memory, gib: u64) -> Result<Store> {
    let config = Config {
        path: Some(PathBuf::from("/memory")),
        budget: Some(ByteSize((gib + 8) << 30)),
        ..Config::default()
    };
    let store = Store::start(config, Arc::new(disk.clone()), Metrics::new())?;
    match tokio::time::timeout(OPEN_WAIT_MAX, store.first_opened()).await? {
        State::Open => Ok(store),
        State::Degraded { reason, .. } => bail!("the store is degraded: {reason}"),
    }
}

/// A NAR and its narinfo, as after a miss.
async fn hold(store: &Store, number: u64) -> Result<()> {
    store.keep_narinfo(stored(number)?).await?;
    let mut writer = begin(store, number).await?;
    let piece = Bytes::from(vec![FILLER; PIECE_LEN]);
    for _ in 1..NAR_LEN / u64::try_from(PIECE_LEN)? {
        writer.append(piece.clone()).await?;
    }
    writer.finish(finished(number)).await?;
    Ok(())
}

fn finished(number: u64) -> Finished {
    Finished {
        nar_hash: NarHash::from_bytes(bytes_32(number)),
        nar_size: NAR_LEN,
        file_hash: FileHash::from_bytes(bytes_32(number)),
        origin: Origin::Upstream,
        listing: None,
    }
}

/// A NAR of which one piece is there.
async fn begin(store: &Store, number: u64) -> Result<snowberry::store::NarWriter> {
    let reservation = store.reserve(NAR_LEN).await.with_context(|| format!("room for {number}"))?;
    let mut writer = store.begin(reservation).await?;
    writer.append(Bytes::from(vec![FILLER; PIECE_LEN])).await?;
    Ok(writer)
}

fn bytes_32(number: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    let (low, high) = bytes.split_at_mut(16);
    low.copy_from_slice(&xxh3_128(&number.to_le_bytes()).to_le_bytes());
    high.copy_from_slice(&xxh3_128(&number.to_be_bytes()).to_le_bytes());
    bytes
}

fn store_path(number: u64) -> Result<StorePath> {
    let mut hash = [0; 20];
    for (to, from) in hash.iter_mut().zip(bytes_32(number)) {
        *to = from;
    }
    let hash = StorePathHash::from_bytes(hash);
    Ok(StorePath::parse(&format!("{hash}-some-package-{number}.0"))?)
}

fn stored(number: u64) -> Result<StoredNarInfo> {
    let narinfo = NarInfo {
        store_path: store_path(number)?,
        url: format!("nar/{}.nar.zst", FileHash::from_bytes(bytes_32(number)).to_nix32()),
        compression: Compression::Zstd,
        file_hash: Some(FileHash::from_bytes(bytes_32(number))),
        file_size: Some(NAR_LEN),
        nar_hash: NarHash::from_bytes(bytes_32(number)),
        nar_size: NAR_LEN,
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        ca: None,
    };
    Ok(StoredNarInfo {
        narinfo,
        upstream: "https://cache.example.org".to_owned(),
        origin: Origin::Upstream,
    })
}
