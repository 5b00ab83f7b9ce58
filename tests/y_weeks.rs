//! Two weeks of a house, as fast as they go: three machines that follow a channel, one of them away
//! for days, builds that are pushed, a day without the upstream, and less room than all of it
//! takes. What each day cost is printed as the table of docs/benchmarks.md.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    reason = "a test stops at what it did not expect"
)]

mod made;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Method;
use made::{Dice, Made, MadeCache};
use snowberry::nix::{NarInfo, StoreDir};
use snowberry::push::tokens::Tokens;
use tempfile::TempDir;
use world::{Settings, Snowberry, until};

const DAYS: usize = 14;

/// Packages of the channel.
const PACKAGES: usize = 120;

/// Days on which most of the channel was built anew.
const REBUILDS: [usize; 2] = [3, 10];

/// The day on which the upstream is away.
const OFFLINE: usize = 8;

/// Less than what comes in the two weeks: something has to go.
const BUDGET_BYTES: u64 = 48 << 20;

/// A queue that is not empty after so long does not drain.
const LIMIT: Duration = Duration::from_mins(1);

/// The channel: which build of each package is the one of today.
struct Channel {
    dice: Dice,
    packages: Vec<Made>,
    cache: MadeCache,
}

impl Channel {
    fn new() -> Self {
        let mut dice = Dice::of("two weeks");
        let packages: Vec<Made> = (0..PACKAGES).map(|n| package(&mut dice, n, 0)).collect();
        let cache = MadeCache::of(&packages);
        Self { dice, packages, cache }
    }

    /// A day passes: some packages change, on some days most of them.
    fn moves_on(&mut self, day: usize) {
        let of_ten = if REBUILDS.contains(&day) { 6 } else { 1 };
        for n in 0..PACKAGES {
            if self.dice.below(10) < of_ten {
                self.packages[n] = package(&mut self.dice, n, day);
                self.cache.add(&self.packages[n]);
            }
        }
    }
}

fn package(dice: &mut Dice, n: usize, day: usize) -> Made {
    let len = 20_000 + dice.below(400_000);
    Made::noise(&format!("package-{n}-{day}"), len)
}

/// A machine of the house.
struct Machine {
    name: &'static str,
    /// So many of ten packages.
    of_ten: usize,
    away: std::ops::Range<usize>,
    has: BTreeSet<String>,
}

impl Machine {
    fn new(name: &'static str, of_ten: usize, away: std::ops::Range<usize>) -> Self {
        Self { name, of_ten, away, has: BTreeSet::new() }
    }

    /// Fetches what it lacks of these; says how many it could not have.
    async fn updates(&mut self, snowberry: &Snowberry, wanted: &[Made]) -> usize {
        let mut elsewhere = 0;
        for made in wanted {
            if self.has.contains(made.store_path.base_name()) {
                continue;
            }
            let Some(narinfo) = snowberry.parsed_narinfo(&made.narinfo_url()).await else {
                elsewhere += 1;
                continue;
            };
            assert_eq!(narinfo.nar_hash, made.nar_hash(), "{}: {}", self.name, made.store_path);
            let nar = snowberry.client().get(&format!("/{}", narinfo.url)).await;
            assert!([200, 404].contains(&nar.status), "{}: {nar:?}", made.store_path);
            if nar.status == 404 {
                elsewhere += 1;
                continue;
            }
            assert!(nar.whole && made.is_in(&nar.body), "{}: {}", self.name, made.store_path);
            self.has.insert(made.store_path.base_name().to_owned());
        }
        elsewhere
    }
}

/// What has been counted until now.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    hits: u64,
    misses: u64,
    served: u64,
    fetched: u64,
    written: u64,
    used: u64,
    resident: u64,
    files: u64,
}

impl Counted {
    async fn now(snowberry: &Snowberry) -> Self {
        let status = snowberry.status().await;
        let figure = |group: &str, name: &str| status[group][name].as_u64().unwrap();
        Self {
            hits: figure("traffic", "hits"),
            misses: figure("traffic", "misses"),
            served: figure("traffic", "served_bytes"),
            fetched: figure("traffic", "fetched_bytes"),
            written: figure("store", "written_bytes"),
            used: figure("store", "used_bytes"),
            resident: resident_bytes(snowberry.pid()),
            files: size_of(&snowberry.state().join("store")),
        }
    }
}

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn size_of(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    files.sum()
}

async fn push(snowberry: &Snowberry, token: &str, made: &Made) {
    let basic = format!("Basic {}", STANDARD.encode(format!("any:{token}")));
    let headers = [("authorization", basic.as_str())];
    let client = snowberry.client();
    let nar = format!("/push/{}", made.file_url());
    let nar = client.ask(Method::PUT, &nar, &headers, made.file.clone().into()).await;
    assert_eq!(nar.status, 200, "{nar:?}");
    let text = NarInfo { signatures: Vec::new(), ..made.narinfo() }.print(&StoreDir::default());
    let narinfo = format!("/push{}", made.narinfo_url());
    let narinfo = client.ask(Method::PUT, &narinfo, &headers, text.into()).await;
    assert_eq!(narinfo.status, 200, "{narinfo:?}");
}

