//! A NAR URL once handed out stays good (promise 6); what is gone everywhere is withdrawn.

use http_body_util::BodyExt;
use snowberry::nix::Compression;
use tokio::task::JoinSet;

use crate::made::{self, Made};
use crate::world::Settings;
use crate::{Lab, SOON, fetch, is_held, narinfo, until};

#[tokio::test]
async fn a_nar_url_is_good_at_a_snowberry_that_never_saw_its_narinfo() {
    let made = Made::noise("elsewhere", 500_000);
    let lab = Lab::of([&made]).await;
    let first = lab.fetch(&made).await;
    let settings = Settings::new().upstream(&lab.upstream.url(), &made::public_key());
    let other = settings.start().await;
    let answer = other.client().get(&made.nar_url()).await;
    assert_eq!((answer.status, answer.whole), (200, true));
    assert_eq!(answer.body, first.body, "the same NAR gives the same bytes");
}

#[tokio::test]
async fn a_nar_url_is_good_after_a_lost_card() {
    let made = Made::noise("lost-card", 500_000);
    let mut lab = Lab::of([&made]).await;
    let first = lab.fetch(&made).await;
    lab.snowberry.kill();
    std::fs::remove_dir_all(lab.snowberry.state()).unwrap();
    lab.snowberry.restart().await;
    let answer = lab.nar(&made).await;
    assert_eq!((answer.status, answer.whole), (200, true));
    assert_eq!(answer.body, first.body);
}

#[tokio::test]
async fn a_nar_url_names_its_nar_and_its_path_or_nothing() {
    let made = Made::noise("named", 100_000);
    let other = Made::noise("another-name", 100_000);
    let lab = Lab::of([&made, &other]).await;
    let (right, wrong) = (made.nar_url(), other.nar_url());
    let mixed = format!("{}{}", &wrong[..57], &right[57..]);
    let client = lab.snowberry.client();
    for url in [
        mixed.as_str(),
        "/nar/",
        "/nar/x.nar.zst",
        "/nar/0s266z35rvqgdz0nisk38kb5xbivg3s0z6fs9p93x8rbgfaj8qkp.nar.zst",
        "/nar/../nix-cache-info",
    ] {
        assert_eq!(client.get(url).await.status, 404, "{url}");
    }
    assert_eq!(lab.upstream.asked("/nar/"), 0);
    let escaped = right.replacen(".nar", "%2Enar", 1);
    for url in [format!("{right}?hash=x"), escaped] {
        let answer = client.get(&url).await;
        assert!(answer.status == 200 && made.is_in(&answer.body), "{url}");
    }
}

#[tokio::test]
async fn a_nar_url_is_good_after_eviction_and_the_budget_holds() {
    let paths: Vec<_> = (0..6).map(|n| Made::noise(&format!("evicted-{n}"), 3_000_000)).collect();
    let lab = Lab::with(&paths, |settings| settings.set("store.budget=\"9 MiB\"")).await;
    for made in &paths {
        lab.fetch(made).await;
    }
    let first = &paths[0];
    until("the first NAR to be evicted", SOON, async || (!lab.is_held(first).await).then_some(()))
        .await;
    let used = async || {
        let used = lab.snowberry.figure("store", "used_bytes").await;
        (used <= lab.snowberry.figure("store", "budget_bytes").await).then_some(used)
    };
    assert!(used().await.expect("within the budget") > 0);
    let answer = lab.nar(first).await;
    assert!(answer.status == 200 && answer.whole && first.is_in(&answer.body));
    used().await.expect("within the budget");
}

#[tokio::test]
async fn a_nar_is_not_evicted_while_it_is_read() {
    let read = Made::noise("being-read", 24 << 20).packed(Compression::None);
    let others: Vec<_> = (0..8).map(|n| Made::noise(&format!("crowd-{n}"), 5_000_000)).collect();
    let paths = || std::iter::once(&read).chain(&others);
    let lab = Lab::with(paths(), |settings| settings.set("store.budget=\"40 MiB\"")).await;
    lab.fetch(&read).await;
    lab.until_held(&read).await;
    let mut tasks = JoinSet::new();
    let slow = lab.snowberry.client().open(&read.nar_url(), &mut tasks).await.into_body();
    for other in &others {
        lab.fetch(other).await;
    }
    assert!(lab.is_held(&read).await);
    let body = slow.collect().await.expect("a whole body").to_bytes();
    assert!(read.is_in(&body));
}

