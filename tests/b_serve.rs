//! The main job, asked by a plain HTTP client: what an upstream has comes through, is kept, and is
//! answered from here when the upstream is gone.
#![allow(
    clippy::unwrap_used,
    clippy::string_slice,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

mod world;

use std::time::Duration;

use bytes::Bytes;
use world::closure::{Narinfo, hash_of, name_of};
use world::nginx::Nginx;
use world::{Closure, NARINFO_LIMIT, Scripted, Settings, Snowberry, until};

/// How long a fill of the largest NAR may take on a busy machine until it counts as held.
const HELD_LIMIT: Duration = Duration::from_mins(1);

async fn behind(closure: &Closure, compression: &str) -> Snowberry {
    let url = closure.cache_url(compression);
    Settings::new().upstream(&url, &closure.public_key).start().await
}

/// Fetches a path's narinfo and NAR, holds the NAR against `nix-store --dump`, and returns the
/// narinfo as it was answered.
async fn fetch(snowberry: &Snowberry, closure: &Closure, path: &str) -> Narinfo {
    let answer = snowberry.narinfo(hash_of(path)).await;
    assert_eq!(answer.status, 200, "narinfo of {path}: {answer:?}");
    let narinfo = Narinfo::parse(&answer.body);
    assert_eq!(narinfo.field("StorePath"), path);
    assert_eq!(narinfo.field("Compression"), "zstd");
    let nar = snowberry.client().get(&format!("/{}", narinfo.field("URL"))).await;
    assert_eq!((nar.status, nar.whole), (200, true), "NAR of {path}");
    let unpacked = zstd::decode_all(&nar.body[..]).unwrap();
    assert!(unpacked == closure.nar(path), "NAR of {path} is not what nix-store --dump gives");
    assert_eq!(narinfo.field("NarSize"), unpacked.len().to_string());
    narinfo
}

/// The NAR's URL path, once a HEAD says that the NAR is whole here.
async fn held(snowberry: &Snowberry, narinfo: &Narinfo) -> String {
    let path = format!("/{}", narinfo.field("URL"));
    until("a NAR that is held", HELD_LIMIT, || async {
        (snowberry.client().head(&path).await.status == 200).then_some(())
    })
    .await;
    path
}

