//! `kill -9` of the built daemon at random moments of uploads over HTTP and of carrying them to a
//! folder. The moments come from a seed: `SNOWBERRY_TEST_SEED`, and `SNOWBERRY_KILL_ROUNDS` for
//! more rounds than the usual 10.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use snowberry::nix::{Compression, NarInfo, StoreDir};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::made::{self, Dice, Made};
use crate::world::closure::Narinfo;
use crate::world::{Settings, until};
use crate::{LIMIT, Lab, Uploader};

/// The latest moment at which a round is killed, from its first acknowledged path on.
const ROUND_MS_MAX: usize = 900;
/// Clients that upload at a time.
const UPLOADERS: usize = 4;
/// What goes up a second before a kill: less than comes, so that kills hit what is under way.
const LINE: &str = "push.limit=\"300 KiB\"";
/// Acknowledgements that are not heard yet: more than a round can have.
const HEARD_MAX: usize = 4096;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

/// The nth path of a round: it refers to some before it, each seventh has a NAR of many rows.
fn path(round: usize, n: usize) -> Made {
    let name = |n: usize| format!("whole-{round}-{n}");
    let len = if n % 7 == 3 { 400_000 } else { 1_000 + n % 5 * 3_000 };
    let below = [1, 2, 5].iter().filter_map(|back| n.checked_sub(*back));
    let below: Vec<_> = below.map(|n| Made::noise(&name(n), 10)).collect();
    let codec = [Compression::Zstd, Compression::Xz, Compression::None][n % 3];
    Made::mixed(&name(n), len).packed(codec).referring_to(&below.iter().collect::<Vec<_>>())
}

/// Uploads path after path until nobody answers any more; says which were acknowledged.
async fn upload(uploader: Uploader, round: usize, first: usize, said: mpsc::Sender<usize>) {
    let headers = [("authorization", uploader.authorization.as_str())];
    for n in (first..).step_by(UPLOADERS) {
        let made = path(round, n);
        let narinfo = NarInfo { signatures: Vec::new(), ..made.narinfo() };
        let narinfo = narinfo.print(&StoreDir::default());
        let nar_url = format!("/push/{}", made.file_url());
        for (url, body) in
            [(nar_url, made.file.clone()), (format!("/push{}", made.narinfo_url()), narinfo.into())]
        {
            let answer = uploader.client.try_put(&url, &headers, body).await;
            let Some(answer) = answer.filter(|answer| answer.whole) else { return };
            assert_eq!(answer.status, 200, "{}: {}", made.store_path, answer.text());
        }
        said.try_send(n).unwrap();
    }
}

/// No narinfo of the folder is without its NAR, which has its length. Says how many there are.
fn expect_order(folder: &Path, when: &str) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let narinfos = entries.filter(|file| file.extension().is_some_and(|it| it == "narinfo"));
    let mut count = 0;
    for file in narinfos {
        let narinfo = Narinfo::parse(&fs::read(&file).unwrap());
        let nar = fs::metadata(folder.join(narinfo.field("URL")));
        let nar = nar.unwrap_or_else(|error| panic!("{when}: {} {error}", file.display()));
        assert_eq!(nar.len().to_string(), narinfo.field("FileSize"), "{when}");
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_200_is_at_the_target_in_the_end_however_often_it_is_killed() {
    let seed = number("SNOWBERRY_TEST_SEED", 42);
    let rounds = number("SNOWBERRY_KILL_ROUNDS", 10);
    let mut dice = Dice::of(&format!("whole {seed}"));
    let stick = TempDir::new().unwrap();
    fs::write(stick.path().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    let target = format!("file://{}", stick.path().display());
    let settings = || Settings::new().upstream_with(&target, &made::public_key(), "push=true");
    let mut lab = Lab::with(settings().set(LINE)).await;
    let mut acknowledged = BTreeSet::new();
    let mut killed_at_work = 0;
    for round in 0..rounds {
        let (say, mut said) = mpsc::channel(HEARD_MAX);
        let mut uploads = JoinSet::new();
        for first in 0..UPLOADERS {
            uploads.spawn(upload(lab.uploader(), round, first, say.clone()));
        }
        drop(say);
        let first = timeout(LIMIT, said.recv()).await.unwrap().expect("a path that is taken");
        acknowledged.insert((round, first));
        let moment = Duration::from_millis(dice.below(ROUND_MS_MAX).try_into().unwrap());
        drop(timeout(moment, std::future::pending::<()>()).await);
        lab.snowberry.kill();
        while let Some(n) = said.recv().await {
            acknowledged.insert((round, n));
        }
        while let Some(upload) = uploads.join_next().await {
            upload.expect("nothing is refused");
        }
        let there = expect_order(stick.path(), &format!("seed {seed}, round {round}"));
        killed_at_work += usize::from(there < acknowledged.len());
        let last = round + 1 == rounds;
        let next = if last { settings() } else { settings().set(LINE) };
        lab.snowberry.restart_with(next).await;
        until("an open store", LIMIT, || async {
            let status = lab.snowberry.status().await;
            status["store"]["degraded"].is_null().then_some(())
        })
        .await;
    }
    println!(
        "{rounds} rounds, {} acknowledged, {killed_at_work} killed while something waited",
        acknowledged.len()
    );
    assert!(acknowledged.len() > rounds, "hardly anything was acknowledged");
    assert!(killed_at_work > rounds / 4, "nothing waited at the kills: these rounds show nothing");

    lab.drained().await;
    let target = &lab.snowberry.status().await["queue"]["targets"][0];
    assert_eq!((&target["lost"], &target["parked"]), (&0.into(), &0.into()), "{target}");
    for (round, n) in &acknowledged {
        let made = path(*round, *n);
        let when = format!("seed {seed}, path {n} of round {round}");
        let narinfo = fs::read(stick.path().join(&made.narinfo_url()[1..]));
        let narinfo = Narinfo::parse(&narinfo.unwrap_or_else(|_| panic!("{when} is not there")));
        let nar = fs::read(stick.path().join(narinfo.field("URL"))).unwrap();
        assert!(made.is_in(&nar), "{when} is another NAR");
        assert_eq!(narinfo.field("NarHash"), made.nar_hash().to_string(), "{when}");
    }
    expect_order(stick.path(), "in the end");
}
