//! Real S3 servers as upstreams: what a bucket holds reaches a real client through snowberry,
//! read anonymously and signed; credentials that are wrong are trouble and never absence.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

mod world;

use std::io::Read;
use std::time::Duration;

use world::closure::{Narinfo, hash_of};
use world::s3::{Kind, S3Server};
use world::{Closure, NARINFO_LIMIT, NixClient, Release, Settings, Snowberry, until};

/// How long an upstream that was mended may stay unused.
const RECOVERY_LIMIT: Duration = Duration::from_secs(20);

/// A client with an empty store copies the whole closure through snowberry from the bucket.
async fn closure_comes_through(closure: &Closure, snowberry: &Snowberry) {
    let Some(client) = NixClient::new(Release::Trixie, &[&snowberry.url()], &closure.public_key)
    else {
        return;
    };
    client.run(&["nix-store", "--realise", &closure.top]).await.expect_success();
    let paths = client.run(&["nix-store", "-qR", &closure.top]).await;
    assert_eq!(paths.expect_success().lines().count(), closure.paths.len());
    client.run(&["nix-store", "--verify", "--check-contents"]).await.expect_success();
    let state = snowberry.status().await;
    assert_eq!(state["upstreams"][0]["state"], "up", "{state}");
}

async fn bucket(kind: Kind, closure: &Closure, compression: &str) -> Option<S3Server> {
    let server = S3Server::start(kind).await?;
    server.upload(&closure.cache(compression));
    Some(server)
}

