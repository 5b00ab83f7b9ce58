//! `/push`: the same store seen without its upstreams.

use crate::made::{self, Made};
use crate::world::Scripted;
use crate::{Lab, MadeCache, Settings};

#[tokio::test]
async fn what_an_upstream_has_is_not_there_before_it_is_held() {
    let made = Made::noise("upstream", 5000);
    let cache = MadeCache::of([&made]);
    let upstream = Scripted::serve(cache.root()).await;
    let settings = Settings::new().upstream(&upstream.url(), &made::public_key());
    let lab = Lab::with(settings).await;
    let narinfo = format!("/push{}", made.narinfo_url());
    let nar = format!("/push{}", made.nar_url());
    assert_eq!(lab.get(&narinfo).await.status, 404);
    assert_eq!(lab.get(&nar).await.status, 404);
    assert_eq!(lab.get(&made.narinfo_url()).await.status, 200);
    assert_eq!(lab.get(&narinfo).await.status, 404, "known, but not held");
    assert!(lab.get(&made.nar_url()).await.whole);
    crate::world::until("the held path", std::time::Duration::from_secs(10), async || {
        (lab.head(&narinfo).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(lab.head(&nar).await.status, 200);
    assert!(made.is_in(&lab.get(&nar).await.body));
}

#[tokio::test]
async fn what_was_pushed_is_there() {
    let lab = Lab::new().await;
    let made = Made::noise("pushed", 5000);
    let info = lab.get("/push/nix-cache-info").await;
    assert_eq!((info.status, info.body), (200, lab.get("/nix-cache-info").await.body));
    let narinfo = format!("/push{}", made.narinfo_url());
    assert_eq!(lab.get(&narinfo).await.status, 404);
    lab.push(&made).await;
    let answer = lab.get(&narinfo).await;
    assert_eq!((answer.status, answer.body), (200, lab.get(&made.narinfo_url()).await.body));
    assert_eq!(lab.head(&format!("/push/{}", made.file_url())).await.status, 200);
    let listing = format!("/push/{}.ls", made.store_path_hash());
    assert_eq!(lab.get(&listing).await.status, 200);
    assert_eq!(lab.get("/push/metrics").await.status, 404);
}
