//! `kill -9` at random moments of fills and evictions: the store opens at once, and every NAR that
//! it calls held is whole (promise 4).
//!
//! `SNOWBERRY_ROUNDS` kills (20), `SNOWBERRY_SEED` replays a run.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

#[path = "made/mod.rs"]
mod made;
#[path = "world/mod.rs"]
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use made::{Dice, Made, MadeCache};
use snowberry::nix::Compression;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use world::{Scripted, Settings, Snowberry, until};

/// The store opens in under a second; the rest is the start of a process on a loaded machine.
const OPEN_LIMIT: Duration = Duration::from_millis(1_500);

/// The process lives for this long at most, once it is asked for NARs.
const LIFE_MAX_MS: usize = 1_200;

/// Clients that ask for random NARs as long as the process lives.
const CLIENTS: usize = 4;

/// Asks and lets go whatever comes, also the end of the process in the middle.
async fn ask(address: SocketAddr, url: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {url} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map(drop)
}

fn clients(address: SocketAddr, paths: &Arc<Vec<Made>>, dice: &mut Dice) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (paths, mut dice) = (Arc::clone(paths), Dice::of(&dice.roll().to_string()));
        clients.spawn(async move {
            loop {
                let made = &paths[dice.below(paths.len())];
                let asked = async {
                    ask(address, &made.narinfo_url()).await?;
                    ask(address, &made.nar_url()).await
                };
                if asked.await.is_err() {
                    return;
                }
            }
        });
    }
    clients
}

/// Every NAR that a HEAD calls whole is whole, with no upstream to mend it. Returns how many.
async fn check_held(snowberry: &Snowberry, paths: &[Made], round: &str) -> usize {
    let client = snowberry.client();
    let mut held = 0;
    for made in paths {
        let head = client.head(&made.nar_url()).await;
        if head.status == 404 {
            continue;
        }
        assert_eq!(head.status, 200, "{round}");
        let answer = client.get(&made.nar_url()).await;
        let whole = answer.status == 200 && answer.whole && made.is_in(&answer.body);
        assert!(whole, "{round}: {} is called held and is torn", made.store_path);
        assert_eq!(head.header("etag"), answer.header("etag"), "{round}");
        held += 1;
    }
    held
}

/// From the start of the process to a store that is open.
async fn opened(snowberry: &mut Snowberry) -> Duration {
    let started = Instant::now();
    snowberry.restart().await;
    until("an open store", Duration::from_secs(20), async || {
        let store = snowberry.status().await["store"].clone();
        let is_open = store.get("degraded").is_none() && store["budget_bytes"] != 0;
        is_open.then_some(())
    })
    .await;
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_called_held_after_a_kill_is_whole() {
    let number = |name, otherwise| {
        std::env::var(name).map_or(otherwise, |text| text.parse::<u64>().unwrap())
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = number("SNOWBERRY_SEED", now.as_secs());
    let rounds = number("SNOWBERRY_ROUNDS", 20);
    eprintln!("SNOWBERRY_SEED={seed} SNOWBERRY_ROUNDS={rounds}");
    let mut dice = Dice::of(&seed.to_string());
    let codecs = [Compression::Xz, Compression::Zstd, Compression::None];
    let paths: Vec<_> = (0..60)
        .map(|n| {
            let len = [1_000, 50_000, 260_000, 900_000, 3_000_000][dice.below(5)];
            Made::mixed(&format!("crash-{n}"), len).packed(codecs[n % 3])
        })
        .collect();
    let cache = MadeCache::of(&paths);
    let upstream = Scripted::serve(cache.root()).await;
    let settings = Settings::new()
        .upstream(&upstream.url(), &made::public_key())
        .set("store.budget=\"16 MiB\"")
        .environment("SNOWBERRY_LOG", "info");
    let mut snowberry = settings.start().await;
    // A full and durable store to begin with, so that each life evicts.
    for made in &paths {
        ask(snowberry.address, &made.narinfo_url()).await.unwrap();
        ask(snowberry.address, &made.nar_url()).await.unwrap();
    }
    assert!(snowberry.stop().await.success());
    snowberry.restart().await;
    let paths = Arc::new(paths);
    let (mut held, mut slowest) = (0, Duration::ZERO);
    for round in 0..rounds {
        let name = format!("SNOWBERRY_SEED={seed}, round {round}");
        let mut asking = clients(snowberry.address, &paths, &mut dice);
        let life = Duration::from_millis(u64::try_from(dice.below(LIFE_MAX_MS)).unwrap());
        let mut until_the_end = tokio::time::interval(life.max(Duration::from_millis(1)));
        until_the_end.tick().await;
        until_the_end.tick().await;
        snowberry.kill();
        asking.shutdown().await;
        upstream.refuse();
        slowest = slowest.max(opened(&mut snowberry).await);
        held += check_held(&snowberry, &paths, &name).await;
        upstream.heal();
    }
    eprintln!("{held} NARs held after {rounds} kills, the slowest start took {slowest:?}");
    assert!(held > 0, "nothing was ever held after a kill: this test has tested nothing");
    assert!(slowest < OPEN_LIMIT, "a start took {slowest:?}");
}
