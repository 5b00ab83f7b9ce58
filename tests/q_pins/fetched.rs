//! What is fetched ahead: whole closures, once, behind whatever clients ask for.

use std::time::{Duration, Instant};

use crate::made::Made;
use crate::world::closure::hash_of;
use crate::world::s3::{Kind, S3Server};
use crate::world::{Closure, Fault, NixClient, Release, Settings, until};
use crate::{Lab, SOON, begin, command_of, hash, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_closure_comes_whole_once_and_what_is_here_costs_nothing() {
    let leaves: Vec<Made> = (0..20).map(|n| Made::mixed(&format!("leaf-{n}"), 20_000)).collect();
    let all: Vec<&Made> = leaves.iter().collect();
    let top = Made::mixed("top", 1000).referring_to(&all);
    let lab = Lab::of(leaves.iter().chain([&top]), "1 GiB").await;
    lab.fetch(&leaves[3]).await;
    let done = lab.run(&["prefetch", "--json", &hash(&top)]).await.json();
    assert_eq!((&done["paths"], &done["lacking"]), (&21.into(), &0.into()), "{done}");
    assert_eq!((&done["fetched_nars"], &done["held_nars"]), (&20.into(), &1.into()), "{done}");
    assert!(done["fetched_bytes"].as_u64() > Some(100_000), "{done}");
    for made in leaves.iter().chain([&top]) {
        assert!(lab.is_held(made).await);
        assert_eq!(lab.upstream.asked(&made.file_url()), 1, "{}", made.store_path);
    }
    let asked = lab.upstream.asked("");
    let told = lab.run(&["prefetch", &hash(&top)]).await.well();
    assert_eq!(told, "21 paths: 0 NARs fetched, 0 B; 21 here already\n");
    assert_eq!(lab.upstream.asked(""), asked);
    assert_eq!(lab.run(&["prefetch", "--quiet", &hash(&top)]).await.well(), "");
    // An empty list is no mistake, nonsense is one.
    assert_eq!(run(lab.command(&["prefetch", "-"]), "\n").await.well(), "");
    run(lab.command(&["prefetch", "-"]), "nonsense\n").await.badly(&["line 1 of stdin"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_upstream_has_is_listed_and_the_rest_comes() {
    let (a, b) = (Made::mixed("here", 20_000), Made::mixed("no-narinfo", 20_000));
    let c = Made::mixed("no-nar", 20_000);
    let top = Made::mixed("top", 1000).referring_to(&[&a, &b, &c]);
    let lab = Lab::of([&a, &b, &c, &top], "1 GiB").await;
    lab.cache.remove_narinfo(&b);
    lab.cache.remove_nar(&c);
    let missing = |made: &Made| format!("missing: {}", made.store_path.base_name());
    let told = lab.run(&["prefetch", &hash(&top)]).await;
    let stderr = told.stderr.clone();
    told.badly(&["no upstream has it", "no-narinfo"]);
    assert!(stderr.contains(&missing(&b)), "{stderr}");
    assert!(stderr.contains(&hash(&c)), "{stderr}");
    assert!(lab.is_held(&a).await && lab.is_held(&top).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_until_a_client_waits() {
    let slow = Made::noise("slow", 3 << 20);
    let lab = Lab::of([&slow], "1 GiB").await;
    let started = Instant::now();
    let limit = ["prefetch", "--limit", "256KiB", &hash(&slow)];
    let fetching = begin(lab.command(&limit), "");
    until("the NAR to be asked", SOON, async || {
        (lab.upstream.asked(&slow.file_url()) > 0).then_some(())
    })
    .await;
    assert!(!lab.is_held(&slow).await, "12 s were to pass");
    // A client gets it as fast as it can be had, from that one fetch.
    lab.fetch(&slow).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    fetching.await.unwrap().well();
    assert_eq!(lab.upstream.asked(&slow.file_url()), 1);
    lab.run(&["prefetch", "--limit", "1KiB", &hash(&slow)]).await.badly(&["16 KiB"]);
    // Alone it holds.
    let (alone, started) = (Made::noise("alone", 1 << 20), Instant::now());
    lab.cache.add(&alone);
    lab.run(&["prefetch", "--limit", "512KiB", &hash(&alone)]).await.well();
    assert!(started.elapsed() > Duration::from_millis(1500), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_there_is_room_for_is_refused() {
    let made = Made::noise("too-big", 9 << 20);
    let lab = Lab::of([&made], "8 MiB").await;
    lab.run(&["prefetch", &hash(&made)]).await.badly(&["does not fit"]);
    assert_eq!(lab.upstream.asked(".nar."), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_given_up_goes_on_when_it_is_given_again() {
    let (a, b) = (Made::mixed("a", 20_000), Made::mixed("b", 20_000));
    let top = Made::mixed("top", 1000).referring_to(&[&a, &b]);
    let lab = Lab::of([&a, &b, &top], "1 GiB").await;
    lab.upstream.fault(&b.file_url(), Fault::Held(1000));
    let mut fetching = lab.command(&["prefetch", &hash(&top)]).spawn().unwrap();
    lab.until_held(&a).await;
    lab.until_held(&top).await;
    fetching.kill().unwrap();
    fetching.wait().unwrap();
    lab.upstream.heal();
    lab.upstream.release();
    lab.run(&["prefetch", &hash(&top)]).await.well();
    assert!(lab.is_held(&b).await);
    assert_eq!(lab.upstream.asked(&a.file_url()), 1);
}

/// What a real Nix prints is what is read.
#[tokio::test(flavor = "multi_thread")]
async fn takes_what_nix_path_info_prints() {
    let Some(closure) = Closure::get() else { return };
    let upstream = || Settings::new().upstream(&closure.cache_url("xz"), &closure.public_key);
    let first = upstream().start().await;
    let Some(client) = NixClient::new(Release::Trixie, &[&first.url()], &closure.public_key) else {
        return;
    };
    client.run(&["nix-store", "--realise", &closure.top]).await.expect_success();
    let features = ["--extra-experimental-features", "nix-command"];
    let command = [&["nix"], &features[..], &["path-info", "-r", &closure.top]].concat();
    let printed = client.run(&command).await;
    let second = upstream().start().await;
    second.ready().await;
    let fetching = command_of(&second, &["prefetch", "--json", "-"]);
    let done = run(fetching, printed.expect_success()).await.json();
    assert_eq!(done["paths"].as_u64().unwrap(), closure.paths.len() as u64, "{done}");
    for path in &closure.paths {
        let narinfo = second.parsed_narinfo(&format!("/{}.narinfo", hash_of(path))).await.unwrap();
        let head = second.client().head(&format!("/{}", narinfo.url)).await;
        assert_eq!(head.status, 200, "{path} is not held");
    }
}

/// A bucket as the house has it, asked with the credentials of the guide.
#[tokio::test(flavor = "multi_thread")]
async fn a_closure_in_minio_is_pinned_and_fetched_ahead_and_stays_without_it() {
    let Some(closure) = Closure::get() else { return };
    let Some(mut minio) = S3Server::start(Kind::Minio).await else { return };
    minio.upload(&closure.cache("xz"));
    minio.mc(&["anonymous", "set", "none", "s3/nix-cache"]);
    let (url, table) = (minio.url("nixbuilder"), minio.table("nixbuilder"));
    let settings = || Settings::new().upstream_with(&url, &closure.public_key, &table);
    let (pinning, ahead) = (settings().start().await, settings().start().await);
    pinning.ready().await;
    ahead.ready().await;
    let pinned = run(command_of(&pinning, &["pin", "--name", "top", &closure.top]), "").await;
    let pinned = pinned.well();
    assert!(
        pinned.starts_with(&format!("pinned top: {} paths, ", closure.paths.len())),
        "{pinned}"
    );
    let fetching = command_of(&ahead, &["prefetch", "--json", &closure.top]);
    let done = run(fetching, "").await.json();
    assert_eq!(done["paths"].as_u64().unwrap(), closure.paths.len() as u64, "{done}");
    let pins = run(command_of(&pinning, &["pins", "--json"]), "").await.json()["pins"].clone();
    assert_eq!((&pins[0]["state"], &pins[0]["missing"]), (&"holds".into(), &0.into()), "{pins}");
    minio.kill();
    for snowberry in [&pinning, &ahead] {
        for path in &closure.paths {
            let narinfo = format!("/{}.narinfo", hash_of(path));
            let narinfo = snowberry.parsed_narinfo(&narinfo).await.unwrap();
            let head = snowberry.client().head(&format!("/{}", narinfo.url)).await;
            assert_eq!(head.status, 200, "{path} is not held");
        }
    }
}
