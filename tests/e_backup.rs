//! `backup` and `restore`, run as people run them: what waited goes on from another machine, keys
//! and tokens are the same, and what is damaged is refused before anything is changed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test stops at what it did not expect"
)]

mod made;
mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Method;
use made::Made;
use snowberry::nix::{NarInfo, StoreDir};
use snowberry::push::tokens::Tokens;
use tempfile::TempDir;
use world::s3::{Kind, S3Server};
use world::{NixClient, Release, Settings, Snowberry, until};

/// Some paths to a bucket on a busy machine.
const DRAIN_LIMIT: Duration = Duration::from_mins(1);

/// How a command ended.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Told {
    #[track_caller]
    fn well(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    #[track_caller]
    fn badly(self, words: &str) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.stderr.contains(words), "{words}: {self:?}");
    }
}

/// Backups, a passphrase, and a target that is not there.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("passphrase"), "correct horse battery\n").unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder that is no cache, so that everything waits for it.
    fn gone(&self) -> String {
        format!("file://{}", self.path("gone").display())
    }

    /// `backup` or `restore`, and the file, of the cache with this state directory and this push target.
    fn run(&self, what: [&str; 2], state: &Path, target: &str, more: &[&str]) -> Told {
        let [command, file] = what;
        let output = Command::new(env!("CARGO_BIN_EXE_snowberry"))
            .args([command, "--passphrase-file"])
            .arg(self.path("passphrase"))
            .arg("--appliance")
            .arg(self.path("no-appliance.toml"))
            .arg(self.path(file))
            .args(["--set", &format!("state-dir={:?}", state.display().to_string())])
            .args(["--set", &format!("upstream=[{target}]")])
            .args(more)
            .env("SNOWBERRY_CONFIG", "/dev/null")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Told { code: output.status.code(), stdout, stderr }
    }
}

fn table(target: &str, more: &str) -> String {
    format!("{{url={target:?}, trusted-public-keys=[{:?}], push=true{more}}}", made::public_key())
}

fn settings(target: &str, more: &str) -> Settings {
    Settings::new().upstream_with(target, &made::public_key(), &format!("push=true{more}"))
}

/// Two of one NAR, one of many rows, one that refers to others.
fn paths() -> Vec<Made> {
    let one = Made::mixed("backup-one", 20_000);
    let twin = one.twin("backup-twin");
    let large = Made::noise("backup-large", 3 << 20);
    let top = Made::mixed("backup-top", 900).referring_to(&[&one, &twin, &large]);
    vec![one, twin, large, top]
}

/// Longer than an answer of the admin socket.
fn long_log() -> String {
    "a line of a log\n".repeat(200_000)
}

fn authorization(state: &Path) -> String {
    let token = Tokens::new(state.join("tokens")).add("tester", [1; 20], 0).unwrap();
    format!("Basic {}", STANDARD.encode(format!("any:{token}")))
}

async fn push(snowberry: &Snowberry, authorization: &str, made: &Made) {
    let headers = [("authorization", authorization)];
    let narinfo = NarInfo { signatures: Vec::new(), ..made.narinfo() };
    let narinfo = narinfo.print(&StoreDir::default()).into_bytes();
    let nar_url = format!("/push/{}", made.file_url());
    for (url, body) in
        [(nar_url, made.file.clone()), (format!("/push{}", made.narinfo_url()), narinfo)]
    {
        let answer = snowberry.client().ask(Method::PUT, &url, &headers, body.into()).await;
        assert_eq!(answer.status, 200, "{url}: {answer:?}");
    }
}

