//! Targets that are folders: a disk beside the Pi, a stick that comes and goes.

use std::fs;

use snowberry::push::TargetState;
use tempfile::TempDir;

use crate::kit::{House, nar_key, narinfo_key, target};
use crate::made::Made;
use crate::small_closure;

const CACHE_INFO: &str = "StoreDir: /nix/store\n";

fn expect_all_there(folder: &TempDir, paths: &[Made]) {
    for made in paths {
        let nar = fs::read(folder.path().join(nar_key(made))).unwrap();
        assert!(made.is_in(&nar), "{}", made.store_path);
        assert!(folder.path().join(narinfo_key(made)).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stick_that_is_unplugged_gets_all_once_it_is_back() {
    let stick = TempDir::new().unwrap();
    let url = format!("file://{}", stick.path().display());
    let mut house = House::new(&[target(&url, "")]).await;
    let paths = small_closure("stick");
    house.accept(&paths[0]).await;
    house.run();
    let shown = house.shows("a stopped target", 0, |it| it.state == TargetState::Stopped).await;
    assert!(shown.last_error.unwrap().contains("is it mounted"));
    for made in &paths[1..] {
        house.accept(made).await;
    }
    assert_eq!(fs::read_dir(stick.path()).unwrap().count(), 0, "nothing is written beside it");
    fs::write(stick.path().join("nix-cache-info"), CACHE_INFO).unwrap();
    house.push.retry();
    house.drained(0).await;
    expect_all_there(&stick, &paths);
    house.shows("no trouble", 0, |it| it.state == TargetState::Idle).await;

    // Unplugged in between, and back by itself.
    fs::rename(stick.path().join("nix-cache-info"), stick.path().join("away")).unwrap();
    let more = small_closure("stick-2");
    for made in &more {
        house.accept(made).await;
    }
    house.push.retry();
    house.shows("a stopped target", 0, |it| it.state == TargetState::Stopped).await;
    fs::rename(stick.path().join("away"), stick.path().join("nix-cache-info")).unwrap();
    house.drained(0).await;
    expect_all_there(&stick, &more);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_configured_no_more_keeps_its_rows_until_they_are_forgotten() {
    let stick = TempDir::new().unwrap();
    let url = format!("file://{}", stick.path().display());
    let house = House::new(&[target(&url, "")]).await;
    house.accept(&Made::mixed("kept", 3_000)).await;
    let folder = house.stop().await;
    let mut house = House::on(&folder, &[], |_| {}).await;
    house.run();
    let [shown] = &house.push.status()[..] else { panic!("{:?}", house.push.status()) };
    assert_eq!((shown.state, shown.waiting, &shown.target), (TargetState::Gone, 1, &url));
    assert_eq!(house.push.forget(&url, false).await.unwrap(), 1);
    assert_eq!(house.push.status(), []);
}
