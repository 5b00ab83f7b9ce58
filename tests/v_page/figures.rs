//! The figures: counted once, the same everywhere, kept, and free to be read.

use std::cell::Cell;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::made::{Made, MadeCache};
use super::world::{Settings, Snowberry, until};
use super::{behind, metric, read};

/// After so long without a question the store makes durable what waits.
const QUIET_LIMIT: Duration = Duration::from_mins(1);

fn ever(status: &Value) -> [u64; 5] {
    ["hits", "misses", "absent", "served_bytes", "fetched_bytes"]
        .map(|name| status["traffic"]["ever"][name].as_u64().unwrap())
}

/// Bytes written to the disk, once they do not grow any more.
async fn written_at_rest(snowberry: &Snowberry) -> u64 {
    // Longer than the two seconds after which the store writes of its own accord, at 20 ms each.
    const SAME: u32 = 150;
    let seen = Cell::new((u64::MAX, 0));
    until("a store at rest", QUIET_LIMIT, || async {
        let (before, same) = seen.get();
        let now = snowberry.figure("store", "written_bytes").await;
        seen.set((now, if now == before { same + 1 } else { 0 }));
        (same >= SAME).then_some(now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_survive_a_stop_and_a_kill_and_are_not_doubled() {
    let paths = ["one", "two", "three"].map(|name| Made::noise(name, 50_000));
    let cache = MadeCache::of(&paths);
    let mut snowberry = behind(&cache, Settings::new()).await;
    snowberry.ready().await;
    read(&snowberry, &paths[0]).await;
    read(&snowberry, &paths[0]).await;
    let before = ever(&snowberry.status().await);
    assert!(
        before[0] > 0 && before[1] > 0 && before[3] > 100_000 && before[4] > 50_000,
        "{before:?}"
    );
    assert!(snowberry.stop().await.success());
    snowberry.restart().await;
    snowberry.ready().await;
    let status = snowberry.status().await;
    assert_eq!(ever(&status), before);
    assert_eq!(status["traffic"]["today"], status["traffic"]["ever"], "{status}");
    assert_eq!(status["traffic"]["week"], status["traffic"]["ever"]);
    assert_eq!(status["traffic"]["hits"], 0, "since the start");
    // What came with a commit is there after a kill; nothing is there twice.
    read(&snowberry, &paths[1]).await;
    written_at_rest(&snowberry).await;
    let with_commit = ever(&snowberry.status().await);
    read(&snowberry, &paths[1]).await;
    let at_last = ever(&snowberry.status().await);
    snowberry.kill();
    snowberry.restart().await;
    snowberry.ready().await;
    let after = ever(&snowberry.status().await);
    for (index, after) in after.iter().enumerate() {
        let range = with_commit[index]..=at_last[index];
        assert!(range.contains(after), "{index}: {after} is not within {range:?}");
    }
    assert!(snowberry.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_page_status_and_metrics_writes_nothing() {
    let made = Made::noise("read", 50_000);
    let cache = MadeCache::of([&made]);
    let snowberry = behind(&cache, Settings::new()).await;
    snowberry.ready().await;
    read(&snowberry, &made).await;
    let before = written_at_rest(&snowberry).await;
    let served = snowberry.figure("traffic", "served_bytes").await;
    for _ in 0..50 {
        for path in ["/", "/api/status", "/metrics"] {
            assert_eq!(snowberry.client().get(path).await.status, 200, "{path}");
        }
    }
    let metrics = snowberry.client().get("/metrics").await;
    assert_eq!(written_at_rest(&snowberry).await, before);
    let written = metric(metrics.text(), "snowberry_disk_written_bytes_total");
    assert!(
        (written - f64::from(u32::try_from(before).unwrap())).abs() < 1.0,
        "{written} {before}"
    );
    assert_eq!(
        snowberry.figure("traffic", "served_bytes").await,
        served,
        "the page is not traffic"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_metrics_and_page_say_the_same() {
    let made = Made::noise("same", 50_000);
    let cache = MadeCache::of([&made]);
    let snowberry = behind(&cache, Settings::new()).await;
    snowberry.ready().await;
    read(&snowberry, &made).await;
    read(&snowberry, &made).await;
    let absent = snowberry.client().get("/00000000000000000000000000000000.narinfo").await;
    assert_eq!(absent.status, 404);
    written_at_rest(&snowberry).await;
    let (status, page) = (snowberry.status().await, snowberry.client().get("/").await);
    let plain = snowberry.client().get("/metrics").await;
    let accept = [("accept", "application/openmetrics-text;version=1.0.0")];
    let open = snowberry.client().get_with("/metrics", &accept).await;
    assert!(plain.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    assert!(open.text().ends_with("# EOF\n") && !plain.text().contains("# EOF"));
    let number = |pointer: &str| status.pointer(pointer).unwrap().as_u64().unwrap();
    for (pointer, name) in [
        ("/traffic/served_bytes", "snowberry_served_bytes_total"),
        ("/traffic/fetched_bytes", "snowberry_fetched_bytes_total"),
        ("/store/used_bytes", "snowberry_store_bytes"),
        ("/store/budget_bytes", "snowberry_store_budget_bytes"),
        ("/store/written_bytes", "snowberry_disk_written_bytes_total"),
        ("/store/nars", "snowberry_store_nars"),
        ("/store/narinfos", "snowberry_store_narinfos"),
    ] {
        for text in [plain.text(), open.text()] {
            let shown = format!("\n{name} {}\n", number(pointer));
            assert!(text.contains(&shown), "{shown} is not in {text}");
        }
    }
    for (name, outcome) in [("hits", "Hit"), ("misses", "Miss"), ("absent", "Absent")] {
        let label = format!("outcome=\"{outcome}\"");
        let of = |line: &&str| line.contains(&label) && !line.contains("kind=\"Other\"");
        let lines = plain.text().lines().filter(of);
        let lines = lines.filter(|line| line.starts_with("snowberry_requests_total{"));
        let sum: u64 =
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        assert!(sum > 0 && sum == number(&format!("/traffic/{name}")), "{name}: {sum} {status}");
    }
    let ever = number("/traffic/ever/hits");
    let row = format!("answered from the disk</th><td>{ever}</td><td>{ever}</td><td>{ever}</td>");
    assert!(page.text().contains(&row), "{row} is not in {}", page.text());
}

fn status_clients(snowberry: &Snowberry, arguments: &[&str]) -> String {
    let state = format!("state-dir={:?}", snowberry.state().display().to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_snowberry"));
    command.args(["status", "--clients", "--set", &state]).args(arguments);
    let output = command.env("SNOWBERRY_CONFIG", "/dev/null").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asked_is_for_the_admin_socket_and_for_the_page_only_where_it_is_wanted() {
    let made = Made::noise("asked-for-hello", 50_000);
    let cache = MadeCache::of([&made]);
    let mut snowberry = behind(&cache, Settings::new()).await;
    snowberry.ready().await;
    assert_eq!(status_clients(&snowberry, &[]), "nobody has asked since the start\n");
    read(&snowberry, &made).await;
    until("a NAR that is held", QUIET_LIMIT, || async {
        (snowberry.client().head(&made.nar_url()).await.status == 200).then_some(())
    })
    .await;
    read(&snowberry, &made).await;
    let told: Value = serde_json::from_str(&status_clients(&snowberry, &["--json"])).unwrap();
    assert_eq!(told["clients"][0]["client"], "127.0.0.1", "{told}");
    let latest = told["latest"].as_array().unwrap();
    let outcomes: Vec<_> = latest.iter().map(|it| it["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["hit", "miss"], "a HEAD reads nothing: {told}");
    for it in latest {
        assert!(it["name"].as_str().unwrap().ends_with("-asked-for-hello"), "{told}");
        assert!(it["size_bytes"].as_u64().unwrap() > 50_000, "{told}");
    }
    assert!(status_clients(&snowberry, &[]).contains("-asked-for-hello"));
    assert_eq!(snowberry.client().get("/clients").await.status, 404);
    assert!(!snowberry.client().get("/").await.text().contains("asked-for-hello"));
    assert!(snowberry.stop().await.success());
    let settings = Settings::new().upstream(&cache.file_url(), &super::public_key());
    snowberry.restart_with(settings.set("page.clients=true")).await;
    snowberry.ready().await;
    read(&snowberry, &made).await;
    let page = snowberry.client().get("/").await;
    let name = format!("{}-asked-for-hello", made.store_path_hash());
    for part in ["Who asked", "<th scope=\"row\">127.0.0.1</th>", &name] {
        assert!(page.text().contains(part), "{part} is not in {}", page.text());
    }
}
