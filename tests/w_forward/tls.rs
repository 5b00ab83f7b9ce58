//! Over TLS, pinned to one CA: small questions by h2, NARs by HTTP/1.1.

use std::fs;
use std::time::Duration;

use super::MadeCache;
use super::made::Made;
use super::world::nginx::Nginx;
use super::world::pki::Pki;
use super::world::{Forward, until};

#[tokio::test]
async fn a_pinned_cache_is_asked_by_h2_and_nars_have_connections_of_their_own() {
    let made = Made::mixed("tls", 2_000_000);
    let cache = MadeCache::of([&made]);
    fs::write(cache.root().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    let Some(nginx) = Nginx::serve(cache.root()).await else { return };
    let url = format!("forward.cache=\"https://localhost:{}\"", nginx.port);
    let ca = format!("forward.ca-file={:?}", nginx.ca.display().to_string());
    let forward = Forward::with(&[&url, &ca]).await;
    let hash = made.store_path_hash().to_string();
    forward.here(&hash, Duration::from_secs(5)).await;
    assert_eq!(forward.narinfo(&hash).await.text(), made.narinfo_text());
    let nar = forward.client().get(&format!("/{}", made.file_url())).await;
    assert!(nar.whole && nar.body == made.file, "another NAR");
    let log = nginx.log();
    assert!(log.contains(&format!("HTTP/2.0 200 {}", made.narinfo_url())), "{log}");
    assert!(log.contains(&format!("HTTP/1.1 200 /{}", made.file_url())), "{log}");
}

#[tokio::test]
async fn another_ca_is_not_the_cache_and_both_are_told() {
    let made = Made::noise("tls", 100);
    let cache = MadeCache::of([&made]);
    fs::write(cache.root().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    let Some(nginx) = Nginx::serve(cache.root()).await else { return };
    let folder = tempfile::tempdir().unwrap();
    let other = Pki::make(folder.path());
    let url = format!("forward.cache=\"https://localhost:{}\"", nginx.port);
    let ca = format!("forward.ca-file={:?}", other.ca.display().to_string());
    let forward = Forward::with(&[&url, &ca]).await;
    let told = forward.log_line(&["not the cache of this machine"], Duration::from_secs(5)).await;
    let expected = snowberry::pinned::CaFingerprint::of_pem(&fs::read(&other.ca).unwrap()).unwrap();
    assert!(told.contains(&expected.to_string()), "{told}");
    assert_eq!(forward.client().get(&made.narinfo_url()).await.status, 404);
    assert!(!nginx.log().contains("narinfo"), "a cache that is not ours was asked");
}

#[tokio::test]
async fn without_a_pinned_ca_nothing_is_trusted() {
    let made = Made::noise("tls", 100);
    let cache = MadeCache::of([&made]);
    let Some(nginx) = Nginx::serve(cache.root()).await else { return };
    let url = format!("forward.cache=\"https://localhost:{}\"", nginx.port);
    let forward = Forward::with(&[&url]).await;
    forward.log_line(&["only a CA that is pinned"], Duration::from_secs(5)).await;
    until("the cache to be away", Duration::from_secs(5), async || {
        (forward.client().get(&made.narinfo_url()).await.status == 404).then_some(())
    })
    .await;
}
