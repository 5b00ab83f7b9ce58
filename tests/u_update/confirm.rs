//! A version on trial, watched with a running `snowberry serve`: it stays when all is well, and goes
//! with its reason when the cache, its store or the network is not.

use std::fs;
use std::time::Duration;

use serde_json::json;
use snowberry::appliance::Slot;

use super::card::{Card, FIRST, NEXT, Restart, Update};
use super::commands::{run, told};
use super::world::{Settings, Snowberry, until};

/// Less than a minute and ten of them, or nobody would run these tests.
const SHORT: [&str; 5] = ["--confirm", "--well-for", "1 s", "--within", "1 s"];

const LIMIT: Duration = Duration::from_secs(30);

/// The next version is installed and runs on trial; a cache runs beside it and reads the notes.
async fn on_trial(settings: Settings) -> (Card, Snowberry) {
    let mut card = Card::new();
    assert!(run(&card, &["--confirm"]).await.status.success());
    let file = card.put(&Update::new(NEXT)).display().to_string();
    let done = run(&card, &[&file]).await;
    assert!(done.status.success(), "{}", told(&done));
    assert_eq!(card.boot(Restart::Tryboot), (Slot::B, NEXT.to_owned()));
    let notes = format!("appliance.notes={:?}", card.layout.notes.display().to_string());
    let snowberry = settings.set(&notes).start().await;
    snowberry.ready().await;
    card.layout.health = snowberry.address.to_string();
    card.write_layout();
    (card, snowberry)
}

/// What comes of a trial that goes.
async fn goes(mut card: Card, why: &str) {
    let done = run(&card, &SHORT).await;
    let text = told(&done);
    assert!(done.status.code() == Some(1) && text.contains(why), "{text}\n{why}");
    assert_eq!(card.boot(Restart::Plain), (Slot::A, FIRST.to_owned()));
    assert!(run(&card, &["--confirm"]).await.status.success());
    let note = card.read("notes/update.toml");
    for words in ["state = \"rolled-back\"", "0.2.0 was tried and did not stay", why] {
        assert!(note.contains(words), "{words}: {note}");
    }
}

#[tokio::test]
async fn a_version_that_is_well_stays_and_status_and_page_say_each_step() {
    let (mut card, snowberry) = on_trial(Settings::new()).await;
    // Nothing was told since the boot.
    let status = snowberry.status().await;
    assert_eq!(status["appliance"]["slot"], json!(null), "{status}");
    let confirming = run(&card, &SHORT);
    let watched = until("a trial in the status", LIMIT, || async {
        let status = snowberry.status().await;
        (status["appliance"]["trial"] == true).then_some(status)
    });
    let (done, status) = tokio::join!(confirming, watched);
    assert!(done.status.success() && told(&done).contains("0.2.0 stays"), "{}", told(&done));
    let appliance = &status["appliance"];
    assert_eq!((&appliance["state"], &appliance["slot"]), (&json!("confirming"), &json!("b")));
    assert_eq!(appliance["version"], NEXT);
    let status = snowberry.status().await;
    assert_eq!(status["appliance"]["trial"], false, "{status}");
    assert_eq!(status["appliance"]["state"], "idle");
    let page = snowberry.client().get("/").await;
    assert!(page.text().contains("image 0.2.0 in slot b"), "{}", page.text());
    assert_eq!(card.boot(Restart::Plain), (Slot::B, NEXT.to_owned()));
    assert!(run(&card, &["--confirm"]).await.status.success());
    assert!(!card.path("boot/tryboot.txt").exists());
    // And back by hand, with the same proof.
    let back = run(&card, &["--rollback"]).await;
    assert!(back.status.success(), "{}", told(&back));
    assert_eq!(card.boot(Restart::Tryboot), (Slot::A, FIRST.to_owned()));
    let done = run(&card, &SHORT).await;
    assert!(done.status.success() && told(&done).contains("0.1.0 stays"), "{}", told(&done));
    assert_eq!(card.boot(Restart::Plain), (Slot::A, FIRST.to_owned()));
}

#[tokio::test]
async fn a_cache_that_does_not_answer_goes() {
    let (card, snowberry) = on_trial(Settings::new()).await;
    drop(snowberry);
    goes(card, "the cache does not answer").await;
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_goes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("index.redb"), "no index").unwrap();
    let store = format!("store.path={:?}", folder.path().display().to_string());
    let (card, _snowberry) = on_trial(Settings::new().set(&store)).await;
    goes(card, "degraded").await;
}

#[tokio::test]
async fn a_network_that_is_gone_goes() {
    let (card, _snowberry) = on_trial(Settings::new()).await;
    let head = card.read("proc/net/route").lines().next().unwrap().to_owned() + "\n";
    let local = "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
    fs::write(card.path("proc/net/route"), head + local).unwrap();
    goes(card, "no default route, which the version before had").await;
}

#[tokio::test]
async fn a_cache_on_trial_knows_it_before_it_opens_its_store() {
    let card = Card::new();
    let note = "slot = \"b\"\nversion = \"0.2.0\"\ntrial = true\nstate = \"confirming\"\n";
    fs::write(card.path("notes/update.toml"), note).unwrap();
    let notes = format!("appliance.notes={:?}", card.layout.notes.display().to_string());
    let snowberry = Settings::new().set(&notes).start().await;
    snowberry.log_line(&["runs on trial", "left as it is"], LIMIT).await;
    // A store of the same format is used as ever.
    let health = snowberry.client().get("/healthz").await;
    assert_eq!(health.text(), "ok\n");
}
