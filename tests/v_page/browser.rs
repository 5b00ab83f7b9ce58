//! The page in a headless Chromium: at a phone and at a desk, by day and by night, by keyboard, with
//! scripts and without. Its pictures are kept under `target/tmp/page`, for somebody to look at.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use snowberry::appliance::{SettingsNote, UpdateNote, UpdateState};
use tempfile::TempDir;

use super::made::{Made, MadeCache, public_key};
use super::world::parts::{part, program};
use super::world::{Settings, Snowberry, free_port};
use super::{Past, read};

/// What somebody with a hostile mind would have shown.
const HOSTILE: [&str; 3] = [
    "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>",
    "\u{202e}evil si siht\u{202c} \u{5e9}\u{5dc}\u{5d5}\u{5dd} & \"quoted\" 'text'",
    "waytoolongwaytoolongwaytoolongwaytoolongwaytoolongwaytoolongwaytoolongwaytoolongwaytoolong\
     waytoolongwaytoolongwaytoolongwaytoolongwaytoolongwaytoolongwaytoolongwaytoolongwaytoolong",
];

/// What Chromium tells of the page; `None` where there is none.
pub(super) fn look(snowberry: &Snowberry, folder: &str) -> Option<Value> {
    let (chromium, node) = (program("chromium")?, program("node")?);
    let axe = part("axe/axe.min.js")?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page").join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/v_page/look.mjs");
    let mut command = Command::new(node);
    command.arg(script).arg(chromium).arg(format!("{}/", snowberry.url())).arg(axe).arg(&folder);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// What holds whatever is shown.
pub(super) fn check(told: &Value, snowberry: &Snowberry) {
    assert_eq!(list(&told["errors"]), &[] as &[Value], "the console is clean");
    for asked in list(&told["asked"]) {
        let asked = asked.as_str().unwrap();
        let is_ours = asked.starts_with(&snowberry.url()) || asked.starts_with("data:");
        assert!(is_ours, "it asks another host: {asked}");
    }
    assert_eq!(list(&told["looks"]).len(), 4);
    for look in list(&told["looks"]) {
        for folds in ["closed", "open"] {
            let (inner, scroll) = (look[folds][0].as_u64(), look[folds][1].as_u64());
            assert!(scroll <= inner, "wider than the screen with all {folds}: {look}");
        }
        assert_eq!(list(&look["wider"]), &[] as &[Value], "{look}");
        assert_eq!(list(&look["violations"]), &[] as &[Value], "{look}");
        let passes: Vec<_> = list(&look["passes"]).iter().filter_map(Value::as_str).collect();
        for rule in ["color-contrast", "landmark-one-main", "region", "html-has-lang"] {
            assert!(passes.contains(&rule), "{rule} was not looked at: {passes:?}");
        }
    }
    let background = |scheme: &str| {
        let look = list(&told["looks"]).iter().find(|look| look["scheme"] == scheme).unwrap();
        look["background"].as_str().unwrap().to_owned()
    };
    assert_ne!(background("light"), background("dark"));
    assert_eq!(told["opened"], true, "by keyboard: {}", told["focused"]);
    assert_eq!(told["scripts"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_a_new_cache_can_be_lived_with() {
    let cache = MadeCache::of([]);
    let settings = Settings::new().upstream(&cache.file_url(), &public_key());
    let snowberry = settings.start().await;
    snowberry.ready().await;
    let Some(told) = look(&snowberry, "new") else { return };
    check(&told, &snowberry);
    let text = told["text"].as_str().unwrap();
    assert!(text.contains("All is well."), "{text}");
    let without = told["without"].as_str().unwrap();
    assert!(without.contains("All is well.") && without.contains("snowberry join 127.0.0.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_an_old_cache_with_all_kinds_of_trouble_can_be_lived_with() {
    let long = "p".repeat(150);
    let paths = [Made::noise("hello-2.12", 90_000), Made::noise(&long, 70_000)];
    let cache = MadeCache::of(&paths);
    let (notes, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let errors = HOSTILE.map(str::to_owned).to_vec();
    SettingsNote { errors, applied_at: None }.write(notes.path()).unwrap();
    UpdateNote {
        slot: Some(snowberry::appliance::Slot::A),
        version: "0.1.0".into(),
        trial: false,
        state: UpdateState::Installed,
        next: Some("0.2.0".into()),
        last_error: None,
        since: super::now_s(),
    }
    .write(notes.path())
    .unwrap();
    let nobody = format!("http://127.0.0.1:{}/{}", free_port(), "u".repeat(90));
    let settings = Settings::new()
        .upstream(&cache.file_url(), &public_key())
        .upstream(&nobody, &public_key())
        // A folder that is no cache: what is built waits.
        .upstream_with(&format!("file://{}", target.path().display()), &public_key(), "push=true")
        .set(&format!("appliance.notes={:?}", notes.path().display().to_string()))
        .set("store.budget=\"200 GiB\"")
        .set("page.clients=true");
    let mut snowberry = settings.start().await;
    snowberry.ready().await;
    for made in &paths {
        read(&snowberry, made).await;
    }
    assert!(snowberry.stop().await.success());
    Past::year().put_into(&snowberry.state()).await;
    snowberry.restart().await;
    snowberry.ready().await;
    for made in &paths {
        read(&snowberry, made).await;
    }
    // A question that nobody answers, so that it is seen who is down.
    for _ in 0..4 {
        snowberry.client().get("/00000000000000000000000000000000.narinfo").await;
    }
    let Some(told) = look(&snowberry, "old") else { return };
    check(&told, &snowberry);
    let text = told["text"].as_str().unwrap();
    for part in HOSTILE.into_iter().chain(["Who asked", "hello-2.12", "waits for a restart"]) {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let without = told["without"].as_str().unwrap();
    assert!(!without.contains("<script") && without.matches("<svg").count() >= 6, "{without}");
    let phone = list(&told["looks"][0]["passes"]);
    assert!(phone.contains(&"svg-img-alt".into()), "{phone:?}");
    // On the page, in the status and in the metrics the figures are the same.
    let status = snowberry.status().await;
    for (row, name) in [
        ("answered from the disk", "hits"),
        ("fetched from upstream", "misses"),
        ("not to be had", "absent"),
    ] {
        for (column, span) in ["today", "week", "ever"].into_iter().enumerate() {
            let shown = told["figures"][row][column].as_str().unwrap().replace('\u{a0}', "");
            assert_eq!(shown, status["traffic"][span][name].to_string(), "{row} {span}: {told}");
        }
    }
    assert!(status["traffic"]["ever"]["hits"].as_u64() > Some(90_000), "{status}");
    assert!(status["store"]["days_to_full"].is_null(), "nearly nothing is in this store: {status}");
}