#[tokio::test]
async fn two_paths_with_one_nar_hold_it_once() {
    let made = Made::noise("one", 2_000_000);
    let twin = made.twin("one-too");
    let lab = Lab::of([&made, &twin]).await;
    lab.fetch(&made).await;
    lab.until_held(&made).await;
    let used = lab.snowberry.figure("store", "used_bytes").await;
    lab.upstream.refuse();
    lab.upstream.heal();
    lab.fetch(&twin).await;
    assert_eq!(lab.upstream.asked("/nar/"), 1);
    assert_eq!(lab.snowberry.figure("store", "used_bytes").await, used);
    assert_eq!(lab.snowberry.figure("store", "nars").await, 1);
    assert_eq!(lab.snowberry.figure("store", "narinfos").await, 2);
}

#[tokio::test]
async fn a_narinfo_whose_nar_is_gone_with_it_is_withdrawn() {
    let (made, twin_of_none) = (Made::noise("expired", 100_000), Made::noise("stays", 100_000));
    let lab = Lab::of([&made, &twin_of_none]).await;
    assert!(lab.narinfo(&made).await.is_some());
    lab.cache.remove_nar(&made);
    lab.cache.remove_narinfo(&made);
    assert_eq!(lab.nar(&made).await.status, 404);
    assert_eq!(lab.narinfo(&made).await, None, "a promise that nobody can keep");
    lab.fetch(&twin_of_none).await;
}

#[tokio::test]
async fn a_narinfo_whose_nar_alone_is_gone_is_withdrawn() {
    let made = Made::noise("nar-expired", 100_000);
    let lab = Lab::of([&made]).await;
    assert!(lab.narinfo(&made).await.is_some());
    lab.cache.remove_nar(&made);
    assert_eq!(lab.nar(&made).await.status, 404);
    assert_eq!(lab.narinfo(&made).await, None, "a promise that nobody can keep");
}

#[tokio::test]
async fn a_path_that_lost_its_nar_upstream_is_whole_while_its_twin_is_held() {
    let made = Made::noise("has-a-twin", 100_000);
    let twin = made.twin("is-a-twin");
    let lab = Lab::of([&made, &twin]).await;
    assert!(lab.narinfo(&made).await.is_some());
    lab.fetch(&twin).await;
    lab.until_held(&twin).await;
    lab.cache.remove_nar(&made);
    lab.cache.remove_narinfo(&made);
    lab.fetch(&made).await;
}

#[tokio::test]
async fn a_nar_that_moved_upstream_is_found_by_asking_for_its_narinfo_again() {
    let made = Made::noise("moved", 300_000);
    let lab = Lab::of([&made]).await;
    assert!(lab.narinfo(&made).await.is_some());
    lab.cache.remove_nar(&made);
    lab.cache.add(&made.clone().packed(Compression::Bzip2));
    let answer = lab.nar(&made).await;
    assert!(answer.status == 200 && answer.whole && made.is_in(&answer.body));
}

#[tokio::test]
async fn a_folder_is_an_upstream_and_trouble_while_it_is_pulled_out_but_never_empty() {
    let made = Made::noise("in-a-folder", 300_000);
    let cache = made::MadeCache::below("stick", [&made]);
    let (folder, aside) = (cache.root().join("stick"), cache.root().join("aside"));
    let settings = Settings::new().upstream(&cache.file_url(), &made::public_key());
    // A stick that is pulled out leaves its mount point.
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let snowberry = settings.start().await;
    assert_eq!(narinfo(&snowberry, &made).await, None);
    std::fs::remove_dir(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    until("the folder to be back", SOON, async || narinfo(&snowberry, &made).await).await;
    fetch(&snowberry, &made).await;
    assert!(is_held(&snowberry, &made).await);
}
