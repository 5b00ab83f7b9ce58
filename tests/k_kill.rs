//! `kill -9` at random moments of fills and evictions: the store opens again at once, and every NAR
//! that it calls held is whole. The moments come from a seed, so that a failure can be replayed:
//! `SNOWBERRY_TEST_SEED`, and `SNOWBERRY_TEST_ROUNDS` for more rounds than the usual 20.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test stops and says what it saw")]

mod world;

use std::env;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;
use world::closure::{Narinfo, hash_of};
use world::{Client, Closure, Scripted, Settings, Snowberry};

/// "Under a second" of promise 4, with what a debug build and a loaded machine add.
const OPEN_LIMIT: Duration = Duration::from_secs(4);
/// The latest moment at which a round is killed.
const ROUND_MS_MAX: u64 = 900;
/// How many clients ask at once.
const CLIENTS: usize = 6;

/// The numbers of a round, from a seed (`SplitMix64`).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_store_opens_at_once_and_holds_only_whole_nars() {
    let Some(closure) = Closure::get() else { return };
    let closure = Arc::new(closure);
    let seed = number("SNOWBERRY_TEST_SEED", 42);
    let rounds = number("SNOWBERRY_TEST_ROUNDS", 20);
    let mut dice = Dice(seed);
    let upstream = Scripted::serve(closure.cache("xz")).await;
    // Half of what the closure takes, so that fills evict.
    let settings = Settings::new()
        .upstream(&upstream.url(), &closure.public_key)
        .set("store.budget=\"16 MiB\"");
    let mut snowberry = settings.start().await;
    let (mut held_in_all, mut slowest) = (0, Duration::ZERO);
    for round in 0..rounds {
        let moment = Duration::from_millis(20 + dice.below(ROUND_MS_MAX));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let from = dice.below(closure.paths.len() as u64);
            let client = snowberry.client();
            clients.spawn(ask_around(client, Arc::clone(&closure), usize::try_from(from).unwrap()));
        }
        let killed = timeout(moment, clients.join_next()).await;
        assert!(killed.is_err(), "seed {seed}, round {round}: a client ended by itself");
        // What is not yet durable is durable soon after all is quiet: some rounds die around
        // then, some in full flight, and some end in order so that there is something to evict.
        let quiet = Duration::from_millis(dice.below(ROUND_MS_MAX * 2));
        match round % 4 {
            1 => {
                clients.shutdown().await;
                drop(timeout(quiet, std::future::pending::<()>()).await);
                snowberry.kill();
            }
            3 => {
                clients.shutdown().await;
                assert!(snowberry.stop().await.success(), "seed {seed}, round {round}");
            }
            _ => snowberry.kill(),
        }
        clients.shutdown().await;

        upstream.refuse();
        let started = Instant::now();
        snowberry.restart().await;
        slowest = slowest.max(started.elapsed());
        let held = expect_whole(&snowberry, &closure, &format!("seed {seed}, round {round}")).await;
        held_in_all += held;
        upstream.heal();
    }
    println!("{rounds} rounds, {held_in_all} NARs held after them, slowest start {slowest:?}");
    assert!(slowest < OPEN_LIMIT, "a start took {slowest:?}");
    assert!(held_in_all > 0, "nothing was ever held: these rounds show nothing");
}

/// Fetches path after path for ever, from one place of the closure on.
async fn ask_around(client: Client, closure: Arc<Closure>, from: usize) {
    for path in closure.paths.iter().cycle().skip(from) {
        let narinfo = client.try_get(&format!("/{}.narinfo", hash_of(path))).await;
        let Some(narinfo) = narinfo.filter(|answer| answer.status == 200 && answer.whole) else {
            tokio::task::yield_now().await;
            continue;
        };
        let url = Narinfo::parse(&narinfo.body).field("URL").to_owned();
        drop(client.try_get(&format!("/{url}")).await);
    }
}

/// With no upstream: how many NARs are held, each of which must be whole.
async fn expect_whole(snowberry: &Snowberry, closure: &Closure, when: &str) -> usize {
    let mut held = 0;
    for path in &closure.paths {
        let narinfo = closure.narinfo("xz", hash_of(path));
        let nar_hash = narinfo.field("NarHash").strip_prefix("sha256:").unwrap();
        let url = format!("/nar/{nar_hash}{}.nar.zst", hash_of(path));
        if snowberry.client().head(&url).await.status != 200 {
            continue;
        }
        held += 1;
        let answer = snowberry.client().get(&url).await;
        assert!(answer.status == 200 && answer.whole, "{when}: {path} is held and {answer:?}");
        let unpacked = zstd::decode_all(&answer.body[..]).unwrap();
        assert!(unpacked == closure.nar(path), "{when}: {path} is held with other bytes");
    }
    held
}
