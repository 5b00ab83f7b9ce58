//! The disk fails: in mid-life, at the start, in one file. snowberry is degraded then and never off,
//! and well again without a restart.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

mod broken;
mod in_life;
#[path = "../made/mod.rs"]
mod made;
mod uploads;
#[path = "../world/mod.rs"]
mod world;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use made::{Made, MadeCache};
use world::{Client, NARINFO_LIMIT, Scripted, Settings, Snowberry, until};

/// The store is tried again with back-off; that is "well again" for people.
const WELL_AFTER: Duration = Duration::from_secs(40);

/// Narinfo and NAR as a client asks for them; `None` when either is not to be had. Whatever ends
/// cleanly is right.
async fn fetch(client: Client, made: &Made) -> Option<()> {
    let narinfo = client.get(&made.narinfo_url()).await;
    assert!(matches!(narinfo.status, 200 | 404), "narinfo {}", narinfo.status);
    assert!(narinfo.all_after <= NARINFO_LIMIT, "narinfo after {:?}", narinfo.all_after);
    // A row that turns out damaged closes the connection, maybe before the first byte.
    let answer = client.try_get(&made.nar_url()).await?;
    assert!(matches!(answer.status, 200 | 404), "NAR {}", answer.status);
    if answer.status == 200 && answer.whole {
        assert!(made.is_in(&answer.body), "a wrong NAR of {} ended cleanly", made.store_path);
        return (narinfo.status == 200).then_some(());
    }
    None
}

/// What a degraded snowberry says: it is a cache, it has nothing, and it says why.
async fn check_degraded(client: Client, made: &Made) -> String {
    let info = client.get("/nix-cache-info").await;
    assert!(info.status == 200 && info.text().contains("StoreDir: /nix/store\n"));
    let narinfo = client.get(&made.narinfo_url()).await;
    assert_eq!(narinfo.status, 404);
    assert!(narinfo.all_after <= NARINFO_LIMIT, "narinfo after {:?}", narinfo.all_after);
    assert_eq!(client.get(&made.nar_url()).await.status, 404);
    let put = client.put(&made.narinfo_url(), made.narinfo_text()).await;
    assert!(matches!(put.status, 403 | 409), "PUT {}", put.status);
    assert_eq!(client.get("/").await.status, 200);
    why(client).await.expect("the reason in the status")
}

/// Why the store is degraded, when it is.
async fn why(client: Client) -> Option<String> {
    let status = client.get("/api/status").await;
    assert_eq!(status.status, 200);
    let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
    status["store"]["degraded"].as_str().map(str::to_owned)
}

/// A stopped snowberry that holds these paths durably, and its upstream.
struct Stopped {
    snowberry: Snowberry,
    upstream: Scripted,
    _cache: MadeCache,
    paths: Vec<Made>,
}

impl Stopped {
    async fn with(paths: Vec<Made>) -> Self {
        let cache = MadeCache::of(&paths);
        let upstream = Scripted::serve(cache.root()).await;
        let settings = Settings::new().upstream(&upstream.url(), &made::public_key());
        let mut snowberry = settings.start().await;
        for made in &paths {
            fetch(snowberry.client(), made).await.expect("a path of a healthy upstream");
        }
        assert!(snowberry.stop().await.success());
        Self { snowberry, upstream, _cache: cache, paths }
    }

    fn store(&self) -> PathBuf {
        self.snowberry.state().join("store")
    }

    fn index(&self) -> PathBuf {
        self.store().join("index.redb")
    }

    fn segments(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(self.store()).unwrap().map(|entry| entry.unwrap().path());
        let segments: Vec<_> = names
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("nars-"))
            .collect();
        assert!(!segments.is_empty(), "no segment in {}", self.store().display());
        segments
    }

    /// Without its upstream, every path is served as it was held.
    async fn expect_all_held(&self) {
        self.upstream.refuse();
        for made in &self.paths {
            let again = || fetch(self.snowberry.client(), made);
            until("a held path", WELL_AFTER, again).await;
        }
    }
}

fn some_paths(name: &str) -> Vec<Made> {
    (0..8).map(|n| Made::noise(&format!("{name}-{n}"), 100_000 + n * 150_000)).collect()
}

