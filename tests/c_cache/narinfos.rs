//! narinfos: fetched ahead, of two upstreams, cleaned, remembered no longer than is right; and the
//! small documents beside them.

use std::fs;

use crate::made::{self, Made, MadeCache};
use crate::world::fault::{self, Fault};
use crate::world::{Scripted, Settings};
use crate::{Lab, SOON, fetch, narinfo, until};

#[tokio::test]
async fn the_narinfos_of_references_are_fetched_ahead() {
    let leaves: Vec<_> = (0..20).map(|n| Made::noise(&format!("leaf-{n}"), 1_000)).collect();
    let references: Vec<_> = leaves.iter().collect();
    let top = Made::noise("top", 1_000).referring_to(&references);
    let lab = Lab::of(leaves.iter().chain([&top])).await;
    assert!(lab.narinfo(&top).await.is_some());
    let asked = || leaves.iter().all(|leaf| lab.upstream.asked(&leaf.narinfo_url()) == 1);
    until("questions for the references", SOON, async || asked().then_some(())).await;
    until("all narinfos kept", SOON, async || {
        (lab.snowberry.figure("store", "narinfos").await == 21).then_some(())
    })
    .await;
    lab.upstream.refuse();
    for leaf in &leaves {
        assert!(lab.narinfo(leaf).await.is_some(), "not kept: {}", leaf.store_path);
    }
}

#[tokio::test]
async fn a_path_that_refers_to_itself_and_in_circles_is_asked_once() {
    let (first, second) = (Made::noise("circle-a", 1_000), Made::noise("circle-b", 1_000));
    let first = first.clone().referring_to(&[&first, &second]);
    let second = second.referring_to(&[&first]);
    let lab = Lab::of([&first, &second]).await;
    assert!(lab.narinfo(&first).await.is_some() && lab.narinfo(&second).await.is_some());
    lab.fetch(&first).await;
    lab.fetch(&second).await;
    assert_eq!(lab.upstream.asked(".narinfo"), 2);
}

#[tokio::test]
async fn an_upstream_in_trouble_does_not_hide_the_next_one() {
    let made = Made::noise("at-the-second", 300_000);
    for trouble in [
        Fault::Silent,
        Fault::Status(500),
        Fault::Status(404),
        Fault::Html,
        Fault::Altered(fault::unsigned),
        Fault::Stalled(50),
    ] {
        let cache = MadeCache::of([&made]);
        let (first, second) =
            (Scripted::serve(cache.root()).await, Scripted::serve(cache.root()).await);
        first.fault(".narinfo", trouble);
        let key = made::public_key();
        let settings = Settings::new().upstream(&first.url(), &key).upstream(&second.url(), &key);
        let snowberry = settings.start().await;
        fetch(&snowberry, &made).await;
        assert!(second.asked("/nar/") == 1 && first.asked("/nar/") == 0, "{trouble:?}");
    }
}

#[tokio::test]
async fn a_nar_that_breaks_at_one_upstream_goes_on_from_another() {
    let made = Made::noise("goes-on", 1_200_000);
    for trouble in [Fault::Status(500), Fault::Status(404), Fault::Cut(0), Fault::Cut(600_000)] {
        let cache = MadeCache::of([&made]);
        let (first, second) =
            (Scripted::serve(cache.root()).await, Scripted::serve(cache.root()).await);
        let key = made::public_key();
        let settings = Settings::new().upstream(&first.url(), &key).upstream(&second.url(), &key);
        let snowberry = settings.start().await;
        assert!(narinfo(&snowberry, &made).await.is_some());
        first.honours_ranges(false);
        first.fault("/nar/", trouble);
        let answer = snowberry.client().get(&made.nar_url()).await;
        assert_eq!((answer.status, answer.whole), (200, true), "{trouble:?}");
        assert!(made.is_in(&answer.body), "{trouble:?}");
        assert_eq!(second.asked("/nar/"), 1, "{trouble:?}");
    }
}

#[tokio::test]
async fn signatures_count_by_the_keys_of_their_own_upstream() {
    let made = Made::noise("signed", 1_000);
    let cache = MadeCache::of([&made]);
    let upstream = Scripted::serve(cache.root()).await;
    let other = snowberry::nix::SecretKey::from_seed("made-1", [8; 32]).unwrap().public();
    let settings = Settings::new().upstream(&upstream.url(), &other.to_string());
    let snowberry = settings.start().await;
    assert_eq!(narinfo(&snowberry, &made).await, None, "another key of the same name");
    let more = format!("{{url={:?}, unsigned=true}}", upstream.url());
    let trusting = Settings::new().set(&format!("upstream=[{more}]")).start().await;
    assert!(narinfo(&trusting, &made).await.is_some());
}

