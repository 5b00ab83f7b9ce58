//! A configuration that changes while the cache runs: what may change does at once, what is wrong
//! changes nothing, and the rest is named.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::made::{self, Made, MadeCache};
use crate::world::{Settings, Snowberry, until};
use crate::{LIMIT, Lab};

/// A configuration file that can be written anew.
struct File {
    _folder: TempDir,
    path: PathBuf,
}

impl File {
    fn new(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let file = Self { path: folder.path().join("snowberry.toml"), _folder: folder };
        file.says(text);
        file
    }

    fn says(&self, text: &str) {
        fs::write(&self.path, text).unwrap();
    }

    fn settings(&self) -> Settings {
        Settings::new().file(&self.path)
    }
}

/// `snowberry reload`.
fn reload(snowberry: &Snowberry) -> Output {
    let state = format!("state-dir={:?}", snowberry.state().display().to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_snowberry"));
    // What is wrong in the file is for the running cache to tell.
    command.args(["reload", "--config", "/dev/null", "--set", &state]);
    command.output().unwrap()
}

#[track_caller]
fn reloads(snowberry: &Snowberry) -> String {
    let told = reload(snowberry);
    assert!(told.status.success(), "{told:?}");
    String::from_utf8(told.stdout).unwrap()
}

fn signed(url: &str, more: &str) -> String {
    let key = made::public_key();
    format!("[[upstream]]\nurl = {url:?}\ntrusted-public-keys = [{key:?}]\n{more}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_added_is_asked_at_once_and_one_that_is_gone_no_more() {
    let (one, two) = (Made::noise("reload-one", 5000), Made::noise("reload-two", 5000));
    let (first, second) = (MadeCache::of([&one]), MadeCache::of([&two]));
    let file = File::new(&signed(&first.file_url(), ""));
    let lab = Lab::with(file.settings()).await;
    lab.snowberry.ready().await;
    assert!(lab.narinfo(&one).await.is_some());
    assert!(lab.narinfo(&two).await.is_none(), "nobody has it yet, which is remembered");

    file.says(&(signed(&first.file_url(), "") + &signed(&second.file_url(), "")));
    assert_eq!(reloads(&lab.snowberry), "changed: upstream\n");
    assert!(lab.narinfo(&two).await.is_some());
    assert_eq!(lab.get(&two.nar_url()).await.status, 200);

    let nothing = reloads(&lab.snowberry);
    assert_eq!(nothing, "nothing has changed that may change while it runs\n");

    file.says("upstream = []\n");
    let pid = lab.snowberry.pid().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    lab.snowberry.log_line(&["read the configuration again", "upstream"], LIMIT).await;
    until("no upstream", LIMIT, || async {
        let status = lab.snowberry.status().await;
        status["upstreams"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    assert!(lab.is_held(&two).await, "what came stays");
    let metrics = lab.get("/metrics").await;
    assert!(!metrics.text().contains("snowberry_upstream_up{"), "{}", metrics.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_wrong_changes_nothing_and_says_all_that_is_wrong() {
    let made = Made::noise("reload-wrong", 5000);
    let cache = MadeCache::of([&made]);
    let file = File::new("upstream = []\n");
    let lab = Lab::with(file.settings()).await;
    lab.snowberry.ready().await;
    let good = signed(&cache.file_url(), "");
    for (wrong, told) in [
        (format!("{good}\nlimit = \"1 KiB\"\n"), &["limit is less than"][..]),
        (format!("nonsense = 1\n{good}"), &["nonsense"]),
        (
            format!("{good}[[upstream]]\nurl = \"https://no.keys.example\"\n"),
            &["trusted-public-keys"],
        ),
        ("listen = [".to_owned(), &["snowberry.toml"]),
    ] {
        file.says(&wrong);
        let refused = reload(&lab.snowberry);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(told.iter().all(|word| said.contains(word)), "{said}");
        assert!(lab.narinfo(&made).await.is_none(), "half of it was taken: {wrong}");
    }
    fs::remove_file(&file.path).unwrap();
    let pid = lab.snowberry.pid().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    lab.snowberry
        .log_line(&["the configuration is wrong, nothing was changed", "toml"], LIMIT)
        .await;
    file.says(&good);
    reloads(&lab.snowberry);
    assert!(lab.narinfo(&made).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_named_and_waits_for_it() {
    let file = File::new("upstream = []\n");
    let lab = Lab::with(file.settings()).await;
    lab.snowberry.ready().await;
    file.says(
        "upstream = []\nname = \"attic\"\n[store]\nbudget = \"3 GiB\"\n[push]\nlimit = \"1 MiB\"\n",
    );
    for _ in 0..2 {
        let told = reloads(&lab.snowberry);
        assert!(told.contains("needs a restart: name, store"), "{told}");
    }
    assert_eq!(lab.snowberry.status().await["name"], "snowberry");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_target_comes_changes_and_goes() {
    let file = File::new("upstream = []\n");
    let lab = Lab::with(file.settings()).await;
    lab.snowberry.ready().await;
    let folder = |n: &str| {
        let folder = TempDir::with_prefix(n).unwrap();
        fs::write(folder.path().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
        folder
    };
    let (stick, disk) = (folder("stick"), folder("disk"));
    let target = |folder: &TempDir| {
        let url = format!("file://{}", folder.path().display());
        format!("[[upstream]]\nurl = {url:?}\nunsigned = true\npush = true\n")
    };
    let has = |folder: &TempDir, made: &Made| {
        folder.path().join(made.narinfo_url().trim_start_matches('/')).exists()
    };

    file.says(&target(&stick));
    assert_eq!(reloads(&lab.snowberry), "changed: upstream\n");
    let one = Made::noise("reload-pushed-one", 50_000);
    lab.push(&one).await;
    lab.drained().await;
    assert!(has(&stick, &one));

    // The target that stays keeps its count; the bound changes beside it.
    file.says(&format!("{}{}[push]\nlimit = \"1 MiB\"\n", target(&stick), target(&disk)));
    assert_eq!(reloads(&lab.snowberry), "changed: upstream, push.limit\n");
    let two = Made::noise("reload-pushed-two", 50_000);
    lab.push(&two).await;
    lab.drained().await;
    assert!(has(&stick, &two) && has(&disk, &two) && !has(&disk, &one));
    let status = lab.snowberry.status().await;
    let targets = status["queue"]["targets"].as_array().unwrap();
    let pushed: Vec<u64> = targets.iter().map(|it| it["pushed"].as_u64().unwrap()).collect();
    assert_eq!(pushed, [2, 1], "{status}");

    // One that is unplugged and then taken out keeps its rows, and shows them.
    fs::rename(disk.path().join("nix-cache-info"), disk.path().join("away")).unwrap();
    let three = Made::noise("reload-pushed-three", 50_000);
    lab.push(&three).await;
    file.says(&target(&stick));
    reloads(&lab.snowberry);
    until("the row of a target that is gone", LIMIT, || async {
        let status = lab.snowberry.status().await;
        let targets = status["queue"]["targets"].as_array().unwrap().clone();
        let gone = targets.iter().find(|it| it["state"] == "gone");
        let rows = targets.iter().map(|it| it["waiting"].as_u64().unwrap()).sum::<u64>();
        (gone.is_some_and(|gone| gone["waiting"] == 1) && rows == 1).then_some(())
    })
    .await;
    assert!(has(&stick, &three));

    // Mended and back, it is carried on.
    fs::rename(disk.path().join("away"), disk.path().join("nix-cache-info")).unwrap();
    file.says(&(target(&stick) + &target(&disk)));
    reloads(&lab.snowberry);
    lab.drained().await;
    assert!(has(&disk, &three));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_has_its_bound_and_another_one_after_a_reload() {
    let slow = Made::noise("reload-slow", 300_000).packed(snowberry::nix::Compression::Zstd);
    let quick = Made::noise("reload-quick", 300_000).packed(snowberry::nix::Compression::Zstd);
    let cache = MadeCache::of([&slow, &quick]);
    let file = File::new(&signed(&cache.file_url(), "limit = \"100 KiB\""));
    let lab = Lab::with(file.settings()).await;
    lab.snowberry.ready().await;
    let fetch = async |made: &Made| {
        assert!(lab.narinfo(made).await.is_some());
        let began = Instant::now();
        let answer = lab.get(&made.nar_url()).await;
        assert_eq!((answer.status, answer.whole), (200, true));
        assert!(made.is_in(&answer.body));
        began.elapsed()
    };
    // The last piece is handed out before it is paid for.
    let at_least = Duration::from_millis(2500);
    let took = fetch(&slow).await;
    assert!(took >= at_least, "{took:?}");
    file.says(&signed(&cache.file_url(), ""));
    assert_eq!(reloads(&lab.snowberry), "changed: upstream\n");
    fetch(&quick).await;
}
