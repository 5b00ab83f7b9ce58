//! The built `snowberry update`, as a person or the timer runs it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use snowberry::appliance::Slot;

use super::card::{Card, FIRST, NEXT, Restart, Update};
use super::world::nginx::Nginx;
use super::world::{Fault, Scripted, until};

/// A line or a process that does nothing for so long hangs.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn command(card: &Card, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snowberry"));
    command.args(["update", "--no-reboot", "--appliance"]).arg(card.path("appliance.toml"));
    command.arg("--proc").arg(card.path("proc")).args(arguments);
    command.env("SNOWBERRY_CONFIG", "/dev/null").env("HOME", card.path("home"));
    command.stdin(Stdio::null());
    command
}

pub(crate) async fn run(card: &Card, arguments: &[&str]) -> Output {
    let mut command = command(card, arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

pub(crate) fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn set_url(url: &str) -> String {
    format!("update.url={url:?}")
}

fn publish(version: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Update::new(version).publish(folder.path());
    folder
}

#[tokio::test]
async fn a_server_over_tls_is_checked_fetched_from_and_gone_on_with_after_a_kill() {
    let mut card = Card::new();
    let published = publish(NEXT);
    let Some(nginx) = Nginx::serve(published.path()).await else { return };
    let url = set_url(&format!("https://localhost:{}/", nginx.port));
    let ca = format!("update.ca-file={:?}", nginx.ca.display().to_string());
    let checked = run(&card, &["--check", "--set", &url, "--set", &ca]).await;
    assert!(checked.status.success(), "{}", told(&checked));
    for words in ["slot a: 0.1.0, which runs", "slot b: nothing", "0.2.0, can be installed"] {
        assert!(told(&checked).contains(words), "{words}: {}", told(&checked));
    }
    // Slow enough to be killed on its way.
    let slow = ["--set", &url, "--set", &ca, "--set", "update.limit=\"100 KiB\""];
    let mut child = command(&card, &slow).stderr(Stdio::null()).spawn().unwrap();
    let download = card.path("data/update/download");
    until("a part of the download", LIMIT, || async {
        let len = download.metadata().map_or(0, |about| about.len());
        (len > 50_000).then_some(())
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(card.boots(Restart::Plain), Some((Slot::A, FIRST.to_owned())));
    let done = run(&card, &["--set", &url, "--set", &ca]).await;
    assert!(done.status.success(), "{}", told(&done));
    assert!(told(&done).contains("0.2.0 is in slot b"), "{}", told(&done));
    let log = nginx.log();
    assert!(log.contains(" 206 /snowberry-0.2.0"), "{log}");
    assert!(!download.exists(), "what was installed takes no more room");
    assert_eq!(card.boot(Restart::Tryboot), (Slot::B, NEXT.to_owned()));
    // It runs: nothing newer is there.
    card.boot(Restart::Plain);
}

#[tokio::test]
async fn a_line_that_is_cut_does_not_stop_the_command() {
    let card = Card::new();
    let published = publish(NEXT);
    let scripted = Scripted::serve(published.path()).await;
    scripted.fault(".update", Fault::Cut(200_000));
    let done = run(&card, &["--set", &set_url(&scripted.url())]).await;
    assert!(done.status.success(), "{}", told(&done));
    assert!(scripted.ranges().len() >= 2);
    assert_eq!(card.boots(Restart::Tryboot), Some((Slot::B, NEXT.to_owned())));
    // Lines of a log, not of a terminal, and not one for each piece.
    let lines = told(&done).lines().filter(|line| line.starts_with("fetch: ")).count();
    assert!((3..=12).contains(&lines), "{}", told(&done));
}

#[tokio::test]
async fn the_timer_does_nothing_without_a_url_and_asks_nobody() {
    let card = Card::new();
    fs::remove_file(card.path("appliance.toml")).unwrap();
    let done = run(&card, &["--if-configured"]).await;
    assert!(done.status.success() && told(&done).is_empty(), "{}", told(&done));
}

#[tokio::test]
async fn the_timer_leaves_out_what_failed_and_what_could_not_be_confirmed() {
    let card = Card::new();
    let published = publish(NEXT);
    let scripted = Scripted::serve(published.path()).await;
    let url = set_url(&scripted.url());
    // Nobody answers at /healthz.
    let done = run(&card, &["--if-configured", "--set", &url]).await;
    assert!(
        !done.status.success() && told(&done).contains("while all is not well"),
        "{}",
        told(&done)
    );
    assert_eq!(scripted.asked(".update"), 0);
    let status = fs::read_to_string(card.path("notes/update.toml")).unwrap();
    assert!(status.contains("state = \"failed\""), "{status}");
    let folder = card.machine().folder().unwrap();
    folder.change(|record| record.refuse(super::card::version(NEXT))).unwrap();
    let done = run(&card, &["--if-configured", "--set", &url]).await;
    assert!(done.status.success() && told(&done).contains("left out"), "{}", told(&done));
    assert_eq!(scripted.asked(".update"), 0);
}

#[tokio::test]
async fn a_server_is_never_followed_back() {
    let card = Card::new();
    for version in [FIRST, "0.0.9"] {
        let published = publish(version);
        let scripted = Scripted::serve(published.path()).await;
        let done = run(&card, &["--set", &set_url(&scripted.url())]).await;
        assert!(done.status.success(), "{}", told(&done));
        assert!(told(&done).contains(&format!("0.1.0 runs, the server has {version}")));
        assert_eq!(scripted.asked(".update"), 0);
    }
    assert!(!card.path("boot/b").exists());
}

#[tokio::test]
async fn a_file_is_installed_and_errors_say_what_is_wrong() {
    let card = Card::new();
    let refused = async |arguments: &[&str], code: i32, words: &str| {
        let done = run(&card, arguments).await;
        let told = told(&done);
        assert!(done.status.code() == Some(code) && told.contains(words), "{told}\n{words}");
    };
    let file = |version: &str| card.put(&Update::new(version)).display().to_string();
    let (next, same) = (file(NEXT), file(FIRST));
    refused(&[], 1, "no update.url is configured").await;
    refused(&["/nonexistent"], 1, "open the update /nonexistent").await;
    refused(&[&same], 1, "is not newer than 0.1.0").await;
    refused(&["--rollback"], 1, "slot b holds no version that was confirmed before").await;
    refused(&["--allow-downgrade"], 2, "FILE").await;
    refused(&["--rollback", "--confirm"], 2, "cannot be used with").await;
    refused(&["--if-configured", &next], 2, "cannot be used with").await;
    let torn = card.path("torn.update");
    fs::write(&torn, &fs::read(Path::new(&next)).unwrap()[..5000]).unwrap();
    refused(&[torn.to_str().unwrap()], 1, "cut short").await;
    let checked = run(&card, &["--check", &same]).await;
    assert!(checked.status.success() && told(&checked).contains("not to be installed"));
    // While another is at work nothing is touched.
    let lock = fs::File::create(card.path("data/update/lock")).unwrap();
    lock.lock().unwrap();
    refused(&[&next], 1, "another `snowberry update` is at work").await;
    drop(lock);
    let done = run(&card, &[&next]).await;
    assert!(done.status.success() && told(&done).contains("0 tryboot"), "{}", told(&done));
    assert_eq!(card.boots(Restart::Tryboot), Some((Slot::B, NEXT.to_owned())));
    let status = fs::read_to_string(card.path("notes/update.toml")).unwrap();
    assert!(status.contains("state = \"installed\"") && status.contains("next = \"0.2.0\""));
}

#[tokio::test]
async fn the_boot_partition_is_writable_only_while_it_is_written() {
    let Some(unshare) = super::world::parts::program("unshare") else { return };
    let card = Card::new();
    let file = card.put(&Update::new(NEXT));
    let inner = command(&card, &[file.to_str().unwrap()]);
    // A file system of its own in the place of the boot folder, read-only as an appliance has it.
    let script = r#"set -e; boot=$1; shift
        cp -a "$boot" "$boot.flashed"; mount -t tmpfs none "$boot"; cp -a "$boot.flashed/." "$boot"
        mount -o remount,ro "$boot"
        "$@"
        if touch "$boot/x" 2>/dev/null; then exit 9; fi
        cp -a "$boot" "$boot.after""#;
    let mut outer = Command::new(unshare);
    outer.args(["--mount", "sh", "-c", script, "sh"]).arg(card.path("boot"));
    outer.arg(inner.get_program()).args(inner.get_args()).env("SNOWBERRY_CONFIG", "/dev/null");
    let done = tokio::task::spawn_blocking(move || outer.output().unwrap()).await.unwrap();
    assert!(done.status.success(), "{:?}: {}", done.status, told(&done));
    assert!(card.read("boot.after/tryboot.txt").contains("os_prefix=b/"));
    assert_eq!(card.read("boot.after/b/vmlinuz"), "kernel 0.2.0");
    assert!(!card.path("boot/b").exists());
}
