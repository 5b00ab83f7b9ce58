//! What is answered, to whom, and what goes over the wire for it.

use std::time::Duration;

use hyper::Method;

use super::Lab;
use super::made::Made;
use super::world::proxy::Wire;
use super::world::{Forward, Scripted};

/// An answer that costs no packet.
const AT_ONCE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn with_nothing_known_it_says_what_a_cache_is_and_404() {
    let forward = Forward::with(&["mdns.enabled=false"]).await;
    forward.log_line(&["no cache is known", "snowberry join"], Duration::from_secs(5)).await;
    for path in ["/nix-cache-info", "/push/nix-cache-info"] {
        let info = forward.client().get(path).await;
        let wanted = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n";
        assert_eq!((info.status, info.text()), (200, wanted));
        assert_eq!(forward.client().head(path).await.status, 200);
    }
    for path in ["/00000000000000000000000000000000.narinfo", "/nar/x.nar.xz", "/", "/healthz"] {
        let answer = forward.client().get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.all_after < AT_ONCE, "{path}: {:?}", answer.all_after);
    }
    let post = forward.client().ask(Method::POST, "/", &[], "x".into()).await;
    assert_eq!(post.status, 404);
}

#[tokio::test]
async fn the_priority_is_the_caches_own_and_remembered() {
    let made = Made::noise("priority", 1000);
    let cache = super::MadeCache::of([&made]);
    let upstream = Scripted::serve(cache.root()).await;
    upstream.put("/nix-cache-info", "StoreDir: /nix/store\nPriority: 41\n");
    let forward = Forward::to(&upstream.url()).await;
    forward.here(&made.store_path_hash().to_string(), Duration::from_secs(5)).await;
    let wanted = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 41\n";
    assert_eq!(forward.client().get("/nix-cache-info").await.text(), wanted);
    upstream.refuse();
    assert_eq!(forward.narinfo("0").await.status, 404);
    assert_eq!(forward.client().get("/nix-cache-info").await.text(), wanted);
}

#[tokio::test]
async fn a_cache_of_another_store_directory_is_not_asked() {
    let made = Made::noise("other-dir", 1000);
    let cache = super::MadeCache::of([&made]);
    let upstream = Scripted::serve(cache.root()).await;
    upstream.put("/nix-cache-info", "StoreDir: /gnu/store\n");
    let forward = Forward::to(&upstream.url()).await;
    forward.log_line(&["not the cache of this machine", "/gnu/store"], AT_ONCE * 50).await;
    assert_eq!(forward.client().get(&made.narinfo_url()).await.status, 404);
    assert_eq!(upstream.asked(".narinfo"), 0);
}

#[tokio::test]
async fn answers_only_under_names_of_loopback() {
    let made = Made::noise("host", 1000);
    let lab = Lab::of(&[&made]).await;
    let forward = Forward::to(&lab.snowberry.url()).await;
    forward.here(&made.store_path_hash().to_string(), Duration::from_secs(5)).await;
    let ask = async |host: &str, method: Method| {
        forward.client().ask(method, &made.narinfo_url(), &[("host", host)], "".into()).await
    };
    for host in ["localhost", "localhost:8501", "127.0.0.1", "[::1]:8501"] {
        assert_eq!(ask(host, Method::GET).await.status, 200, "{host}");
    }
    for host in ["evil.example.org", "snowberry.local", "192.168.1.7", "localhost.evil.org"] {
        let refused = ask(host, Method::GET).await;
        assert_eq!(refused.status, 403, "{host}");
        assert!(refused.text().contains("this machine only"), "{}", refused.text());
        assert_eq!(ask(host, Method::PUT).await.status, 403, "{host}");
    }
}

#[tokio::test]
async fn nothing_is_added_to_a_question_and_headers_of_the_connection_stay() {
    let made = Made::noise("headers", 1000);
    let lab = Lab::of(&[&made]).await;
    let wire = Wire::to(lab.snowberry.address, usize::MAX, 0).await;
    let forward = Forward::to(&wire.url()).await;
    forward.here(&made.store_path_hash().to_string(), Duration::from_secs(5)).await;
    let narinfo = forward.client().get(&made.narinfo_url()).await;
    let direct = lab.snowberry.client().get(&made.narinfo_url()).await;
    assert_eq!(narinfo.body, direct.body);
    let came = wire.requests().to_lowercase();
    assert!(!came.contains("authorization"), "{came}");
    assert!(came.contains(&format!("host: {}", wire.url().trim_start_matches("http://"))));

    let headers = [
        ("connection", "x-own, keep-alive"),
        ("x-own", "1"),
        ("te", "trailers"),
        ("keep-alive", "timeout=3"),
        ("accept-encoding", "zstd"),
        ("user-agent", "Nix/0"),
        ("authorization", "Basic eDp5"),
    ];
    forward.client().get_with(&made.narinfo_url(), &headers).await;
    let came = wire.requests().to_lowercase();
    for there in ["accept-encoding: zstd", "user-agent: nix/0", "authorization: basic edp5"] {
        assert!(came.contains(there), "{there} is not in {came}");
    }
    for dropped in ["x-own", "te: ", "keep-alive", "timeout=3"] {
        assert!(!came.contains(dropped), "{dropped} is in {came}");
    }
}

#[tokio::test]
async fn heads_have_bounds() {
    let forward = Forward::with(&["mdns.enabled=false"]).await;
    let many: Vec<(String, &str)> = (0..100).map(|n| (format!("x-{n}"), "y")).collect();
    let many: Vec<(&str, &str)> =
        many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(forward.client().get_with("/", &many).await.status, 431);
    let long = "x".repeat(300_000);
    assert_eq!(forward.client().get_with("/", &[("x-long", &long)]).await.status, 431);
}

#[tokio::test]
async fn ranges_heads_and_absence_go_through_as_they_are() {
    let made = Made::mixed("through", 300_000);
    let lab = Lab::of(&[&made]).await;
    let forward = Forward::to(&lab.snowberry.url()).await;
    forward.here(&made.store_path_hash().to_string(), Duration::from_secs(5)).await;
    let whole = forward.client().get(&made.nar_url()).await;
    assert!(made.is_in(&whole.body) && whole.whole);
    super::world::until("the NAR to be held", Duration::from_secs(10), async || {
        (lab.snowberry.client().head(&made.nar_url()).await.status == 200).then_some(())
    })
    .await;
    let (direct, ours) = (lab.snowberry.client(), forward.client());
    for (method, path, range) in [
        (Method::GET, made.nar_url(), None),
        (Method::HEAD, made.nar_url(), None),
        (Method::GET, made.nar_url(), Some("bytes=1000-")),
        (Method::GET, made.nar_url(), Some("bytes=10-19")),
        (Method::GET, made.nar_url(), Some("bytes=99999999-")),
        (Method::HEAD, made.narinfo_url(), None),
        (Method::GET, "/nothing.narinfo".to_owned(), None),
        (Method::GET, "/public-key".to_owned(), None),
    ] {
        let headers: Vec<_> = range.map(|range| ("range", range)).into_iter().collect();
        let one = direct.ask(method.clone(), &path, &headers, "".into()).await;
        let other = ours.ask(method.clone(), &path, &headers, "".into()).await;
        assert_eq!(one.status, other.status, "{method} {path} {range:?}");
        assert_eq!(one.body, other.body, "{method} {path} {range:?}");
        for name in ["content-length", "content-range", "content-type", "etag", "accept-ranges"] {
            assert_eq!(one.header(name), other.header(name), "{name} of {method} {path} {range:?}");
        }
    }
}
