//! What goes up, and what is left alone because it is there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use snowberry::nix::{Compression, SecretKey, StoreDir, UploadName};
use snowberry::store::Alias;
use tempfile::TempDir;

use crate::kit::{House, nar_key, narinfo_key, own_key, queued, stream_of, target};
use crate::made::{self, Made};
use crate::small_closure;
use crate::world::Bucket;
use crate::world::closure::Narinfo;

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_up_is_what_any_client_can_read() {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let paths = small_closure("read");
    for made in &paths {
        house.accept(made).await;
    }
    house.run();
    house.drained(0).await;
    let status = house.shows("five pushed", 0, |it| it.pushed == 5).await;
    assert_eq!((status.waiting, status.waiting_bytes), (0, 0));
    for made in &paths {
        let narinfo = Narinfo::parse(&bucket.object(&narinfo_key(made)).unwrap());
        let stream = bucket.object(narinfo.field("URL")).unwrap();
        assert!(made.is_in(&stream));
        assert_eq!(narinfo.field("URL"), nar_key(made));
        assert_eq!(narinfo.field("Compression"), "zstd");
        assert_eq!(narinfo.field("FileSize"), stream.len().to_string());
        assert_eq!(narinfo.field("NarHash"), made.nar_hash().to_string());
        assert_eq!(narinfo.field("NarSize"), made.nar.len().to_string());
        let own = own_key().sign(&made.narinfo().fingerprint(&StoreDir::default()));
        assert_eq!(narinfo.all("Sig"), [own.to_string()]);
    }
    bucket.expect_order();
    assert!(bucket.most_under_way() <= 4, "{}", bucket.most_under_way());
    assert_eq!(bucket.put_twice(), Vec::<String>::new());
    let text = house.metrics.text();
    assert!(text.contains("snowberry_pushed_total 5"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn references_go_before_referrers_whatever_their_order() {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let paths = small_closure("turned");
    for made in paths.iter().rev() {
        house.accept(made).await;
    }
    house.run();
    house.drained(0).await;
    let order = bucket.order();
    let place = |made: &Made| order.iter().position(|key| *key == narinfo_key(made)).unwrap();
    for made in &paths {
        for other in &paths {
            if made.references.contains(&other.store_path) {
                assert!(place(other) < place(made), "{} first", made.store_path);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_left_alone() {
    let bucket = Bucket::start().await;
    let paths = small_closure("there");
    let folder = {
        let mut house = House::new(&[target(&bucket.url(), "")]).await;
        for made in &paths {
            house.accept(made).await;
        }
        house.run();
        house.drained(0).await;
        house.stop().await
    };
    let sent = bucket.puts("");
    let mut house = House::on(&folder, &[target(&bucket.url(), "")], |_| {}).await;
    for made in &paths {
        house.accept(made).await;
    }
    // The NAR alone is there: what a crash between the two leaves.
    bucket.remove(&narinfo_key(&paths[0]));
    house.run();
    house.drained(0).await;
    assert_eq!(bucket.puts(""), sent + 1);
    assert_eq!(bucket.puts(&narinfo_key(&paths[0])), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_bucket_is_about_to_take_away_is_put_again() {
    let bucket = Bucket::start().await;
    let made = Made::mixed("old", 5_000);
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    house.accept(&made).await;
    house.run();
    house.drained(0).await;
    // Written on 21 November 2026 and taken away one second later.
    bucket.expires("expiry-date=\"Sat, 21 Nov 2026 12:00:01 GMT\", rule-id=\"a\"");
    house.accept(&made).await;
    house.push.retry();
    house.drained(0).await;
    assert_eq!((bucket.puts("nar/"), bucket.puts(".narinfo")), (2, 2));
    bucket.expires("expiry-date=\"Sat, 21 Nov 2099 12:00:01 GMT\", rule-id=\"a\"");
    house.accept(&made).await;
    house.push.retry();
    house.drained(0).await;
    assert_eq!((bucket.puts("nar/"), bucket.puts(".narinfo")), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_lost_its_cache_info_gets_one_and_keeps_its_own() {
    let cache_info = "nix-cache-info";
    let bucket = Bucket::start().await;
    let its_own = bucket.object(cache_info).unwrap();
    bucket.remove(cache_info);
    let made = Made::mixed("cache", 5_000);
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    house.accept(&made).await;
    house.run();
    house.drained(0).await;
    let put = String::from_utf8(bucket.object(cache_info).unwrap()).unwrap();
    assert!(put.starts_with("StoreDir: /nix/store\n"), "{put}");
    // About to be taken away: put again as it is.
    bucket.put(cache_info, &its_own);
    bucket.expires("expiry-date=\"Sat, 21 Nov 2026 12:00:01 GMT\", rule-id=\"a\"");
    let mut next = House::new(&[target(&bucket.url(), "")]).await;
    next.accept(&Made::mixed("later", 5_000)).await;
    next.run();
    next.drained(0).await;
    assert_eq!(bucket.puts(cache_info), 2);
    assert_eq!(bucket.object(cache_info).unwrap(), its_own);
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_added_to_what_is_there() {
    let bucket = Bucket::start().await;
    // Somebody else put the path, packed otherwise.
    let made = Made::mixed("signed", 5_000);
    bucket.put(&made.file_url(), &made.file);
    bucket.put(&narinfo_key(&made), made.narinfo_text().as_bytes());
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    house.accept(&made).await;
    house.run();
    house.drained(0).await;
    assert_eq!((bucket.puts("nar/"), bucket.puts(".narinfo")), (0, 1));
    let narinfo = Narinfo::parse(&bucket.object(&narinfo_key(&made)).unwrap());
    assert_eq!(narinfo.field("URL"), made.file_url());
    assert_eq!(narinfo.field("Compression"), "xz");
    let signers: Vec<_> =
        narinfo.all("Sig").iter().map(|it| it.split(':').next().unwrap()).collect();
    assert_eq!(signers, ["made-1", "pi-1"]);
    // With one more signature it is put once more, and the others stay.
    let third = SecretKey::from_seed("third-1", [3; 32]).unwrap();
    let third = third.sign(&made.narinfo().fingerprint(&StoreDir::default()));
    house.accept_signed(&made, &[third]).await;
    house.push.retry();
    house.drained(0).await;
    let narinfo = Narinfo::parse(&bucket.object(&narinfo_key(&made)).unwrap());
    assert_eq!(narinfo.all("Sig").len(), 3);
    assert_eq!((bucket.puts("nar/"), bucket.puts(".narinfo")), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narinfo_whose_nar_is_gone_gets_ours() {
    let bucket = Bucket::start().await;
    let made = Made::mixed("half-gone", 5_000);
    bucket.put(&narinfo_key(&made), made.narinfo_text().as_bytes());
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    house.accept(&made).await;
    house.run();
    house.drained(0).await;
    let narinfo = Narinfo::parse(&bucket.object(&narinfo_key(&made)).unwrap());
    assert_eq!(narinfo.field("URL"), nar_key(&made));
    bucket.expect_order();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nar_under_the_same_path_is_never_overwritten() {
    let bucket = Bucket::start().await;
    let (ours, theirs) = (Made::mixed("odd", 5_000), Made::mixed("odd", 6_000));
    bucket.put(&theirs.file_url(), &theirs.file);
    bucket.put(&narinfo_key(&theirs), theirs.narinfo_text().as_bytes());
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    house.accept(&ours).await;
    house.run();
    house.drained(0).await;
    let shown = house.shows("the path", 0, |it| !it.differs.is_empty()).await;
    assert_eq!(bucket.puts(""), 0);
    let text = house.metrics.text();
    assert!(text.contains("snowberry_push_differs_total 1"), "{text}");
    assert_eq!(shown.differs, [ours.store_path.base_name()]);
    assert_eq!(house.store.queue_row(&house.urls[0], queued(&ours)).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_paths_of_one_nar_send_it_once() {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let one = Made::mixed("one", 700_000);
    let twins = [one.twin("two"), one.twin("three"), one.twin("four"), one.clone()];
    for made in &twins {
        house.accept(made).await;
    }
    house.run();
    house.drained(0).await;
    assert_eq!((bucket.puts("nar/"), bucket.puts(".narinfo")), (1, 4));
    bucket.expect_order();
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_go_up_and_debuginfo_names_the_buckets_file() {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let made = Made::mixed("debug", 5_000).packed(Compression::Xz);
    let upload = UploadName { file_hash: made.file_hash(), ending: Compression::Xz };
    let debuginfo = "debuginfo/0123456789abcdef.debug";
    let body = format!(r#"{{"archive":"../{}","member":"lib/x"}}"#, made.file_url());
    let (store, urls) = (house.store.clone(), house.urls.clone());
    let accept = |name: &'static str, body: String| {
        let (store, urls) = (store.clone(), urls.clone());
        async move { store.accept_document(name, Bytes::from(body), urls, 1).await.unwrap() }
    };
    accept("log/abc-x.drv", "built".to_owned()).await;
    house.accept(&made).await;
    let held = house.store.nar(made.nar_hash()).await.unwrap().unwrap();
    let alias = Alias {
        nar_hash: made.nar_hash(),
        nar_size: made.nar.len().try_into().unwrap(),
        compression: Compression::Xz,
        file_size: made.file.len().try_into().unwrap(),
        put_at_s: 1,
        bound: true,
    };
    house.store.keep_upload(upload, alias, held).await.unwrap();
    accept(debuginfo, body).await;
    house.run();
    house.drained(0).await;
    assert_eq!(bucket.object("log/abc-x.drv").unwrap(), b"built");
    let archive = format!(r#"{{"archive":"../{}","member":"lib/x"}}"#, nar_key(&made));
    assert_eq!(String::from_utf8(bucket.object(debuginfo).unwrap()).unwrap(), archive);
    // The same once more is left alone, another one replaces it.
    accept("log/abc-x.drv", "built".to_owned()).await;
    house.push.retry();
    house.drained(0).await;
    assert_eq!(bucket.puts("log/"), 1);
    accept("log/abc-x.drv", "BUILT".to_owned()).await;
    house.push.retry();
    house.drained(0).await;
    assert_eq!(bucket.object("log/abc-x.drv").unwrap(), b"BUILT");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bound_on_bytes_a_second_holds_for_all_targets_together() {
    let (one, two) = (Bucket::start().await, Bucket::start().await);
    let targets = [target(&one.url(), ""), target(&two.url(), "")];
    let folder = Arc::new(TempDir::new().unwrap());
    let rate: u32 = 1 << 20;
    let mut house =
        House::on(&folder, &targets, |config| config.limit = Some(u64::from(rate))).await;
    let paths: Vec<_> = (0..4).map(|n| Made::noise(&format!("bound-{n}"), 400_000)).collect();
    for made in &paths {
        house.accept(made).await;
    }
    let bytes: usize = paths.iter().map(|made| stream_of(made).len()).sum::<usize>() * 2;
    let began = Instant::now();
    house.run();
    house.drained(0).await;
    house.drained(1).await;
    let took = began.elapsed();
    let wanted =
        Duration::from_secs_f64(f64::from(u32::try_from(bytes).unwrap()) / f64::from(rate));
    assert!(took > wanted.mul_f64(0.8), "{bytes} bytes took {took:?}");
    assert!(took < wanted.mul_f64(2.0), "{bytes} bytes took {took:?}");
    drop(made::key());
}
