//! Paths that other upstreams have: nothing of theirs is signed by us, or overwritten.

use snowberry::nix::{SecretKey, Signature};

use crate::made::{self, Made};
use crate::world::Scripted;
use crate::{Lab, MadeCache, Settings, unsigned};

struct Beside {
    lab: Lab,
    _upstream: Scripted,
    _cache: MadeCache,
}

async fn beside(paths: &[&Made]) -> Beside {
    let cache = MadeCache::of(paths.iter().copied());
    let upstream = Scripted::serve(cache.root()).await;
    let settings = Settings::new().upstream(&upstream.url(), &made::public_key());
    let lab = Lab::with(settings).await;
    Beside { lab, _upstream: upstream, _cache: cache }
}

#[tokio::test]
async fn what_another_upstream_has_is_not_signed_by_us() {
    let made = Made::noise("theirs", 5000);
    let beside = beside(&[&made]).await;
    let lab = &beside.lab;
    lab.push(&made).await;
    let narinfo = lab.narinfo(&made).await.unwrap();
    assert!(!lab.is_ours(&narinfo).await, "we signed what is another's");
    let names: Vec<_> = narinfo.signatures.iter().map(Signature::key_name).collect();
    assert_eq!(names, ["made-1"], "its own signature was not merged");
    assert!(made.is_in(&lab.get(&made.nar_url()).await.body));
}

#[tokio::test]
async fn another_nar_than_the_upstream_has_is_dropped() {
    let theirs = Made::noise("path", 5000);
    let beside = beside(&[&theirs]).await;
    let lab = &beside.lab;
    let ours = Made { store_path: theirs.store_path.clone(), ..Made::noise("built-anew", 5000) };
    lab.push(&ours).await;
    assert_eq!(lab.narinfo(&theirs).await.unwrap().nar_hash, theirs.nar_hash());
    assert!(lab.get("/metrics").await.text().contains("snowberry_push_differs_total 1"));
}

#[tokio::test]
async fn what_nobody_has_is_ours_beside_an_upstream_too() {
    let beside = beside(&[]).await;
    let lab = &beside.lab;
    let made = Made::noise("ours", 5000);
    lab.push(&made).await;
    assert!(lab.is_ours(&lab.narinfo(&made).await.unwrap()).await);
    // A signature that the uploader brings stays.
    let other = Made::noise("signed", 5000);
    assert_eq!(lab.put_nar(&other).await.status, 200);
    let key = SecretKey::from_seed("builder-1", [5; 32]).unwrap();
    let mut narinfo = unsigned(&other);
    let fingerprint = narinfo.fingerprint(&snowberry::nix::StoreDir::default());
    narinfo.signatures.push(key.sign(&fingerprint));
    assert_eq!(lab.put_narinfo(&other, &narinfo).await.status, 200);
    assert_eq!(lab.narinfo(&other).await.unwrap().signatures.len(), 2);
}
