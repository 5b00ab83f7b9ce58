//! `kill -9` at random moments of accepting and carrying: in the end all that was acknowledged is at
//! both targets, whole, and at no moment is there a narinfo without its NAR. The moments come from a
//! seed: `SNOWBERRY_TEST_SEED`, and `SNOWBERRY_KILL_ROUNDS` for more rounds than the usual 30.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops and says what it saw"
)]

mod made;
mod world;

#[path = "p_drain/kit.rs"]
mod kit;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kit::{House, nar_key, narinfo_key, target};
use made::{Dice, Made};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use world::Bucket;
use world::closure::Narinfo;

/// What the child needs to know: its folder and its targets, a line each. Unset in the parent.
const CHILD: &str = "SNOWBERRY_KILL_CHILD";
/// The latest moment at which a round is killed, from its first acknowledged path on.
const ROUND_MS_MAX: usize = 700;
/// Paths that are accepted at a time, so that there is always something to carry.
const AT_ONCE: usize = 6;
/// Bytes a second that go up before the kill: less than is accepted, so that kills hit what is
/// under way.
const LINE: u64 = 300_000;
/// From the start of a child to its first acknowledged path.
const START_LIMIT: Duration = Duration::from_mins(1);
/// For all that is left at the end.
const DRAIN_LIMIT: Duration = Duration::from_mins(3);
/// Lines on their way from the child: as many as it can say before it is heard.
const LINES: usize = 4096;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

/// The nth path of a round: some refer to those before, each tenth has a NAR of many rows.
fn path(round: usize, n: usize) -> Made {
    let name = |n: usize| format!("killed-{round}-{n}");
    let len = |n: usize| if n % 10 == 3 { 900_000 } else { 1_000 + n % 7 * 3_000 };
    let made = Made::mixed(&name(n), len(n));
    let below: Vec<_> = [1, 2, 5].iter().filter_map(|back| n.checked_sub(*back)).collect();
    let below: Vec<_> = below.into_iter().map(|n| Made::mixed(&name(n), len(n))).collect();
    made.referring_to(&below.iter().collect::<Vec<_>>())
}

/// The process that is killed: carries what is queued, accepts path after path and says so.
#[tokio::test(flavor = "multi_thread")]
async fn the_process_that_is_killed() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let told: Vec<_> = told.lines().collect();
    let [folder, round, targets @ ..] = &told[..] else { panic!("{told:?}") };
    let targets: Vec<_> = targets.iter().map(|url| target(url, "")).collect();
    // The parent's folder: it is never removed by us.
    let folder = Arc::new(TempDir::new_in(folder).unwrap());
    let store = folder.path().parent().unwrap().to_path_buf();
    let mut house = House::at(&store, folder, &targets, Some(LINE)).await;
    house.run();
    let round = round.parse().unwrap();
    let house = &house;
    for n in (0..).step_by(AT_ONCE) {
        let some: Vec<_> = (n..n + AT_ONCE).map(|n| (n, path(round, n))).collect();
        let accepted = some.iter().map(|(n, made)| async move {
            house.accept(made).await;
            println!("accepted {n}");
        });
        futures_util::future::join_all(accepted).await;
        house.push.retry();
    }
}

/// A child of this very program.
fn begin(folder: &Path, round: usize, targets: &[String]) -> (Child, mpsc::Receiver<usize>) {
    let told = format!("{}\n{round}\n{}", folder.display(), targets.join("\n"));
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "the_process_that_is_killed", "--nocapture"]).env(CHILD, told);
    child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = child.spawn().unwrap();
    let (say, said) = mpsc::channel(LINES);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    std::thread::spawn(move || {
        for line in lines {
            let Ok(line) = line else { return };
            if let Some(n) = line.strip_prefix("accepted ")
                && say.blocking_send(n.parse().unwrap()).is_err()
            {
                return;
            }
        }
    });
    (child, said)
}

/// No narinfo of the folder is without its NAR, which has its length.
fn expect_order(folder: &Path, when: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|it| it == "narinfo") {
            let narinfo = Narinfo::parse(&fs::read(&file).unwrap());
            let nar = fs::metadata(folder.join(narinfo.field("URL")));
            let nar = nar.unwrap_or_else(|error| panic!("{when}: {} {error}", file.display()));
            assert_eq!(nar.len().to_string(), narinfo.field("FileSize"), "{when}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_at_each_target_in_the_end_however_often_it_is_killed() {
    let seed = number("SNOWBERRY_TEST_SEED", 42);
    let rounds = number("SNOWBERRY_KILL_ROUNDS", 30);
    let mut dice = Dice::of(&format!("kill {seed}"));
    let (home, stick) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(stick.path().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    let bucket = Bucket::start().await;
    let targets = [format!("file://{}", stick.path().display()), bucket.url()];
    let mut acknowledged = BTreeSet::new();
    let mut killed_at_work = 0;
    for round in 0..rounds {
        let (mut child, mut said) = begin(home.path(), round, &targets);
        let first = timeout(START_LIMIT, said.recv()).await;
        let moment = Duration::from_millis(dice.below(ROUND_MS_MAX).try_into().unwrap());
        drop(timeout(moment, std::future::pending::<()>()).await);
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(first.unwrap().map(|n| (round, n)));
        while let Some(n) = said.recv().await {
            acknowledged.insert((round, n));
        }
        let there = bucket.keys().iter().filter(|key| key.ends_with(".narinfo")).count();
        killed_at_work += usize::from(there < acknowledged.len());
        expect_order(stick.path(), &format!("seed {seed}, round {round}"));
        bucket.expect_order();
    }
    println!(
        "{rounds} rounds, {} acknowledged, {killed_at_work} killed while something waited",
        acknowledged.len()
    );
    assert!(acknowledged.len() > rounds, "hardly anything was acknowledged");
    assert!(killed_at_work > rounds / 4, "nothing waited at the kills: these rounds show nothing");

    let folder = Arc::new(TempDir::new().unwrap());
    let configs: Vec<_> = targets.iter().map(|url| target(url, "")).collect();
    let mut house = House::at(home.path(), folder, &configs, None).await;
    house.run();
    for target in 0..2 {
        world::until("an empty queue", DRAIN_LIMIT, || async {
            let shown = house.status(target);
            assert_eq!((shown.lost, shown.parked), (0, 0), "{shown:?}");
            (shown.waiting == 0).then_some(())
        })
        .await;
    }
    for (round, n) in &acknowledged {
        let made = path(*round, *n);
        let of_bucket = |key: String| bucket.object(&key);
        let of_stick = |key: String| fs::read(stick.path().join(key)).ok();
        for find in [&of_bucket as &dyn Fn(String) -> Option<Vec<u8>>, &of_stick] {
            let when = format!("seed {seed}, path {n} of round {round}");
            assert!(find(narinfo_key(&made)).is_some(), "{when} was acknowledged");
            let nar = find(nar_key(&made)).unwrap_or_else(|| panic!("{when} has no NAR"));
            assert!(made.is_in(&nar), "{when} is another NAR");
        }
    }
    bucket.expect_order();
    expect_order(stick.path(), "in the end");
    // A kill between a put and its strike makes it be looked at again, not be sent again: only what
    // was under way at a kill may come twice.
    assert!(bucket.put_twice().len() <= rounds * 4 * 2, "{:?}", bucket.put_twice());
}