async fn every_path_comes_through(compression: &str) {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure, compression).await;
    for path in &closure.paths {
        let narinfo = fetch(&snowberry, &closure, path).await;
        let theirs = closure.narinfo(compression, hash_of(path));
        for key in ["NarHash", "NarSize", "References", "Deriver"] {
            assert_eq!(narinfo.all(key), theirs.all(key), "{key} of {path}");
        }
        assert_eq!(narinfo.all("Sig"), theirs.all("Sig"), "Sig of {path}");
        let name = narinfo.field("URL").strip_prefix("nar/").unwrap();
        let nar_hash = narinfo.field("NarHash").strip_prefix("sha256:").unwrap();
        assert_eq!(name, format!("{nar_hash}{}.nar.zst", hash_of(path)));
    }
    // A second round is answered from here: not one more question upstream.
    let misses = snowberry.figure("traffic", "misses").await;
    let fetched = snowberry.figure("traffic", "fetched_bytes").await;
    for path in &closure.paths {
        fetch(&snowberry, &closure, path).await;
    }
    assert_eq!(snowberry.figure("traffic", "misses").await, misses);
    assert_eq!(snowberry.figure("traffic", "fetched_bytes").await, fetched);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_xz_comes_through_byte_for_byte() {
    every_path_comes_through("xz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_zstd_comes_through_byte_for_byte() {
    every_path_comes_through("zstd").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_plain_nars_comes_through_byte_for_byte() {
    every_path_comes_through("none").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_https_cache_is_asked_over_h2() {
    let Some(closure) = Closure::get() else { return };
    let Some(nginx) = Nginx::serve(&closure.cache("xz")).await else { return };
    let table = format!("ca-file={:?}", nginx.ca.display().to_string());
    let url = format!("https://localhost:{}", nginx.port);
    let settings = Settings::new().upstream_with(&url, &closure.public_key, &table);
    let snowberry = settings.start().await;
    for path in &closure.paths {
        fetch(&snowberry, &closure, path).await;
    }
    let log = nginx.log();
    assert!(log.lines().count() >= 2 * closure.paths.len() - 1, "{log}");
    // A closure's many small questions share one connection; each NAR has one of its own.
    for line in log.lines().filter(|line| !line.contains("/nar/")) {
        assert!(line.starts_with("HTTP/2.0 200 "), "{line}");
    }
    // Its clock is this machine's: nginx rounds down to the second.
    let behind_s = snowberry.status().await["host"]["clock_behind_s"].as_i64();
    assert!(behind_s.is_some_and(|it| it.abs() <= 2), "{behind_s:?}");

    let without_the_authority = Settings::new().upstream(&url, &closure.public_key).start().await;
    let answer = without_the_authority.narinfo(hash_of(&closure.top)).await;
    assert_eq!(answer.status, 404, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_info_is_there_and_names_the_store() {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure, "xz").await;
    let answer = snowberry.client().get("/nix-cache-info").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
    let head = snowberry.client().head("/nix-cache-info").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), answer.header("content-length"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_is_a_404_at_once() {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure, "xz").await;
    let nobody = "0".repeat(32);
    let nar = format!("/nar/{}{nobody}.nar.zst", "0".repeat(52));
    let paths = [
        format!("/{nobody}.narinfo"),
        format!("/{nobody}.ls"),
        nar,
        format!("/log/{nobody}-x.drv"),
        format!("/realisations/sha256:{}!out.doi", "0".repeat(64)),
        "/eeee.narinfo".into(),
        "/index.html".into(),
        "/nar/../nix-cache-info".into(),
        "/%00".into(),
    ];
    for path in paths {
        for answer in [snowberry.client().get(&path).await, snowberry.client().head(&path).await] {
            assert_eq!(answer.status, 404, "{path}: {answer:?}");
            assert!(answer.all_after < NARINFO_LIMIT, "{path}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_carries_a_content_encoding() {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure, "xz").await;
    let narinfo = fetch(&snowberry, &closure, &closure.top).await;
    let accepts = [("accept-encoding", "zstd, br, gzip, deflate, bzip2, xz")];
    let narinfo_path = format!("/{}.narinfo", hash_of(&closure.top));
    let nar_path = format!("/{}", narinfo.field("URL"));
    for path in ["/nix-cache-info", &narinfo_path, &nar_path, "/nowhere"] {
        let answer = snowberry.client().get_with(path, &accepts).await;
        assert_eq!(answer.header("content-encoding"), None, "{path}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_nar_has_a_length_a_tag_and_ranges() {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure, "xz").await;
    fetch(&snowberry, &closure, closure.path("large")).await;
    let before = Narinfo::parse(&snowberry.narinfo(closure.hash("large")).await.body);
    let path = held(&snowberry, &before).await;
    let client = snowberry.client();
    let narinfo = Narinfo::parse(&snowberry.narinfo(closure.hash("large")).await.body);
    let whole = client.get(&path).await;
    let len = whole.body.len();
    assert_eq!(whole.header("content-length"), Some(len.to_string().as_str()));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(narinfo.field("FileSize"), len.to_string());
    assert!(narinfo.field("FileHash").starts_with("sha256:"));
    let tag = whole.header("etag").unwrap().to_owned();
    assert!(tag.starts_with('"'), "a weak tag: {tag}");

    let head = client.head(&path).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), whole.header("content-length"));
    // The borders of rows (255 KiB less a checksum), the start, the end.
    for start in [0, 1, 255 * 1024 - 9, 255 * 1024 - 8, 255 * 1024, len / 2, len - 1] {
        let range = format!("bytes={start}-");
        let rest = client.get_with(&path, &[("range", &range)]).await;
        assert_eq!(rest.status, 206, "{range}");
        assert!(rest.body == whole.body[start..], "{range}: other bytes");
        let says = format!("bytes {start}-{}/{len}", len - 1);
        assert_eq!(rest.header("content-range"), Some(says.as_str()));
    }
    let some = client.get_with(&path, &[("range", "bytes=10-300000")]).await;
    assert!(some.status == 206 && some.body == whole.body[10..=300_000]);
    let last = client.get_with(&path, &[("range", "bytes=-5")]).await;
    assert!(last.status == 206 && last.body == whole.body[len - 5..]);
    let beyond = client.get_with(&path, &[("range", &format!("bytes={len}-"))]).await;
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), Some(format!("bytes */{len}").as_str()));

    let fresh = client.get_with(&path, &[("if-none-match", &tag)]).await;
    assert_eq!((fresh.status, fresh.body.len()), (304, 0));
    let other = [("range", "bytes=5-"), ("if-range", "\"other\"")];
    let changed = client.get_with(&path, &other).await;
    assert!(changed.status == 200 && changed.body == whole.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_a_nar_starts_no_fill() {
    let Some(closure) = Closure::get() else { return };
    let upstream = Scripted::serve(closure.cache("xz")).await;
    let snowberry = Settings::new().upstream(&upstream.url(), &closure.public_key).start().await;
    let answer = snowberry.narinfo(closure.hash("node-6")).await;
    let path = format!("/{}", Narinfo::parse(&answer.body).field("URL"));
    assert_eq!(snowberry.client().head(&path).await.status, 404);
    assert_eq!(upstream.asked("/nar/"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_may_not_write() {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure, "xz").await;
    let narinfo_path = format!("/{}.narinfo", hash_of(&closure.top));
    for path in [&narinfo_path, &format!("/nar/{}.nar.xz", "0".repeat(52))] {
        let answer = snowberry.client().put(path, vec![b'x'; 1000]).await;
        assert_eq!(answer.status, 403, "{path}: {answer:?}");
        assert!(answer.text().trim().len() > 20, "no sentence to act on: {answer:?}");
    }
    for method in [hyper::Method::POST, hyper::Method::DELETE] {
        let answer = snowberry.client().ask(method, &narinfo_path, &[], Bytes::new()).await;
        assert!((400..500).contains(&answer.status), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_served_without_any_upstream() {
    let Some(closure) = Closure::get() else { return };
    let upstream = Scripted::serve(closure.cache("xz")).await;
    let mut snowberry =
        Settings::new().upstream(&upstream.url(), &closure.public_key).start().await;
    for path in &closure.paths {
        let narinfo = fetch(&snowberry, &closure, path).await;
        held(&snowberry, &narinfo).await;
    }
    upstream.refuse();
    for path in &closure.paths {
        fetch(&snowberry, &closure, path).await;
    }
    let missing = snowberry.narinfo(&"0".repeat(32)).await;
    assert_eq!(missing.status, 404);
    assert!(missing.all_after < NARINFO_LIMIT, "{missing:?}");

    // The same after an orderly end and a new start.
    assert!(snowberry.stop().await.success());
    snowberry.restart().await;
    for path in &closure.paths {
        let narinfo = fetch(&snowberry, &closure, path).await;
        assert!(narinfo.field("FileHash").starts_with("sha256:"), "{path} lost its file hash");
    }
    upstream.heal();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_paths_with_one_nar_are_fetched_once() {
    let Some(closure) = Closure::get() else { return };
    let upstream = Scripted::serve(closure.cache("xz")).await;
    let snowberry = Settings::new().upstream(&upstream.url(), &closure.public_key).start().await;
    let first = fetch(&snowberry, &closure, closure.path("twin-a")).await;
    held(&snowberry, &first).await;
    let second = fetch(&snowberry, &closure, closure.path("twin-b")).await;
    assert_eq!(first.field("NarHash"), second.field("NarHash"));
    assert_eq!(upstream.asked("/nar/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstreams_documents_come_through() {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure, "xz").await;
    let name = name_of(&closure.top);
    assert_eq!(name, "top");
    let listing = format!("/{}.ls", closure.hash("node-6"));
    let answer = snowberry.client().get(&listing).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let ours: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let file = closure.cache("xz").join(&listing[1..]);
    let theirs: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(ours, theirs);
    let narinfo = closure.narinfo("xz", closure.hash("node-6"));
    let log = format!("/log/{}", narinfo.field("Deriver"));
    let answer = snowberry.client().get(&log).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text().contains("building node-6"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_made_here_is_the_one_that_nix_makes() {
    let Some(closure) = Closure::get() else { return };
    // An upstream without listings: those that come are made while the NAR passes.
    let upstream = Scripted::serve(closure.cache("xz")).await;
    upstream.fault(".ls", world::Fault::Status(404));
    let snowberry = Settings::new().upstream(&upstream.url(), &closure.public_key).start().await;
    for name in ["odd+name_1.0-a", "symlink", "empty-file", "script", "node-6"] {
        let narinfo = fetch(&snowberry, &closure, closure.path(name)).await;
        held(&snowberry, &narinfo).await;
        let answer = snowberry.client().get(&format!("/{}.ls", closure.hash(name))).await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        let ours: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        let file = closure.cache("xz").join(format!("{}.ls", closure.hash(name)));
        let theirs: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(ours, theirs, "{name}");
    }
}