async fn drained(snowberry: &Snowberry) {
    until("an empty queue", LIMIT, || async {
        (snowberry.figure("queue", "waiting").await == 0).then_some(())
    })
    .await;
}

/// Waits until the cache has found out that its upstreams are there again: its breaker rests for
/// seconds, not for days.
async fn noticed(snowberry: &Snowberry) {
    until("upstreams that are up", LIMIT, || async {
        let status = snowberry.status().await;
        let upstreams = status["upstreams"].as_array().unwrap();
        if upstreams.iter().all(|upstream| upstream["state"] == "up") {
            return Some(());
        }
        snowberry.narinfo(&"0".repeat(32)).await;
        None
    })
    .await;
}

/// Prints a line of the table; sizes in MiB.
fn tell(day: usize, before: Counted, now: Counted, elsewhere: usize) {
    let mib = |bytes: u64| format!("{}.{}", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20);
    let (hits, misses) = (now.hits - before.hits, now.misses - before.misses);
    println!(
        "| {day} | {hits} | {misses} | {} % | {elsewhere} | {} | {} | {} | {} | {} | {} |",
        100 * hits / (hits + misses).max(1),
        mib(now.served - before.served),
        mib(now.fetched - before.fetched),
        mib(now.written - before.written),
        mib(now.used),
        mib(now.files),
        mib(now.resident),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_weeks_of_a_house_neither_grow_nor_wear() {
    let mut channel = Channel::new();
    let bucket = TempDir::new().unwrap();
    fs::write(bucket.path().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    let target = format!(
        "{{url=\"file://{}\", unsigned=true, push=true}}, {{url={:?}, trusted-public-keys=[{:?}]}}",
        bucket.path().display(),
        channel.cache.file_url(),
        made::public_key()
    );
    let settings = Settings::new()
        .set(&format!("upstream=[{target}]"))
        .set(&format!("store.budget=\"{} MiB\"", BUDGET_BYTES >> 20));
    let snowberry = settings.start().await;
    snowberry.ready().await;
    let tokens = Tokens::new(snowberry.state().join("tokens"));
    let token = tokens.add("desktop", [7; 20], 0).unwrap();
    let mut machines = [
        Machine::new("desktop", 10, 0..0),
        Machine::new("laptop", 7, 5..8),
        Machine::new("server", 4, 0..0),
    ];
    let mut builds: Vec<Made> = Vec::new();
    let mut days: BTreeMap<usize, Counted> = BTreeMap::new();
    let (mut before, mut elsewhere_in_all) = (Counted::default(), 0);
    println!(
        "| day | hits | misses | hit rate | elsewhere | served | fetched | written | used | files | resident |"
    );
    for day in 0..DAYS {
        if day > 0 {
            channel.moves_on(day);
        }
        let away = channel.cache.root().with_extension("away");
        if day == OFFLINE {
            fs::rename(channel.cache.root(), &away).unwrap();
        }
        let mut elsewhere = 0;
        for machine in &mut machines {
            if machine.away.contains(&day) {
                continue;
            }
            let count = PACKAGES * machine.of_ten / 10;
            elsewhere += machine.updates(&snowberry, &channel.packages[..count]).await;
            // What the others built is had from here, whatever the upstream does.
            assert_eq!(machine.updates(&snowberry, &builds).await, 0, "a build of the house");
        }
        for n in 0..3 {
            let made = Made::mixed(&format!("built-{day}-{n}"), 150_000);
            push(&snowberry, &token, &made).await;
            builds.push(made);
        }
        drained(&snowberry).await;
        if day == OFFLINE {
            fs::rename(&away, channel.cache.root()).unwrap();
            noticed(&snowberry).await;
        }
        let now = Counted::now(&snowberry).await;
        tell(day, before, now, elsewhere);
        assert!(now.used <= BUDGET_BYTES, "day {day}: {now:?}");
        elsewhere_in_all += if day == OFFLINE { 0 } else { elsewhere };
        days.insert(day, now);
        before = now;
    }
    let (early, late) = (days[&(OFFLINE + 1)], days[&(DAYS - 1)]);
    println!("{early:?}\n{late:?}");
    assert_eq!(elsewhere_in_all, 0, "something could not be had while the upstream was there");
    assert!(late.hits > late.misses, "{late:?}");
    // Memory and files are those of the work, not of its duration.
    assert!(late.resident < early.resident + (8 << 20), "{early:?} {late:?}");
    assert!(late.files < early.files + (4 << 20), "{early:?} {late:?}");
    // A segment's file grows by doubling.
    assert!(late.files < 2 * BUDGET_BYTES, "{late:?}");
}
