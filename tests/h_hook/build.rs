//! A build, the cache away, a drainer that is killed, the cache back.

use std::time::Duration;

use crate::gate::Gate;
use crate::kit::{Builder, Cache, WANTED, expect_held, free_address, names};
use crate::world::{Release, until};

/// From the start of a cache to the last path in it, with a drainer that rests in between.
pub(crate) const ARRIVAL_LIMIT: Duration = Duration::from_mins(2);

/// The tests below, for one client.
macro_rules! client {
    ($label:ident, $release:expr) => {
        mod $label {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn builds_wait_for_the_cache_and_arrive_whatever_is_killed() {
                wait_and_arrive($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn what_was_deleted_by_force_or_is_broken_holds_up_nothing() {
                deleted_and_broken($release).await;
            }
        }
    };
}

client!(nix_2_8, Release::Bookworm);
client!(nix_2_26, Release::Trixie);
client!(nix_sid, Release::Sid);

async fn wait_and_arrive(release: Release) {
    let address = free_address();
    let cache = Cache::at(address);
    let Some(builder) = Builder::new(release, address, &cache.token) else { return };
    let paths = builder.build().await;
    let (wanted, unwanted) = paths.split_at(WANTED.len());
    assert_eq!(builder.waiting().await, WANTED);
    assert_eq!(builder.roots(), WANTED.len());

    // The cache is away: said in a sentence, at once, and nothing is lost.
    let away = builder.shell("/world/snowberry spool run --once").await;
    assert!(!away.success && away.stderr.contains("nobody answers at"), "{}", away.stderr);
    assert!(builder.status().await["trouble"]["message"].as_str().unwrap().contains("away"));

    // The collector takes what nobody wants, and nothing that waits.
    builder.shell("nix-store --gc").await.expect_success();
    assert!(builder.are_valid(wanted).await);
    assert!(!builder.are_valid(unwanted).await);
    assert_eq!(builder.waiting().await, WANTED);

    kill_in_the_middle(&builder, &cache).await;
    assert_eq!(builder.waiting().await, WANTED);
    assert!(builder.are_valid(wanted).await);

    // A drainer that finds nobody, and then the cache.
    let script = "/world/snowberry spool run & pid=$!
         until [ -e /world/stop ]; do sleep 0.1; done
         kill -TERM $pid; wait $pid";
    let drainer = builder.shell(script);
    let meanwhile = async {
        until("trouble in the status", ARRIVAL_LIMIT, || async {
            let status = builder.status().await;
            (status["drained"] == true && !status["trouble"].is_null()).then_some(())
        })
        .await;
        let snowberry = cache.start().await;
        until("an empty spool", ARRIVAL_LIMIT, || async { builder.is_empty().then_some(()) }).await;
        builder.write("stop", "");
        snowberry
    };
    let (ran, snowberry) = tokio::join!(drainer, meanwhile);
    ran.expect_success();
    expect_held(&snowberry, wanted, true).await;
    expect_held(&snowberry, unwanted, false).await;
    let status = builder.status().await;
    assert_eq!((&status["pushed"], &status["trouble"]), (&4.into(), &serde_json::Value::Null));
    assert_eq!((&status["dropped"], &status["gone"]), (&0.into(), &0.into()));

    // Nothing keeps them any longer.
    assert_eq!(builder.roots(), 0);
    builder.shell("nix-store --gc").await.expect_success();
    assert!(!builder.are_valid(wanted).await);
}

/// Kills the drainer, and Nix with it, while the first NAR is on its way.
async fn kill_in_the_middle(builder: &Builder, cache: &Cache) {
    let elsewhere = cache.start_elsewhere().await;
    let mut gate = Gate::to(elsewhere.address).await;
    let script = format!(
        "/world/snowberry spool run --set 'spool.to=\"http://{}\"' & pid=$!
         until [ -e /world/kill ]; do sleep 0.1; done
         kill -9 $pid; wait $pid || echo killed",
        gate.address
    );
    let script = builder.shell(&script);
    let kill = async {
        gate.has_one().await;
        builder.write("kill", "");
    };
    let (ran, ()) = tokio::join!(script, kill);
    assert_eq!(ran.expect_success().trim(), "killed");
}

async fn deleted_and_broken(release: Release) {
    let address = free_address();
    let cache = Cache::at(address);
    let Some(builder) = Builder::new(release, address, &cache.token) else { return };
    let paths = builder.build().await;
    let of = |name: &str| paths.iter().find(|path| path.ends_with(name)).unwrap();
    let (top, odd) = (of("-top"), of("-odd+name_1.0"));
    // By force, as somebody does who is short of disk.
    let script = format!(
        "chmod -R u+w {top} {odd}; rm -rf {top}; echo broken > {odd}/broken
         rm -f /nix/var/nix/gcroots/auto/*; /world/snowberry spool status"
    );
    builder.shell(&script).await.expect_success();

    let snowberry = cache.start().await;
    let ran = builder.shell("/world/snowberry spool run --once").await;
    assert!(!ran.success && ran.stderr.contains("1 still wait"), "{}", ran.stderr);
    expect_held(&snowberry, &[of("-one").clone(), of("-two").clone()], true).await;
    expect_held(&snowberry, &[top.clone(), odd.clone()], false).await;
    let status = builder.status().await;
    assert_eq!((&status["pushed"], &status["gone"]), (&2.into(), &1.into()), "{status}");
    assert_eq!(names(&status["parked"]), ["odd+name_1.0"]);
    assert_eq!(names(&status["last_dropped"]), ["top"]);
    println!("parked: {}", status["parked"][0]["reason"]);
    assert_eq!(builder.roots(), 1, "the lost roots were made again, those of what went are gone");

    let forget = format!("/world/snowberry spool forget {odd}");
    assert_eq!(builder.shell(&forget).await.expect_success().trim(), "1 forgotten");
    let ran = builder.shell("/world/snowberry spool run --once").await;
    ran.expect_success();
    assert_eq!(names(&builder.status().await["parked"]), <[String; 0]>::default());
}
