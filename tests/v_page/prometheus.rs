//! What Prometheus makes of the figures: its own tool checks them and the rules, it scrapes, and all
//! that rules and dashboard ask for is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::made::{Made, MadeCache};
use super::world::parts::program;
use super::world::{Client, Settings, Snowberry, free_port, until};
use super::{behind, read};

/// Prometheus reads its rules, opens its store and scrapes once a second.
const SCRAPE_LIMIT: Duration = Duration::from_mins(1);

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/prometheus")
}

/// A child that does not outlive its test.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[track_caller]
fn check(promtool: &Path, arguments: &[&str], input: Option<&Path>) {
    let stdin = input.map_or_else(Stdio::null, |path| fs::File::open(path).unwrap().into());
    let output = Command::new(promtool).args(arguments).stdin(stdin).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.trim().is_empty(), "{arguments:?}: {output:?}");
}

/// A cache that has seen one of everything.
async fn used(cache: &MadeCache, made: &Made) -> Snowberry {
    let snowberry = behind(cache, Settings::new()).await;
    snowberry.ready().await;
    read(&snowberry, made).await;
    read(&snowberry, made).await;
    snowberry
}

/// Words of a text that are names of our metrics.
fn names_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !word(c));
    words.filter(|it| it.starts_with("snowberry_") && it.len() > 10).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_wrong_with_the_metrics() {
    let Some(promtool) = program("promtool") else { return };
    let made = Made::noise("checked", 50_000);
    let cache = MadeCache::of([&made]);
    let snowberry = used(&cache, &made).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("metrics");
    fs::write(&file, snowberry.client().get("/metrics").await.body).unwrap();
    check(&promtool, &["check", "metrics"], Some(&file));
}

#[test]
fn promtool_finds_the_rules_right_and_each_alert_fires() {
    let Some(promtool) = program("promtool") else { return };
    let rules = docs().join("rules.yml").display().to_string();
    check(&promtool, &["check", "rules", &rules], None);
    let test = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/v_page/rules-test.yml");
    let test = fs::read_to_string(test).unwrap().replace("RULES", &rules);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("test.yml");
    fs::write(&file, test).unwrap();
    check(&promtool, &["test", "rules", &file.display().to_string()], None);
    let text = fs::read_to_string(&rules).unwrap();
    let count = |word: &str| text.matches(word).count();
    assert!(count("- alert:") == count("summary:") && count("- alert:") == count("description:"));
}

/// Metrics that only some machines have, or that have no series before something happened.
const NOT_EVERYWHERE: [&str; 4] = [
    "snowberry_temperature_celsius",
    "snowberry_throttled",
    "snowberry_under_voltage",
    "snowberry_scrub_age_seconds",
];

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_dashboard_ask_only_for_what_there_is() {
    let made = Made::noise("asked", 50_000);
    let cache = MadeCache::of([&made]);
    let snowberry = used(&cache, &made).await;
    let metrics = snowberry.client().get("/metrics").await;
    let series = |line: &str| Some(line.split(['{', ' ']).next()?.to_owned());
    let mut there: BTreeSet<_> =
        metrics.text().lines().filter(|line| !line.starts_with('#')).filter_map(series).collect();
    // Of these even the name is missing where they are; `tests/tidy.rs` holds the table to the code.
    let table = fs::read_to_string(docs().join("../metrics.md")).unwrap();
    for name in NOT_EVERYWHERE {
        assert!(table.contains(&format!("| `{name}` | gauge |")), "{name}");
        there.insert(name.to_owned());
    }
    for file in ["rules.yml", "grafana.json"] {
        let names = names_in(&fs::read_to_string(docs().join(file)).unwrap());
        assert!(names.len() > 8, "{file}: {names:?}");
        let missing: Vec<_> = names.difference(&there).collect();
        assert!(missing.is_empty(), "{file} asks for {missing:?}, which nobody has");
    }
}

/// The questions of a dashboard, with Grafana's variables filled in.
fn questions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let filled = |expr: &str| expr.replace("$__rate_interval", "5m").replace("$instance", ".*");
    targets.map(|target| filled(target["expr"].as_str().unwrap())).collect()
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let text = fs::read_to_string(docs().join("grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert!(dashboard["title"] == "snowberry" && dashboard["uid"] == "snowberry");
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "instance"]);
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24 && at("h") > 0, "{panel}");
        for (x, y) in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(places.insert((x, y)), "two panels at {x} {y}: {panel}");
        }
        assert!(["stat", "timeseries"].contains(&panel["type"].as_str().unwrap()), "{panel}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
            assert!(target["expr"].is_string() && target["refId"].is_string(), "{panel}");
        }
    }
    assert!(ids.len() > 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_it_and_understands_every_question() {
    let Some(prometheus) = program("prometheus") else { return };
    let made = Made::noise("scraped", 50_000);
    let cache = MadeCache::of([&made]);
    let snowberry = used(&cache, &made).await;
    let folder = TempDir::new().unwrap();
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{:?}]\n\
         scrape_configs: [{{job_name: snowberry, static_configs: [{{targets: [{:?}]}}]}}]\n",
        docs().join("rules.yml").display().to_string(),
        snowberry.address.to_string(),
    );
    fs::write(folder.path().join("prometheus.yml"), config).unwrap();
    let port = free_port();
    let child = Command::new(prometheus)
        .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let _kept = Kept(child);
    let client = Client(([127, 0, 0, 1], port).into());
    let ask = async |question: &str| -> Option<Value> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let query = query.append_pair("query", question).finish();
        let answer = client.try_get(&format!("/api/v1/query?{query}")).await?;
        serde_json::from_slice(&answer.body).ok()
    };
    until("a scrape", SCRAPE_LIMIT, || async {
        let answer = ask("snowberry_store_up == 1 and on(instance) up == 1").await?;
        (answer["data"]["result"].as_array()?.len() == 1).then_some(())
    })
    .await;
    let targets = client.get("/api/v1/targets").await;
    let targets: Value = serde_json::from_slice(&targets.body).unwrap();
    assert_eq!(targets["data"]["activeTargets"][0]["lastError"], "", "{targets}");
    // What it has is what we say.
    let served = snowberry.figure("traffic", "served_bytes").await.to_string();
    let answer = ask("snowberry_served_bytes_total").await.unwrap();
    assert_eq!(answer["data"]["result"][0]["value"][1], served, "{answer}");
    let kinds = ask("count(snowberry_request_seconds_bucket{kind=\"Nar\"})").await.unwrap();
    assert_eq!(kinds["data"]["result"][0]["value"][1], "13", "{kinds}");
    let text = fs::read_to_string(docs().join("grafana.json")).unwrap();
    for question in questions(&serde_json::from_str(&text).unwrap()) {
        let answer = ask(&question).await.unwrap();
        assert_eq!(answer["status"], "success", "{question}: {answer}");
    }
    let rules = client.get("/api/v1/rules").await;
    let rules: Value = serde_json::from_slice(&rules.body).unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    for rule in rules {
        assert!(rule["health"] != "err" && rule["state"] != "firing", "{rule}");
    }
    assert!(rules.len() > 9);
}