#[tokio::test]
async fn a_disk_that_is_missing_at_the_start_is_never_begun_anew_and_taken_up_when_it_is_back() {
    let mut stopped = Stopped::with(some_paths("missing")).await;
    let (store, away) = (stopped.store(), stopped.snowberry.state().join("away"));
    fs::rename(&store, &away).unwrap();
    // As an unplugged disk leaves it: its mount point, empty.
    fs::create_dir(&store).unwrap();
    stopped.snowberry.restart().await;
    check_degraded(stopped.snowberry.client(), &stopped.paths[0]).await;
    let begun: Vec<_> = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).collect();
    let begun: Vec<_> = begun.iter().filter(|path| !path.ends_with("lock")).collect();
    assert!(begun.is_empty(), "a second store was begun: {begun:?}");
    // The lock file that may be there goes with the mount point.
    fs::remove_dir_all(&store).unwrap();
    fs::rename(&away, &store).unwrap();
    stopped.expect_all_held().await;
    assert_eq!(why(stopped.snowberry.client()).await, None);
}

#[tokio::test]
async fn a_damaged_index_is_left_alone_and_taken_up_when_it_is_restored() {
    let mut stopped = Stopped::with(some_paths("damaged")).await;
    let index = stopped.index();
    let whole = fs::read(&index).unwrap();
    let mut damaged = whole.clone();
    damaged[..4096].fill(0xAA);
    fs::write(&index, &damaged).unwrap();
    stopped.snowberry.restart().await;
    check_degraded(stopped.snowberry.client(), &stopped.paths[0]).await;
    assert!(fs::read(&index).unwrap() == damaged, "a damaged file was touched");
    fs::write(&index, &whole).unwrap();
    stopped.expect_all_held().await;
}

#[tokio::test]
async fn an_index_that_was_cut_short_is_left_alone() {
    let mut stopped = Stopped::with(some_paths("cut-short")).await;
    let index = stopped.index();
    let whole = fs::read(&index).unwrap();
    fs::write(&index, &whole[..whole.len() / 3]).unwrap();
    stopped.snowberry.restart().await;
    check_degraded(stopped.snowberry.client(), &stopped.paths[0]).await;
    assert_eq!(fs::read(&index).unwrap().len(), whole.len() / 3, "a damaged file was touched");
    fs::write(&index, &whole).unwrap();
    stopped.expect_all_held().await;
}

/// After damage to the segments: no wrong NAR, no failure, and every path comes back.
async fn check_segments(name: &str, damage: impl Fn(&PathBuf)) {
    let mut stopped = Stopped::with(some_paths(name)).await;
    stopped.segments().iter().for_each(damage);
    stopped.snowberry.restart().await;
    for made in &stopped.paths {
        // The first answers may be cut: by then it was only found out.
        until("a path of a damaged segment", WELL_AFTER, || {
            fetch(stopped.snowberry.client(), made)
        })
        .await;
    }
    assert_eq!(why(stopped.snowberry.client()).await, None, "one segment degraded everything");
    assert!(stopped.upstream.asked("/nar/") > stopped.paths.len(), "nothing was damaged");
    stopped.expect_all_held().await;
}

#[tokio::test]
async fn rows_that_rotted_are_fetched_again() {
    check_segments("rotted", |segment| {
        let file = fs::File::options().write(true).open(segment).unwrap();
        let len = file.metadata().unwrap().len();
        // One bit of rot every 64 KiB, past the pages that redb itself checks at the start.
        for at in (1 << 20..len).step_by(64 << 10) {
            file.write_all_at(&[0x5A; 8], at + 1_000).unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_segment_with_a_damaged_head_takes_only_its_own_nars_with_it() {
    check_segments("head", |segment| {
        let file = fs::File::options().write(true).open(segment).unwrap();
        file.write_all_at(&[0xAA; 4096], 0).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_segment_that_is_gone_takes_only_its_own_nars_with_it() {
    check_segments("gone", |segment| fs::remove_file(segment).unwrap()).await;
}

#[tokio::test]
async fn a_segment_that_was_cut_short_takes_only_its_own_nars_with_it() {
    check_segments("short", |segment| {
        let file = fs::File::options().write(true).open(segment).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    })
    .await;
}