/// A cache with paths that wait for a target that is not there.
async fn with_waiting(desk: &Desk) -> (Snowberry, String) {
    let snowberry = settings(&desk.gone(), "").start().await;
    snowberry.ready().await;
    let authorization = authorization(&snowberry.state());
    for made in paths() {
        push(&snowberry, &authorization, &made).await;
    }
    let headers = [("authorization", authorization.as_str())];
    let log = format!("/push/log/{}.drv", paths()[0].store_path.base_name());
    let answer = snowberry.client().ask(Method::PUT, &log, &headers, long_log().into()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(snowberry.figure("queue", "waiting").await, 5);
    (snowberry, authorization)
}

fn said(told: Told) -> serde_json::Value {
    serde_json::from_str(&told.well()).unwrap()
}

async fn drained(snowberry: &Snowberry) {
    until("an empty queue", DRAIN_LIMIT, || async {
        (snowberry.figure("queue", "waiting").await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_card_goes_on_where_the_old_one_stopped() {
    let desk = Desk::new();
    let (mut old, authorization) = with_waiting(&desk).await;
    let key = old.key().await;
    let gone = table(&desk.gone(), "");
    let running = said(desk.run(["backup", "running"], &old.state(), &gone, &["--json"]));
    assert!(old.stop().await.success());
    let stopped = said(desk.run(["backup", "stopped"], &old.state(), &gone, &["--json"]));
    for (name, said) in [("running", running), ("stopped", stopped)] {
        assert_eq!((&said["paths"], &said["documents"]), (&4.into(), &1.into()), "{said}");
        let mode = desk.path(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        assert!(!desk.path(&format!("{name}.new")).exists());
        let sealed = fs::read(desk.path(name)).unwrap();
        assert!(!sealed.windows(11).any(|it| it == b"backup-twin"), "it is not sealed");
    }
    // The card is lost, and there is a target.
    let stick = desk.path("stick");
    fs::create_dir(&stick).unwrap();
    fs::write(stick.join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    let target = format!("file://{}", stick.display());
    for name in ["running", "stopped"] {
        fs::remove_dir_all(old.state()).unwrap();
        let back =
            said(desk.run(["restore", name], &old.state(), &table(&target, ""), &["--json"]));
        assert_eq!((&back["paths"], &back["documents"]), (&4.into(), &1.into()), "{back}");
        assert_eq!(back["failed"], serde_json::json!([]));
    }
    old.restart_with(settings(&target, "")).await;
    old.ready().await;
    assert_eq!(old.key().await, key);
    push(&old, &authorization, &Made::mixed("backup-after", 2000)).await;
    drained(&old).await;
    for made in paths() {
        let narinfo = fs::read(stick.join(&made.narinfo_url()[1..])).unwrap();
        let narinfo = NarInfo::parse(&narinfo, &StoreDir::default()).unwrap();
        assert!(old.signed(&narinfo).await, "{}", made.store_path);
        assert_eq!(narinfo.nar_hash, made.nar_hash());
        assert!(made.is_in(&fs::read(stick.join(&narinfo.url)).unwrap()), "{}", made.store_path);
    }
    let log = stick.join(format!("log/{}.drv", paths()[0].store_path.base_name()));
    assert_eq!(fs::read_to_string(log).unwrap(), long_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_reaches_minio_from_a_new_card_and_nix_finds_every_path() {
    let Some(server) = S3Server::start(Kind::Minio).await else { return };
    let bucket = server.url("").replace("s3://nix-cache?endpoint=", "") + "/nix-cache";
    let desk = Desk::new();
    let (mut snowberry, _) = with_waiting(&desk).await;
    let key = snowberry.key().await.to_string();
    let Some(client) = NixClient::new(Release::Sid, &[&bucket], &key) else { return };
    desk.run(["backup", "b"], &snowberry.state(), &table(&desk.gone(), ""), &[]).well();
    assert!(snowberry.stop().await.success());
    fs::remove_dir_all(snowberry.state()).unwrap();
    let (url, more) = (server.url("nixbuilder"), format!(", {}", server.table("nixbuilder")));
    desk.run(["restore", "b"], &snowberry.state(), &table(&url, &more), &[]).well();
    snowberry.restart_with(settings(&url, &more)).await;
    drained(&snowberry).await;
    let ca = client.bring(&server.ca);
    let client = client.setting(&format!("ssl-cert-file = {}", ca.display()));
    let top = format!("/nix/store/{}", paths()[3].store_path.base_name());
    client.run(&["nix-store", "--realise", &top]).await.expect_success();
    let found = client.run(&["nix-store", "-qR", &top]).await;
    assert_eq!(found.expect_success().lines().count(), 4);
    client.run(&["nix-store", "--verify", "--check-contents"]).await.expect_success();
}

/// Every file below a folder with its content.
fn tree(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut open = vec![folder.to_path_buf()];
    let mut files = Vec::new();
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                files.push((path.clone(), fs::read(path).unwrap_or_default()));
            }
        }
    }
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_trusted_or_is_in_the_way_is_refused_before_anything_is_changed() {
    let desk = Desk::new();
    let (mut snowberry, _) = with_waiting(&desk).await;
    let (state, gone) = (snowberry.state(), table(&desk.gone(), ""));
    let left = said(desk.run(["backup", "light"], &state, &gone, &["--json", "--without-nars"]));
    let left: Vec<&str> =
        left["left_behind"].as_array().unwrap().iter().filter_map(|it| it.as_str()).collect();
    assert_eq!(left.len(), 5, "{left:?}");
    assert!(left.iter().any(|it| it.ends_with("-backup-top")), "{left:?}");
    desk.run(["backup", "whole"], &state, &gone, &[]).well();
    desk.run(["restore", "whole"], &state, &gone, &[]).badly("the cache is running");
    assert!(snowberry.stop().await.success());

    let whole = fs::read(desk.path("whole")).unwrap();
    fs::write(desk.path("cut"), &whole[..whole.len() - 9000]).unwrap();
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(desk.path("changed"), changed).unwrap();
    fs::write(desk.path("other"), b"PK\x03\x04 something else").unwrap();
    let empty = desk.path("empty-state");
    for file in ["cut", "changed"] {
        desk.run(["restore", file], &empty, &gone, &[]).badly("damaged or cut off");
    }
    desk.run(["restore", "other"], &empty, &gone, &[]).badly("this is no backup");
    desk.run(["restore", "none"], &empty, &gone, &[]).badly("none");
    fs::write(desk.path("passphrase"), "another passphrase\n").unwrap();
    desk.run(["restore", "whole"], &empty, &gone, &[]).badly("the passphrase is wrong");
    fs::write(desk.path("passphrase"), "short\n").unwrap();
    desk.run(["backup", "weak"], &state, &gone, &[]).badly("fewer than 8");
    assert!(!desk.path("weak").exists());
    fs::write(desk.path("passphrase"), "correct horse battery\n").unwrap();
    assert!(!empty.exists(), "something was made");

    // Another cache's keys are in the way; its own are not.
    let mut other = settings(&desk.gone(), "").start().await;
    other.ready().await;
    let others_key = other.key().await;
    assert!(other.stop().await.success());
    let before = tree(&other.state());
    let told = desk.run(["restore", "whole"], &other.state(), &gone, &[]);
    assert!(told.stderr.contains("secret-key"), "{told:?}");
    told.badly("nothing was changed");
    assert_eq!(tree(&other.state()), before);
    desk.run(["restore", "whole"], &state, &gone, &[]).well();
    desk.run(["restore", "light"], &other.state(), &gone, &["--force"]).well();
    other.restart_with(settings(&desk.gone(), "")).await;
    assert_ne!(other.key().await, others_key);
    assert_eq!(other.figure("queue", "waiting").await, 0);
}
