//! A house where much is wrong at once: what is built waits for a target that refuses, an upstream is
//! down, a card has lost some bytes, a build is not reproducible. The page says all of it, and says what
//! status and metrics say.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Method;
use serde_json::Value;
use snowberry::nix::{Compression, NarInfo, StoreDir};
use snowberry::push::tokens::Tokens;

use super::browser::{check, look};
use super::made::{Made, MadeCache, public_key};
use super::world::{Bucket, Settings, Snowberry, Wrong, free_port, until};
use super::{Past, metric, read};

/// Reading some MiB again, and a worker's first tries, on a busy machine.
const SOON: Duration = Duration::from_mins(1);

/// What the page says of such a house.
const TOLD: [&str; 10] = [
    "does not take what the house builds, it waits here",
    "<b class=\"bad\">stopped</b>",
    "AccessDenied",
    "3 objects of",
    "wait, the oldest for",
    "Builds that differ",
    "Lost to the disk",
    "could not be fetched again yet",
    "<b class=\"bad\">down</b> for",
    "read again for flaws",
];

/// NAR and narinfo, as a builder pushes a path.
async fn push(snowberry: &Snowberry, made: &Made) {
    let tokens = Tokens::new(snowberry.state().join("tokens"));
    let name = format!("for-{}", made.store_path_hash());
    let token = tokens.add(&name, *made.store_path_hash().as_bytes(), 0).unwrap();
    let authorization = format!("Basic {}", STANDARD.encode(format!("any:{token}")));
    let narinfo = NarInfo { signatures: Vec::new(), ..made.narinfo() };
    let narinfo = narinfo.print(&StoreDir::default()).into_bytes();
    for (path, body) in [
        (format!("/push/{}", made.file_url()), made.file.clone()),
        (format!("/push{}", made.narinfo_url()), narinfo),
    ] {
        let headers = [("authorization", authorization.as_str())];
        let answer = snowberry.client().ask(Method::PUT, &path, &headers, body.into()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
}

/// A bit flips where these NARs lie. They are noise, which is stored as it is.
fn flip(store: &Path, paths: &[&Made]) {
    for made in paths {
        let needle = &made.nar[4000..4064];
        let files = std::fs::read_dir(store).unwrap().map(|file| file.unwrap().path());
        let hit = files.filter(|path| {
            let mut bytes = std::fs::read(path).unwrap();
            let at = bytes.windows(needle.len()).position(|it| it == needle);
            at.inspect(|at| {
                bytes[*at] ^= 4;
                std::fs::write(path, &bytes).unwrap();
            })
            .is_some()
        });
        assert!(hit.count() > 0, "{} lies nowhere", made.store_path);
    }
}

fn scrub(snowberry: &Snowberry) {
    let state = format!("state-dir={:?}", snowberry.state().display().to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_snowberry"));
    command.args(["scrub", "--repair", "--quiet", "--set", &state]);
    let output = command.env("SNOWBERRY_CONFIG", "/dev/null").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "something is lost: {output:?}");
}

/// On the page, in the status and in the metrics the scrub has the same figures.
async fn compare(snowberry: &Snowberry, page: &str) -> Value {
    let status = snowberry.status().await;
    let metrics = snowberry.client().get("/metrics").await;
    for (field, name) in [
        ("checked_bytes", "snowberry_scrub_checked_bytes"),
        ("of_bytes", "snowberry_scrub_size_bytes"),
        ("found", "snowberry_scrub_found"),
        ("repaired", "snowberry_scrub_repaired"),
        ("unrepaired", "snowberry_scrub_unrepaired"),
    ] {
        let said = status["scrub"][field].as_f64().unwrap();
        let measured = metric(metrics.text(), name);
        assert!((said - measured).abs() < 0.5, "{name}: {said} and {measured}");
    }
    let age = metric(metrics.text(), "snowberry_scrub_age_seconds");
    let since = status["scrub"]["last_done_s"].as_f64().unwrap();
    assert!((0.0..=5.0).contains(&(age - since)), "{age} {since}");
    let shown = format!(
        "{} NARs, {} fetched again, {} not to be had so far",
        status["scrub"]["found"], status["scrub"]["repaired"], status["scrub"]["unrepaired"]
    );
    assert!(page.contains(&shown), "{shown} is not in {page}");
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_a_house_in_trouble_says_what_stops_it() {
    let noise = |name: &str| Made::noise(name, 90_000).packed(Compression::None);
    let (mended, lost) = (noise("mended-1.0"), noise("lost-to-the-card-2.4.1"));
    let theirs = noise("not-reproducible-0.3");
    let ours = Made { store_path: theirs.store_path.clone(), ..noise("built-here") };
    let cache = MadeCache::of([&mended, &lost, &theirs]);
    let bucket = Bucket::start().await;
    let nobody = format!("http://127.0.0.1:{}/cache", free_port());
    let settings = Settings::new()
        .upstream(&cache.file_url(), &public_key())
        .upstream(&nobody, &public_key())
        .upstream_with(&bucket.url(), &public_key(), "push=true")
        .set("store.budget=\"200 GiB\"");
    let mut snowberry = settings.start().await;
    snowberry.ready().await;
    for made in [&mended, &lost] {
        read(&snowberry, made).await;
    }
    assert!(snowberry.stop().await.success());
    flip(&snowberry.state().join("store"), &[&mended, &lost]);
    cache.remove_nar(&lost);
    cache.remove_narinfo(&lost);
    Past::year().put_into(&snowberry.state()).await;
    bucket.wrong("", Wrong::NoWrite(403, "AccessDenied"));
    snowberry.restart().await;
    snowberry.ready().await;
    // Short, so that they are sent whole before the refusal comes: a connection that breaks says less.
    for n in 0..3 {
        push(&snowberry, &Made::noise(&format!("built-{n}"), 20_000)).await;
    }
    push(&snowberry, &ours).await;
    scrub(&snowberry);
    for _ in 0..4 {
        snowberry.client().get("/00000000000000000000000000000000.narinfo").await;
    }
    let status = until("all of the trouble", SOON, || async {
        let status = snowberry.status().await;
        let target = &status["queue"]["targets"][0];
        let is_down = status["upstreams"][1]["state"] == "down";
        let is_stopped = target["state"] == "stopped" && target["waiting"] == 3;
        // For some seconds, so that the page has a span to show.
        let is_old = status["queue"]["oldest_s"].as_u64() > Some(1);
        (is_down && is_stopped && is_old).then_some(status)
    })
    .await;
    let differs = theirs.store_path.base_name();
    assert_eq!(status["queue"]["targets"][0]["differs"], serde_json::json!([differs]), "{status}");
    let lost_name = lost.store_path.base_name();
    assert_eq!(status["scrub"]["unrepaired_paths"][0]["name"], lost_name, "{status}");
    assert_eq!(status["scrub"]["found"], 2, "{status}");
    assert_eq!(status["scrub"]["repaired"], 1, "{status}");
    let page = snowberry.client().get("/").await;
    let page = page.text();
    compare(&snowberry, page).await;
    for part in TOLD.into_iter().chain([differs, lost_name]) {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert!(!page.contains("All is well."));
    let Some(told) = look(&snowberry, "troubled") else { return };
    check(&told, &snowberry);
    let text = told["text"].as_str().unwrap();
    assert!(text.contains(lost_name) && text.contains("AccessDenied"), "{text}");
}
