//! What is pinned stays, whatever else comes; a pin is there whole or as it was before.

use snowberry::nix::Compression;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::made::Made;
use crate::world::{Fault, until};
use crate::{Lab, SOON, begin, hash};

/// `a` refers to `b`, which refers to `c`.
fn chain(name: &str, len: usize) -> [Made; 3] {
    let c = Made::noise(&format!("{name}-c"), len);
    let b = Made::noise(&format!("{name}-b"), len).referring_to(&[&c]);
    let a = Made::noise(&format!("{name}-a"), len).referring_to(&[&b]);
    [a, b, c]
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_never_comes_to_a_pin_until_it_is_unpinned() {
    let chain = chain("desktop", 1 << 20);
    let lab = Lab::of(&chain, "16 MiB").await;
    // One of them is here already.
    lab.fetch(&chain[2]).await;
    let told = lab.run(&["pin", "--name", "desktop", &hash(&chain[0])]).await.well();
    assert!(told.starts_with("pinned desktop: 3 paths, "), "{told}");
    assert!(told.contains("2 NARs fetched"), "{told}");
    let pins = lab.pins().await;
    let pin = &pins[0];
    assert_eq!((&pin["name"], &pin["state"]), (&"desktop".into(), &"holds".into()), "{pins}");
    assert_eq!((pin["paths"].as_u64(), pin["missing"].as_u64()), (Some(3), Some(0)));
    assert_eq!(pin["roots"][0], format!("/nix/store/{}", chain[0].store_path.base_name()));
    assert_eq!(pin["bytes"], pin["alone_bytes"]);
    assert_eq!(lab.snowberry.figure("store", "pinned_bytes").await, pin["bytes"].as_u64().unwrap());
    assert_eq!(lab.snowberry.figure("store", "pins").await, 1);
    // Twice the budget passes through.
    lab.crowd("other", 32).await;
    let asked = lab.upstream.asked(&hash(&chain[1]));
    for made in &chain {
        assert!(lab.is_held(made).await, "{} was evicted", made.store_path);
        lab.fetch(made).await;
    }
    assert_eq!(lab.upstream.asked(&hash(&chain[1])), asked, "its narinfo was not here");
    let metrics = lab.snowberry.client().get("/metrics").await;
    let line = format!("snowberry_pinned_bytes {}", pin["bytes"]);
    assert!(metrics.text().contains(&line), "{line}");
    lab.run(&["unpin", "laptop"]).await.badly(&["no pin \"laptop\"", "there are: desktop"]);
    assert_eq!(lab.run(&["unpin", "desktop"]).await.well(), "unpinned desktop\n");
    assert!(lab.run(&["pins"]).await.well().starts_with("nothing is pinned"));
    lab.crowd("more", 32).await;
    for made in &chain {
        assert!(!lab.is_held(made).await, "{} is still here", made.store_path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_figures_before_anything_is_fetched() {
    let chain = chain("big", 3 << 20);
    let lab = Lab::of(&chain, "8 MiB").await;
    let refused = lab.run(&["pin", &hash(&chain[0])]).await;
    refused.badly(&["does not fit", "of the budget of 8.0 MiB", "store.budget"]);
    assert_eq!(lab.upstream.asked(".nar."), 0);
    assert_eq!(lab.pins().await, serde_json::json!([]));
    // Without --name it is called as its path is.
    lab.run(&["pin", &hash(&chain[2])]).await.well();
    assert_eq!(lab.pins().await[0]["name"], "big-c");
}

/// What goes makes room for what comes, as far as both can be here at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_is_given_again_needs_room_only_for_what_is_new() {
    let (old, new) = (chain("before", 2 << 20), chain("after", 2 << 20));
    // Of 16 MiB at most 12.8 may be pinned: 6 and a little for each closure, 1 for the other.
    let other = Made::noise("other", 1 << 20);
    let huge = chain("huge", 4 << 20);
    let all = old.iter().chain(&new).chain(&huge).chain([&other]);
    let lab = Lab::of(all, "16 MiB").await;
    lab.run(&["pin", "--name", "desktop", &hash(&old[0])]).await.well();
    lab.run(&["pin", "--name", "laptop", &hash(&other)]).await.well();
    // Beside those two, under a name of its own, there is no room for it.
    let beside = lab.run(&["pin", "--name", "beside", &hash(&new[0])]).await;
    beside.badly(&["does not fit"]);
    let told = lab.run(&["pin", "--name", "desktop", &hash(&new[0])]).await.well();
    assert!(told.starts_with("pinned desktop: 3 paths, "), "{told}");
    let pins = lab.pins().await;
    assert_eq!(pins.as_array().unwrap().len(), 2, "{pins}");
    // What would not even be here together is refused, and the pin stays as it was.
    lab.run(&["pin", "--name", "desktop", &hash(&huge[0])]).await.badly(&["does not fit"]);
    let root = format!("/nix/store/{}", new[0].store_path.base_name());
    assert_eq!(lab.pins().await[0]["roots"][0], root);
    for made in &new {
        assert!(lab.is_held(made).await, "{} is not here", made.store_path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_pins_leave_no_room_for_is_refused_before_its_body() {
    let chain = chain("pinned", 3 << 20);
    let lab = Lab::of(&chain, "16 MiB").await;
    lab.run(&["pin", "--name", "desktop", &hash(&chain[0])]).await.well();
    let token = lab.token();
    let put = async |made: &Made| {
        let body = made.file.clone();
        let path = format!("/push/{}", made.file_url());
        let headers = [("authorization", token.as_str())];
        lab.snowberry.client().ask(hyper::Method::PUT, &path, &headers, body.into()).await
    };
    let large = Made::noise("large", 6 << 20).packed(Compression::Zstd);
    // Only the head is sent, as by a client that waits to be told to go on.
    let mut raw = tokio::net::TcpStream::connect(lab.snowberry.address).await.unwrap();
    let head = format!(
        "PUT /push/{} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {token}\r\n\
         Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        large.file_url(),
        large.file.len(),
    );
    raw.write_all(head.as_bytes()).await.unwrap();
    let mut refused = String::new();
    tokio::time::timeout(SOON, raw.read_to_string(&mut refused)).await.unwrap().unwrap();
    assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");
    assert!(refused.contains("that are pinned") && !refused.contains("100 Continue"), "{refused}");
    assert_eq!(lab.snowberry.figure("store", "nars").await, 3, "nothing of it was taken");
    let small = Made::noise("small", 1 << 20).packed(Compression::Zstd);
    assert_eq!(put(&small).await.status, 200);
    lab.run(&["unpin", "desktop"]).await.well();
    assert_eq!(put(&large).await.status, 200);
    for made in &chain {
        lab.fetch(made).await;
    }
}

/// Narinfos may say too little: what comes counts.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_turns_out_larger_is_refused_then() {
    let parts: Vec<Made> = (0..4)
        .map(|n| Made::noise(&format!("part-{n}"), 3 << 20).packed(Compression::None))
        .collect();
    let all: Vec<&Made> = parts.iter().collect();
    let top = Made::noise("top", 1000).referring_to(&all);
    // Uncompressed they are thought to shrink to one half; noise does not.
    let lab = Lab::of(parts.iter().chain([&top]), "8 MiB").await;
    lab.run(&["pin", "--name", "x", &hash(&top)]).await.badly(&["does not fit"]);
    assert!(lab.upstream.asked("/nar/") > 0, "it was refused before");
    assert_eq!(lab.pins().await, serde_json::json!([]));
    assert_eq!(lab.snowberry.figure("store", "pins").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_nobody_has_is_named_with_who_refers_to_it() {
    let chain = chain("broken", 10_000);
    let lab = Lab::of(&chain, "1 GiB").await;
    lab.cache.remove_narinfo(&chain[1]);
    let (a, b) = (chain[0].store_path.base_name(), chain[1].store_path.base_name());
    let words =
        ["cannot be had", &format!("{b}: no upstream has it"), &format!("{a} refers to it")];
    lab.run(&["pin", &hash(&chain[0])]).await.badly(&words);
    assert_eq!(lab.upstream.asked(".nar."), 0);
    assert_eq!(lab.pins().await, serde_json::json!([]));
    // Somebody puts it there: its absence is not remembered against it.
    lab.cache.add(&chain[1]);
    lab.run(&["pin", &hash(&chain[0])]).await.well();
    for name in ["", "-x", "a/b", &"x".repeat(65)] {
        let name = format!("--name={name}");
        lab.run(&["pin", &name, &hash(&chain[0])]).await.badly(&["no name for a pin"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_leaves_the_pin_as_it_was_and_giving_it_again_goes_on() {
    let (old, new) = (chain("old", 50_000), chain("new", 50_000));
    let mut lab = Lab::of(old.iter().chain(&new), "1 GiB").await;
    lab.run(&["pin", "--name", "desktop", &hash(&old[0])]).await.well();
    // The last one of the new closure does not come to its end.
    lab.upstream.fault(&new[2].file_url(), Fault::Held(1000));
    let arguments = ["pin", "--name", "desktop", &hash(&new[0])];
    let giving = begin(lab.command(&arguments), "");
    until("the held NAR to be asked", SOON, async || {
        (lab.upstream.asked(&new[2].file_url()) > 0).then_some(())
    })
    .await;
    lab.until_held(&new[1]).await;
    lab.snowberry.kill();
    giving.await.unwrap().badly(&[]);
    lab.snowberry.restart().await;
    lab.snowberry.ready().await;
    let pins = lab.pins().await;
    let of = |state: &str| {
        let pins = pins.as_array().unwrap();
        pins.iter().find(|pin| pin["state"] == state).cloned()
    };
    let holds = of("holds").unwrap();
    assert_eq!((&holds["name"], &holds["missing"]), (&"desktop".into(), &0.into()), "{pins}");
    let root = format!("/nix/store/{}", old[0].store_path.base_name());
    assert_eq!(holds["roots"][0], root, "{pins}");
    assert!(of("coming").unwrap()["missing"].as_u64() > Some(0), "{pins}");
    lab.upstream.heal();
    lab.upstream.release();
    lab.run(&arguments).await.well();
    let pins = lab.pins().await;
    assert_eq!(pins.as_array().unwrap().len(), 1, "{pins}");
    assert_eq!(pins[0]["roots"][0], format!("/nix/store/{}", new[0].store_path.base_name()));
    assert_eq!((&pins[0]["state"], &pins[0]["missing"]), (&"holds".into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pin_loses_to_damage_is_fetched_again() {
    let made = Made::noise("precious", 600_000).packed(Compression::None);
    let mut lab = Lab::of([&made], "1 GiB").await;
    lab.run(&["pin", &hash(&made)]).await.well();
    assert!(lab.snowberry.stop().await.success());
    // Noise is kept as it is: its bytes stand in the segment. These are in its second row.
    let needle = &made.nar[400_000..400_064];
    let mut hit = false;
    for file in std::fs::read_dir(lab.snowberry.state().join("store")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(needle.len()).position(|it| it == needle) {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            hit = true;
        }
    }
    assert!(hit, "its bytes stand nowhere");
    lab.snowberry.restart().await;
    lab.snowberry.ready().await;
    let before = lab.upstream.asked(&made.file_url());
    let answer = lab.snowberry.client().get(&made.nar_url()).await;
    assert!(!answer.whole, "the damage was not met");
    lab.snowberry.log_line(&["lost NARs", "fetched again"], SOON).await;
    lab.until_held(&made).await;
    assert!(lab.upstream.asked(&made.file_url()) > before);
    assert_eq!(lab.pins().await[0]["missing"], 0);
    lab.fetch(&made).await;
}