async fn behind(server: &S3Server, profile: &str, closure: &Closure) -> Snowberry {
    let (url, table) = (server.url(profile), server.table(profile));
    Settings::new().upstream_with(&url, &closure.public_key, &table).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn minio_read_anonymously() {
    let Some(closure) = Closure::get() else { return };
    let Some(minio) = bucket(Kind::Minio, &closure, "xz").await else { return };
    closure_comes_through(&closure, &behind(&minio, "", &closure).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn minio_read_as_the_guides_user() {
    let Some(closure) = Closure::get() else { return };
    let Some(minio) = bucket(Kind::Minio, &closure, "zstd").await else { return };
    minio.mc(&["anonymous", "set", "none", "s3/nix-cache"]);
    closure_comes_through(&closure, &behind(&minio, "nixbuilder", &closure).await).await;
    let private = behind(&minio, "", &closure).await;
    assert_eq!(private.narinfo(hash_of(&closure.top)).await.status, 404, "the bucket is private");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narinfo_that_was_stored_with_a_content_encoding_is_served_without() {
    let Some(closure) = Closure::get() else { return };
    let Some(minio) = bucket(Kind::Minio, &closure, "xz").await else { return };
    for (name, encoding) in [("node-6", "xz"), ("node-13", "gzip"), ("node-20", "zstd")] {
        let key = format!("{}.narinfo", closure.hash(name));
        let plain = std::fs::read(closure.cache("xz").join(&key)).unwrap();
        minio.upload_encoded(&key, encoding, &encoded(encoding, &plain));
        assert_ne!(minio.mc(&["cat", &format!("s3/nix-cache/{key}")]).as_bytes(), plain);
    }
    let snowberry = behind(&minio, "nixbuilder", &closure).await;
    for name in ["node-6", "node-13", "node-20"] {
        let answer = snowberry.narinfo(closure.hash(name)).await;
        assert_eq!((answer.status, answer.header("content-encoding")), (200, None), "{name}");
        assert_eq!(Narinfo::parse(&answer.body).field("StorePath"), closure.path(name));
    }
    closure_comes_through(&closure, &snowberry).await;
}

fn encoded(encoding: &str, plain: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match encoding {
        "xz" => drop(liblzma::read::XzEncoder::new(plain, 6).read_to_end(&mut bytes).unwrap()),
        "gzip" => {
            let level = flate2::Compression::default();
            flate2::read::GzEncoder::new(plain, level).read_to_end(&mut bytes).unwrap();
        }
        "zstd" => bytes = zstd::encode_all(plain, 3).unwrap(),
        other => panic!("no encoder for {other}"),
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_read_as_the_guides_user() {
    let Some(closure) = Closure::get() else { return };
    let Some(server) = bucket(Kind::SeaweedFs, &closure, "zstd").await else { return };
    closure_comes_through(&closure, &behind(&server, "nixbuilder", &closure).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_read_anonymously() {
    let Some(closure) = Closure::get() else { return };
    let Some(server) = bucket(Kind::SeaweedFs, &closure, "none").await else { return };
    closure_comes_through(&closure, &behind(&server, "", &closure).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_juicefs_gateway_read_signed_and_anonymously() {
    let Some(closure) = Closure::get() else { return };
    let Some(server) = bucket(Kind::JuiceFs, &closure, "none").await else { return };
    closure_comes_through(&closure, &behind(&server, "nixbuilder", &closure).await).await;
    closure_comes_through(&closure, &behind(&server, "", &closure).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_refused_said_and_never_remembered_as_absence() {
    let Some(closure) = Closure::get() else { return };
    let Some(minio) = bucket(Kind::Minio, &closure, "xz").await else { return };
    let mut snowberry = behind(&minio, "wrong", &closure).await;
    for _ in 0..3 {
        let answer = snowberry.narinfo(hash_of(&closure.top)).await;
        assert_eq!(answer.status, 404, "{answer:?}");
        assert!(answer.all_after < NARINFO_LIMIT, "{answer:?}");
    }
    let status = snowberry.status().await;
    let upstream = &status["upstreams"][0];
    assert_eq!(upstream["state"], "refusing", "{status}");
    assert!(!upstream["last_error"].as_str().unwrap_or_default().is_empty(), "{status}");
    assert!(!status.to_string().contains("nixbuildersecret"), "a secret in {status}");
    assert!(!snowberry.log().concat().contains("nixbuildersecret"), "a secret in the log");

    // The secret is mended in the file, without a restart: what was asked for in vain is there.
    minio.mend_the_wrong_profile();
    until("the mended upstream", RECOVERY_LIMIT, || async {
        (snowberry.narinfo(hash_of(&closure.top)).await.status == 200).then_some(())
    })
    .await;
    snowberry.kill();
}

/// Every answer is 404 in time, and after some of them the status tells what is wrong.
async fn says_that_it_is_in_trouble(snowberry: &Snowberry, closure: &Closure) {
    for path in &closure.paths[..10] {
        let answer = snowberry.narinfo(hash_of(path)).await;
        assert_eq!(answer.status, 404, "{answer:?}");
        assert!(answer.all_after < NARINFO_LIMIT, "{answer:?}");
    }
    let status = snowberry.status().await;
    let upstream = &status["upstreams"][0];
    assert_ne!(upstream["state"], "up", "{status}");
    assert!(!upstream["last_error"].as_str().unwrap_or_default().is_empty(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_there_is_trouble() {
    let Some(closure) = Closure::get() else { return };
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    // The guides' user may not even ask for another bucket: AccessDenied, which is absence.
    let url = minio.url("admin").replace("s3://nix-cache?", "s3://no-such-bucket?");
    let settings = Settings::new().upstream_with(&url, &closure.public_key, &minio.table("admin"));
    let snowberry = settings.start().await;
    says_that_it_is_in_trouble(&snowberry, &closure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_authority_is_unknown_is_trouble() {
    let Some(closure) = Closure::get() else { return };
    let Some(minio) = bucket(Kind::Minio, &closure, "xz").await else { return };
    let snowberry = Settings::new().upstream(&minio.url(""), &closure.public_key).start().await;
    says_that_it_is_in_trouble(&snowberry, &closure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_and_comes_back_is_used_again() {
    let Some(closure) = Closure::get() else { return };
    let Some(mut minio) = bucket(Kind::Minio, &closure, "xz").await else { return };
    let snowberry = behind(&minio, "nixbuilder", &closure).await;
    assert_eq!(snowberry.narinfo(closure.hash("node-0")).await.status, 200);
    minio.kill();
    for _ in 0..10 {
        let answer = snowberry.narinfo(hash_of(&closure.top)).await;
        assert_eq!(answer.status, 404, "{answer:?}");
        assert!(answer.all_after < NARINFO_LIMIT, "{answer:?}");
    }
    minio.start_again().await;
    until("the upstream that came back", RECOVERY_LIMIT, || async {
        (snowberry.narinfo(hash_of(&closure.top)).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn minio_is_set_up_as_the_guides_say() {
    let Some(closure) = Closure::get() else { return };
    let Some(minio) = bucket(Kind::Minio, &closure, "xz").await else { return };
    let listed = minio.mc(&["ls", "s3/nix-cache"]);
    let narinfos = listed.lines().filter(|line| line.ends_with(".narinfo")).count();
    assert_eq!(narinfos, closure.paths.len(), "{listed}");
    assert!(listed.contains("nix-cache-info"), "{listed}");
}
