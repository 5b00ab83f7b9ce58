//! The disk fails or stands still while the daemon runs, in this process, on a disk with a switch.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snowberry::config::{self, Surroundings};
use snowberry::daemon::{self, Given};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::broken::{BrokenDisk, Call, How, Switch};
use super::made::{self, Made, MadeCache};
use super::world::{Client, NARINFO_LIMIT, Scripted, until};
use super::{WELL_AFTER, check_degraded, fetch, why};

/// A daemon in this process, on a disk with a switch.
pub(super) struct Daemon {
    pub(super) client: Client,
    pub(super) switch: Switch,
    upstream: Scripted,
    stop: CancellationToken,
    running: JoinSet<()>,
    _cache: MadeCache,
    pub(super) folder: TempDir,
}

impl Daemon {
    pub(super) async fn start(paths: &[Made]) -> Self {
        let cache = MadeCache::of(paths);
        let upstream = Scripted::serve(cache.root()).await;
        let folder = TempDir::new().unwrap();
        let store = folder.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let sets = [
            "listen=[\"127.0.0.1:0\"]".to_owned(),
            format!("state-dir={:?}", folder.path().join("state").display().to_string()),
            format!("store.path={:?}", store.display().to_string()),
            format!(
                "upstream=[{{url={:?}, trusted-public-keys=[{:?}]}}]",
                upstream.url(),
                made::public_key()
            ),
        ];
        let config = config::load(None, &sets, &Surroundings::default()).unwrap();
        let switch = Switch::default();
        let disk = Arc::new(BrokenDisk::new(store, &switch));
        let given = Given { disk: Some(disk), sockets: Vec::new(), ..Given::default() };
        let stop = CancellationToken::new();
        let (tell, told) = oneshot::channel::<SocketAddr>();
        let mut running = JoinSet::new();
        let until_stopped = stop.clone();
        running.spawn(async move {
            let listening = |addresses: Vec<SocketAddr>| tell.send(addresses[0]).unwrap();
            daemon::run(config, given, until_stopped, listening).await.unwrap();
        });
        let client = Client(told.await.expect("a daemon that listens"));
        Self { client, switch, upstream, stop, running, _cache: cache, folder }
    }

    /// It ends in order, whatever was before.
    pub(super) async fn stop(mut self) {
        self.switch.mend();
        self.stop.cancel();
        self.running.join_next().await.unwrap().unwrap();
    }
}

/// NARs of a few rows each, so that writing them cannot stay in a buffer.
pub(super) fn paths(name: &str) -> Vec<Made> {
    (0..8).map(|n| Made::noise(&format!("{name}-{n}"), 900_000)).collect()
}

/// EIO from one kind of call: never off, degraded where the index is lost, well again by itself.
async fn check_fails(call: Call) {
    let paths = paths(&format!("eio-{call:?}"));
    let daemon = Daemon::start(&paths).await;
    let [held, rest @ ..] = paths.as_slice() else { panic!("no paths") };
    until("the first path", WELL_AFTER, || fetch(daemon.client, held)).await;
    daemon.switch.break_it(call, How::Fails);
    let started = Instant::now();
    let turn = Cell::new(0);
    // Whatever is asked meanwhile is answered rightly and in time, or is absent.
    until("a call that failed, and the daemon to see it", WELL_AFTER, async || {
        fetch(daemon.client, &rest[turn.replace(turn.get() + 1) % rest.len()]).await;
        fetch(daemon.client, held).await;
        let seen =
            why(daemon.client).await.is_some() || started.elapsed() > Duration::from_secs(20);
        (daemon.switch.hits() > 0 && seen).then_some(())
    })
    .await;
    if why(daemon.client).await.is_some() {
        check_degraded(daemon.client, held).await;
    }
    daemon.switch.mend();
    for made in &paths {
        until("a path after the disk is mended", WELL_AFTER, || fetch(daemon.client, made)).await;
    }
    assert_eq!(why(daemon.client).await, None);
    daemon.upstream.refuse();
    for made in &paths {
        let what = "a path that is held again";
        until(what, WELL_AFTER, || fetch(daemon.client, made)).await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_fail_are_survived() {
    check_fails(Call::Read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_fail_are_survived() {
    check_fails(Call::Write).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn syncs_that_fail_are_survived() {
    check_fails(Call::Sync).await;
}

/// A card that does its own housekeeping stands still for tens of seconds; this is longer.
const STILL: Duration = Duration::from_mins(1);

/// In which something must have met the call that does not return.
const STILL_MAX: Duration = Duration::from_secs(90);

/// One kind of call does not return: every narinfo is answered in time all the same, and all is
/// well once it does.
async fn check_stuck(call: Call) {
    let paths = paths(&format!("stuck-{call:?}"));
    let daemon = Daemon::start(&paths).await;
    let [held, filling, rest @ ..] = paths.as_slice() else { panic!("no paths") };
    until("the first path", WELL_AFTER, || fetch(daemon.client, held)).await;
    daemon.switch.break_it(call, How::Stuck);
    let client = daemon.client;
    let (held_url, filling_url) = (held.nar_url(), filling.nar_url());
    let mut waiting = JoinSet::new();
    for url in [held_url, filling_url] {
        waiting.spawn(async move { client.get(&url).await.status });
    }
    let started = Instant::now();
    while started.elapsed() < STILL || daemon.switch.hits() == 0 {
        for made in [held, filling].into_iter().chain(rest) {
            let answer = client.get(&made.narinfo_url()).await;
            assert!(matches!(answer.status, 200 | 404), "{call:?}: narinfo {}", answer.status);
            assert!(answer.all_after <= NARINFO_LIMIT, "{call:?}: after {:?}", answer.all_after);
        }
        let info = client.get("/nix-cache-info").await;
        assert!(info.status == 200 && info.all_after < NARINFO_LIMIT, "{:?}", info.all_after);
        let status = client.get("/api/status").await;
        assert!(status.status == 200 && status.all_after < NARINFO_LIMIT, "{:?}", status.all_after);
        assert!(started.elapsed() < STILL_MAX, "{call:?}: nothing was ever stuck");
    }
    daemon.switch.mend();
    while let Some(status) = waiting.join_next().await {
        assert!(matches!(status.unwrap(), 200 | 404));
    }
    for made in &paths {
        until("a path after the disk moved on", WELL_AFTER, || fetch(client, made)).await;
    }
    daemon.stop().await;
}

/// Each on a runtime of its own, side by side: they only wait.
#[test]
fn a_disk_that_stands_still_holds_no_narinfo_up() {
    let run = |call| {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(check_stuck(call));
    };
    let threads = [Call::Read, Call::Write, Call::Sync].map(|call| {
        let named = std::thread::Builder::new().name(format!("{call:?}"));
        named.spawn(move || run(call)).unwrap()
    });
    let ended = threads.map(std::thread::JoinHandle::join);
    assert!(ended.iter().all(Result::is_ok), "what stood still is said above");
}
