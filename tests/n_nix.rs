//! Real Nix clients of three Debian releases substitute a real closure through snowberry. The
//! tests carry the label of the client; the version that was found is printed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test stops and says what it saw")]

mod world;

use std::fmt::Write;
use std::time::Duration;

use sha2::{Digest, Sha256};
use world::closure::{Narinfo, hash_of};
use world::fault::{malformed, with_a_wrong_byte};
use world::proxy::Wire;
use world::{Closure, Fault, NixClient, Release, Scripted, Settings, Snowberry, parts, until};

/// How long a build may take whose first substituter is in trouble: each stall costs the client
/// 5 s with its five tries, and snowberry 15 s.
const TROUBLE_LIMIT: Duration = Duration::from_secs(150);

/// The tests below, for one client.
macro_rules! client {
    ($label:ident, $release:expr, $version:literal) => {
        mod $label {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn copies_the_closure() {
                copy($release, $version).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn realises_the_closure() {
                realise($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn builds_from_what_is_substituted() {
                build($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn asks_about_a_store_it_does_not_copy() {
                ask($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn resumes_a_download_that_was_cut() {
                resume($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn trusts_nothing_unsigned() {
                untrusted($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn goes_on_when_narinfos_fail() {
                narinfo_trouble($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn goes_on_when_a_nar_fails() {
                nar_trouble($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn goes_on_when_the_store_is_damaged() {
                damaged_store($release).await;
            }
        }
    };
}

client!(nix_2_8, Release::Bookworm, "2.8");
client!(nix_2_26, Release::Trixie, "2.26");
client!(nix_sid, Release::Sid, "2.34 or later");

async fn behind(closure: &Closure) -> Snowberry {
    Settings::new().upstream(&closure.cache_url("xz"), &closure.public_key).start().await
}

/// The client's store holds the closure of `top`, and every NAR of it is byte for byte what the
/// builder's `nix-store --dump` gave.
async fn expect_closure(client: &NixClient, closure: &Closure, top: &str) {
    client.run(&["nix-store", "--verify", "--check-contents"]).await.expect_success();
    let script = format!(
        "for path in $(nix-store -qR {top}); do \
           echo \"$path $(nix-store --dump $path | sha256sum)\"; done"
    );
    let dumped = client.shell(&script).await;
    let mut count = 0;
    for line in dumped.expect_success().lines() {
        let (path, rest) = line.split_once(' ').unwrap();
        let sum = Sha256::digest(closure.nar(path));
        let sum = sum.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        assert_eq!(rest.split(' ').next(), Some(sum.as_str()), "the NAR of {path} differs");
        count += 1;
    }
    let all = if top == closure.top { closure.paths.len() } else { 1 };
    assert!(count >= all, "{count} paths only of {all}");
}

/// Each NAR as snowberry itself hands it out, against `nix-store --dump`.
async fn expect_stored(snowberry: &Snowberry, closure: &Closure) {
    for path in &closure.paths {
        let narinfo = Narinfo::parse(&snowberry.narinfo(hash_of(path)).await.body);
        let nar = snowberry.client().get(&format!("/{}", narinfo.field("URL"))).await;
        assert!(nar.status == 200 && nar.whole, "{path}: {}", nar.status);
        let unpacked = zstd::decode_all(&nar.body[..]).unwrap();
        assert!(unpacked == closure.nar(path), "{path} is stored with other bytes");
    }
}

async fn copy(release: Release, version: &str) {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure).await;
    let Some(client) = NixClient::new(release, &[], &closure.public_key) else { return };
    let found = client.version().await;
    println!("{} has Nix {found}", release.name());
    if release == Release::Sid {
        let minor: u32 = found.split('.').nth(1).unwrap().parse().unwrap();
        assert!(minor >= 34, "sid has Nix {found}, not {version}");
    } else {
        assert!(found.starts_with(version), "Nix {found} is not {version}");
    }
    let copied = client.run(&["nix", "copy", "--from", &snowberry.url(), &closure.top]).await;
    copied.expect_success();
    expect_closure(&client, &closure, &closure.top).await;
    expect_stored(&snowberry, &closure).await;

    // A second machine gets the same without anything from upstream.
    let fetched = snowberry.figure("traffic", "fetched_bytes").await;
    let second = NixClient::new(release, &[], &closure.public_key).unwrap();
    let copied = second.run(&["nix", "copy", "--from", &snowberry.url(), &closure.top]).await;
    copied.expect_success();
    println!("copied again by Nix {found} in {:?}", copied.took);
    expect_closure(&second, &closure, &closure.top).await;
    assert_eq!(snowberry.figure("traffic", "fetched_bytes").await, fetched);
}

async fn realise(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure).await;
    let Some(client) = NixClient::new(release, &[&snowberry.url()], &closure.public_key) else {
        return;
    };
    client.run(&["nix-store", "--realise", &closure.top]).await.expect_success();
    expect_closure(&client, &closure, &closure.top).await;
}

async fn build(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure).await;
    // With `max-jobs = 0` nothing can be built: what comes was substituted.
    let Some(client) = NixClient::new(release, &[&snowberry.url()], &closure.public_key) else {
        return;
    };
    let expression = client.bring(&closure.expression());
    let expression = expression.to_str().unwrap();
    let built = client.run(&["nix", "build", "--no-link", "-f", expression]).await;
    built.expect_success();
    expect_closure(&client, &closure, &closure.top).await;
}

async fn ask(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure).await;
    let Some(client) = NixClient::new(release, &[], &closure.public_key) else { return };
    let (url, odd) = (snowberry.url(), closure.path("odd+name_1.0-a"));
    let known = client.run(&["nix", "path-info", "--store", &url, "-r", &closure.top]).await;
    assert_eq!(known.expect_success().lines().count(), closure.paths.len());

    let listed = client.run(&["nix", "store", "ls", "--store", &url, "-lR", odd]).await;
    let listed = listed.expect_success();
    for entry in ["a.b", "run", "link", "empty", "eight", "nine"] {
        assert!(listed.contains(entry), "no {entry} in:\n{listed}");
    }
    let nine = format!("{odd}/nine");
    let read = client.run(&["nix", "store", "cat", "--store", &url, &nine]).await;
    assert_eq!(read.expect_success(), "123456789");

    let logged = client.run(&["nix", "log", "--store", &url, closure.path("node-42")]).await;
    assert!(logged.expect_success().contains("building node-42"), "{}", logged.stdout);

    let missing = format!("/nix/store/{}-nothing", "0".repeat(32));
    let absent = client.run(&["nix", "path-info", "--store", &url, &missing]).await;
    assert!(!absent.success && absent.stderr.contains("is not valid"), "{}", absent.stderr);
}

async fn resume(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure).await;
    let path = closure.path("large");
    let narinfo = Narinfo::parse(&snowberry.narinfo(hash_of(path)).await.body);
    let url = format!("/{}", narinfo.field("URL"));
    assert!(snowberry.client().get(&url).await.whole);
    until("the NAR that is held", Duration::from_mins(1), || async {
        (snowberry.client().head(&url).await.status == 200).then_some(())
    })
    .await;
    // Twice in the middle of the NAR, which is some MiB long.
    let wire = Wire::to(snowberry.address, 3 << 20, 2).await;
    let Some(client) = NixClient::new(release, &[&wire.url()], &closure.public_key) else {
        return;
    };
    client.run(&["nix-store", "--realise", path]).await.expect_success();
    assert_eq!(wire.cuts(), 2, "the wire was not cut");
    let requests = wire.requests().to_lowercase();
    assert!(requests.contains("range: bytes="), "the client did not resume:\n{requests}");
    expect_closure(&client, &closure, path).await;
}

async fn untrusted(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure).await;
    let stranger = "stranger-1:owmNh79E0ugXjEF0eKqUpeOwy4mc9xUlitxQ6Evt8/M=";
    let Some(client) = NixClient::new(release, &[&snowberry.url()], stranger) else { return };
    let refused = client.run(&["nix-store", "--realise", closure.path("node-0")]).await;
    assert!(!refused.success, "a signature of nobody counted");
}

/// Realises a path whose closure has some dozen members, with snowberry first and a cache that is
/// well second, while snowberry's only upstream is in trouble.
async fn in_trouble(release: Release, what: &str, upstream: &Scripted, closure: &Closure) {
    let snowberry = Settings::new().upstream(&upstream.url(), &closure.public_key).start().await;
    let next = Scripted::serve(closure.cache("xz")).await;
    let substituters = [&*snowberry.url(), &*next.url()];
    let Some(client) = NixClient::new(release, &substituters, &closure.public_key) else {
        return;
    };
    let client = client.setting("stalled-download-timeout = 5");
    let path = closure.path("node-20");
    let ran = client.run(&["nix-store", "--realise", path]).await;
    println!("{what}: {:?}", ran.took);
    assert!(ran.success, "{what}: the build failed after {:?}\n{}", ran.took, ran.stderr);
    assert!(ran.took < TROUBLE_LIMIT, "{what}: {:?}", ran.took);
    assert!(upstream.asked(".narinfo") > 0, "{what}: snowberry's upstream was not asked at all");
    assert!(next.asked("/nar/") > 0, "{what}: the next substituter was not needed");
    expect_closure(&client, closure, path).await;
}

async fn narinfo_trouble(release: Release) {
    let Some(closure) = Closure::get() else { return };
    if parts::part(&format!("nix-{}", release.name())).is_none() {
        return;
    }
    let faults = [
        ("silent narinfos", Fault::Silent),
        ("narinfos with 503", Fault::Status(503)),
        ("malformed narinfos", Fault::Altered(malformed)),
    ];
    for (what, fault) in faults {
        let upstream = Scripted::serve(closure.cache("xz")).await;
        upstream.fault(".narinfo", fault);
        in_trouble(release, what, &upstream, &closure).await;
    }
}

async fn nar_trouble(release: Release) {
    let Some(closure) = Closure::get() else { return };
    if parts::part(&format!("nix-{}", release.name())).is_none() {
        return;
    }
    let nar = closure.narinfo("xz", closure.hash("node-20")).field("URL").to_owned();
    let faults = [
        ("a NAR that is cut", Fault::Cut(100_000)),
        ("a NAR that stalls", Fault::Stalled(100_000)),
        ("a NAR with a wrong byte", Fault::Altered(with_a_wrong_byte)),
    ];
    for (what, fault) in faults {
        let upstream = Scripted::serve(closure.cache("xz")).await;
        upstream.fault(&nar, fault);
        in_trouble(release, what, &upstream, &closure).await;
    }
}

/// The index is damaged: snowberry lives on, the client builds from its next substituter; the index
/// is put back: snowberry serves again, and was not started again for it.
async fn damaged_store(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let mut snowberry = behind(&closure).await;
    let path = closure.path("node-20");
    let key = closure.hash("node-20").to_owned();
    assert_eq!(snowberry.narinfo(&key).await.status, 200);
    assert!(snowberry.stop().await.success());
    let index = snowberry.state().join("store/index.redb");
    let whole = std::fs::read(&index).unwrap();
    let damaged = vec![b'x'; whole.len()];
    std::fs::write(&index, &damaged).unwrap();
    snowberry.restart().await;

    let next = Scripted::serve(closure.cache("xz")).await;
    let substituters = [&*snowberry.url(), &*next.url()];
    let Some(client) = NixClient::new(release, &substituters, &closure.public_key) else {
        return;
    };
    client.run(&["nix-store", "--realise", path]).await.expect_success();
    assert!(next.asked("/nar/") > 0, "the next substituter was not needed");
    expect_closure(&client, &closure, path).await;
    assert_eq!(std::fs::read(&index).unwrap(), damaged, "a damaged index was written to");

    // Put back in one step, as a person would who has a copy.
    let beside = index.with_extension("back");
    std::fs::write(&beside, &whole).unwrap();
    std::fs::rename(&beside, &index).unwrap();
    let limit = Duration::from_secs(90);
    until("snowberry to be well again", limit, || async {
        (snowberry.narinfo(&key).await.status == 200).then_some(())
    })
    .await;
}