#[tokio::test]
async fn a_malformed_signature_is_left_out() {
    let made = Made::noise("malformed-sig", 1_000);
    let lab = Lab::of([&made]).await;
    let text = made.narinfo_text() + "Sig: no colon here\nSig: other-1:not base 64\n";
    fs::write(lab.cache.path(&made.narinfo_url()), text).unwrap();
    let narinfo = lab.narinfo(&made).await.unwrap();
    assert_eq!(narinfo.signatures.len(), 1);
    let answer = lab.snowberry.client().get(&made.narinfo_url()).await;
    assert!(!answer.text().contains("no colon") && !answer.text().contains("other-1"));
}

#[tokio::test]
async fn a_question_that_was_answered_too_late_is_there_for_the_next_client() {
    let made = Made::noise("late-narinfo", 1_000);
    let lab = Lab::of([&made]).await;
    lab.upstream.fault(".narinfo", Fault::Held(0));
    assert_eq!(lab.narinfo(&made).await, None);
    lab.upstream.release();
    until("the narinfo that came late", SOON, async || {
        (lab.snowberry.figure("store", "narinfos").await == 1).then_some(())
    })
    .await;
    assert!(lab.narinfo(&made).await.is_some());
    assert_eq!(lab.upstream.asked(&made.narinfo_url()), 1, "the question ran on");
}

#[tokio::test]
async fn documents_pass_through_and_stay() {
    let made = Made::noise("documented", 50_000);
    let lab = Lab::of([&made]).await;
    let log = "/log/9d82wl65gr2phigksgzzimbdf176rx4c-made.drv";
    let realisation = format!("/realisations/sha256:{}!out.doi", "0".repeat(64));
    lab.upstream.put(log, "built\n");
    lab.upstream.put(&realisation, "{}");
    let client = lab.snowberry.client();
    assert_eq!(client.get(log).await.text(), "built\n");
    let escaped = realisation.replace('!', "%21");
    assert_eq!(client.get(&escaped).await.text(), "{}");
    assert_eq!(client.get("/log/00000000000000000000000000000000-none.drv").await.status, 404);
    lab.upstream.refuse();
    assert_eq!(client.get(log).await.text(), "built\n");
    assert_eq!(client.get(&realisation).await.text(), "{}");
}

#[tokio::test]
async fn the_listing_of_a_stored_nar_is_made_here() {
    let made = Made::noise("listed", 50_000);
    let lab = Lab::of([&made]).await;
    lab.fetch(&made).await;
    lab.until_held(&made).await;
    let url = format!("/{}.ls", made.store_path_hash());
    let answer = lab.snowberry.client().get(&url).await;
    assert_eq!(answer.status, 200);
    let listing: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(listing["root"]["entries"]["file"]["size"], 50_000);
    assert_eq!(lab.upstream.asked(".ls"), 0);
}

#[tokio::test]
async fn an_upstream_for_another_store_directory_is_told_and_never_asked() {
    let made = Made::noise("of-another-store", 1_000);
    let cache = MadeCache::of([&made]);
    let (first, second) =
        (Scripted::serve(cache.root()).await, Scripted::serve(cache.root()).await);
    first.put("/nix-cache-info", "StoreDir: /gnu/store\n");
    let key = made::public_key();
    let settings = Settings::new().upstream(&first.url(), &key).upstream(&second.url(), &key);
    let snowberry = settings.start().await;
    snowberry.log_line(&["WARN", "/gnu/store"], SOON).await;
    let told = snowberry.status().await["upstreams"][0].clone();
    assert_eq!(told["state"], "refusing");
    assert!(told["last_error"].as_str().unwrap().contains("/gnu/store"), "{told}");
    fetch(&snowberry, &made).await;
    assert_eq!((first.asked(".narinfo"), first.asked("/nar/")), (0, 0));
}

#[tokio::test]
async fn an_upstream_that_denies_everything_is_told_at_the_start() {
    let made = Made::noise("denied", 1_000);
    let cache = MadeCache::of([&made]);
    let upstream = Scripted::serve(cache.root()).await;
    upstream.fault("/", Fault::S3(403, "AccessDenied"));
    let snowberry = Settings::new().upstream(&upstream.url(), &made::public_key()).start().await;
    snowberry.log_line(&["WARN", "nix-cache-info"], SOON).await;
    assert_eq!(narinfo(&snowberry, &made).await, None);
    let told = snowberry.status().await["upstreams"][0].clone();
    assert!(told["last_error"].as_str().unwrap().contains("nix-cache-info"), "{told}");
}
