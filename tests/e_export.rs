//! `export` and `import`, run as people run them: what one cache has lies on a stick that Nix reads,
//! another cache takes it, and what is not trusted, damaged or half is named and left out.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test stops at what it did not expect"
)]

mod made;
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use made::{Made, MadeCache};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use snowberry::nix::{Compression, FileHash, NarInfo, SecretKey, StoreDir};
use tempfile::TempDir;
use world::{Closure, NixClient, Release, Scripted, Settings, Snowberry, until};

/// What begins within this time on a busy machine.
const BEGIN_LIMIT: Duration = Duration::from_mins(1);

/// How a command ended.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// The names of what was refused or left, and why.
    fn named(&self, list: &str) -> Vec<(String, String)> {
        let said = self.json();
        let text = |one: &Value, name: &str| one[name].as_str().unwrap().to_owned();
        let list = said[list].as_array().unwrap();
        list.iter().map(|one| (text(one, "path"), text(one, "why"))).collect()
    }
}

fn run(command: &mut Command) -> Told {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    Told { code: output.status.code(), stdout, stderr }
}

fn snowberry_command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snowberry"));
    command.args(args).env("SNOWBERRY_CONFIG", "/dev/null").env("HOME", "/nonexistent");
    command
}

fn export_command(from: &Snowberry, paths: &[&str], to: &Path) -> Command {
    let mut command = snowberry_command(&["export", "--json", "--quiet", "--url", &from.url()]);
    command.arg("--to").arg(to).args(paths);
    command
}

fn export(from: &Snowberry, paths: &[&str], to: &Path) -> Told {
    run(&mut export_command(from, paths, to))
}

fn import(into: &Snowberry, dir: &Path, more: &[&str]) -> Told {
    let state = format!("state-dir={:?}", into.state().display().to_string());
    let mut command = snowberry_command(&["import", "--json", "--quiet", "--set", &state]);
    run(command.arg(dir).args(more))
}

fn path_of(made: &Made) -> String {
    format!("/nix/store/{}", made.store_path.base_name())
}

/// A small closure: two of one NAR, a large one, one that refers to them.
fn closure() -> [Made; 4] {
    let lib = Made::mixed("export-lib", 30_000);
    let twin = lib.twin("export-twin").referring_to(&[&lib]);
    let large = Made::noise("export-large", 3 << 20);
    let app = Made::mixed("export-app", 900).referring_to(&[&lib, &twin, &large]);
    [lib, twin, large, app]
}

/// A cache whose only upstream is away.
async fn alone() -> Snowberry {
    let cache = MadeCache::of([]);
    let upstream = Scripted::serve(cache.root()).await;
    upstream.refuse();
    let snowberry = Settings::new().upstream(&upstream.url(), &made::public_key()).start().await;
    snowberry.ready().await;
    snowberry
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn on_stick(stick: &Path, made: &Made) -> Option<NarInfo> {
    let text = fs::read(stick.join(&made.narinfo_url()[1..])).ok()?;
    Some(NarInfo::parse(&text, &StoreDir::default()).unwrap())
}

/// Every narinfo on the stick is whole, with its NAR and all that it refers to.
fn check_stick(stick: &Path, paths: &[Made]) -> usize {
    let mut count = 0;
    for made in paths {
        let Some(narinfo) = on_stick(stick, made) else { continue };
        count += 1;
        assert_eq!(narinfo.signatures, made.narinfo().signatures);
        let file = fs::read(stick.join(&narinfo.url)).unwrap();
        assert_eq!(narinfo.compression, Compression::Zstd);
        assert_eq!(narinfo.file_size, Some(u64::try_from(file.len()).unwrap()));
        let file_hash = FileHash::from_bytes(Sha256::digest(&file).into());
        assert_eq!(narinfo.file_hash, Some(file_hash));
        assert_eq!(narinfo.url, format!("nar/{}.nar.zst", file_hash.to_nix32()));
        assert!(made.is_in(&file), "{}", made.store_path);
        for reference in &narinfo.references {
            assert!(stick.join(format!("{}.narinfo", reference.hash())).exists(), "{reference}");
        }
    }
    let strange = |name: &&String| name.starts_with('.');
    assert_eq!(names(stick).iter().filter(strange).count(), 0, "{:?}", names(stick));
    count
}

async fn serves(snowberry: &Snowberry, made: &Made) -> bool {
    let Some(narinfo) = snowberry.parsed_narinfo(&made.narinfo_url()).await else { return false };
    assert_eq!(narinfo.signatures, made.narinfo().signatures);
    let nar = snowberry.client().get(&made.nar_url()).await;
    assert!(nar.status == 200 && nar.whole && made.is_in(&nar.body), "{nar:?}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_exports_another_imports_and_both_go_on_where_they_were() {
    let paths = closure();
    let cache = MadeCache::of(&paths);
    let upstream = Scripted::serve(cache.root()).await;
    let from = Settings::new().upstream(&upstream.url(), &made::public_key()).start().await;
    let folder = TempDir::new().unwrap();
    let stick = folder.path().join("stick");
    // Nothing is held yet: each is a miss there.
    let told = export(&from, &[&path_of(&paths[3])], &stick);
    assert_eq!((told.code, &told.json()["copied"]), (Some(0), &4.into()), "{told:?}");
    assert_eq!(check_stick(&stick, &paths), 4);
    assert_eq!(names(&stick.join("nar")).len(), 3, "twins share their file");
    let told = export(&from, &[&format!("{}/bin", path_of(&paths[3]))], &stick);
    assert_eq!((&told.json()["copied"], &told.json()["there"]), (&0.into(), &4.into()), "{told:?}");
    // A file that is damaged, one that ends early and one that is gone are copied again.
    let file = |made: &Made| stick.join(&on_stick(&stick, made).unwrap().url);
    let mut bytes = fs::read(file(&paths[2])).unwrap();
    bytes[70_000] ^= 4;
    fs::write(file(&paths[2]), bytes).unwrap();
    fs::write(file(&paths[0]), b"half").unwrap();
    fs::remove_file(file(&paths[3])).unwrap();
    fs::write(stick.join("nar/.snowberry-export-0123456789abcdef"), b"left").unwrap();
    let told = export(&from, &[&path_of(&paths[3])], &stick);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(check_stick(&stick, &paths), 4);
    assert_eq!(names(&stick.join("nar")).len(), 3);

    let into = alone().await;
    let told = import(&into, &stick, &[&path_of(&paths[1])]);
    assert_eq!((told.code, &told.json()["taken"]), (Some(0), &2.into()), "{told:?}");
    assert!(serves(&into, &paths[1]).await && serves(&into, &paths[0]).await);
    assert!(!serves(&into, &paths[3]).await);
    let told = import(&into, &stick, &[]);
    let said = told.json();
    assert_eq!((&said["taken"], &said["there"]), (&2.into(), &2.into()), "{said}");
    assert_eq!((told.code, &said["missing_count"]), (Some(0), &0.into()), "{said}");
    for made in &paths {
        assert!(serves(&into, made).await, "{}", made.store_path);
    }
    assert_eq!(into.figure("queue", "waiting").await, 0);
    // It is there after a kill: the command ended only when it was durable.
    let mut into = into;
    into.kill();
    into.restart().await;
    for made in &paths {
        assert!(serves(&into, made).await, "{}", made.store_path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_to_be_had_is_named_and_nothing_lies_there_without_its_references() {
    let [lib, twin, large, app] = closure();
    let cache = MadeCache::of([&twin, &large, &app]);
    let upstream = Scripted::serve(cache.root()).await;
    let mut from = Settings::new().upstream(&upstream.url(), &made::public_key()).start().await;
    let folder = TempDir::new().unwrap();
    let stick = folder.path().join("stick");
    let told = export(&from, &[&path_of(&app), &path_of(&large)], &stick);
    assert_eq!(told.code, Some(1), "{told:?}");
    let left: Vec<String> = told.named("left").into_iter().map(|(path, _)| path).collect();
    assert_eq!(left, [path_of(&lib), path_of(&twin), path_of(&app)]);
    let paths = [lib, twin, large, app];
    assert_eq!(check_stick(&stick, &paths), 1);
    cache.add(&paths[0]);
    // Absence is remembered for a minute, by this process.
    assert!(from.stop().await.success());
    from.restart().await;
    let told = export(&from, &[&path_of(&paths[3])], &stick);
    assert_eq!((told.code, &told.json()["copied"]), (Some(0), &3.into()), "{told:?}");
    assert_eq!(check_stick(&stick, &paths), 4);
    // A path that is there with another NAR is left as it is.
    let other = Made::mixed("export-other", 70);
    let text = on_stick(&stick, &paths[0]).unwrap();
    let other = NarInfo { nar_hash: other.nar_hash(), ..text }.print(&StoreDir::default());
    let narinfo = stick.join(&paths[0].narinfo_url()[1..]);
    fs::write(&narinfo, &other).unwrap();
    let told = export(&from, &[&path_of(&paths[0])], &stick);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.named("left")[0].1.contains("another NAR"), "{told:?}");
    assert_eq!(fs::read_to_string(narinfo).unwrap(), other);
}

/// A file system of its own in memory, unmounted when dropped.
struct SmallStick(TempDir);

impl SmallStick {
    fn new(size: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", size, "snowberry-test"]).arg(folder.path());
        assert!(mount.status().unwrap().success(), "mount: these tests run as root");
        Self(folder)
    }
}

impl Drop for SmallStick {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0.path()).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stick_that_is_full_or_an_export_that_is_killed_leaves_nothing_half() {
    let paths = closure();
    let cache = MadeCache::of(&paths);
    let upstream = Scripted::serve(cache.root()).await;
    let from = Settings::new().upstream(&upstream.url(), &made::public_key()).start().await;
    let small = SmallStick::new("size=1500k");
    let stick = small.0.path().join("cache");
    let told = export(&from, &[&path_of(&paths[3])], &stick);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.stderr.contains("No space left on device"), "{told:?}");
    assert!(told.stderr.contains("is there room for it?"), "{told:?}");
    let here = check_stick(&stick, &paths);
    assert!(here < 4 && !names(&stick.join("nar")).iter().any(|name| name.starts_with('.')));
    let told = export(&from, &[&path_of(&paths[3])], Path::new("/nonexistent/stick"));
    assert_eq!(told.code, Some(1));
    assert!(told.stderr.contains("is the stick mounted?"), "{told:?}");

    // Killed while its largest file is on the way.
    let folder = TempDir::new().unwrap();
    let stick = folder.path().join("stick");
    let huge = Made::noise("export-huge", 24 << 20).packed(Compression::Zstd);
    cache.add(&huge);
    let mut killed = false;
    for _ in 0..20 {
        drop(fs::remove_dir_all(&stick));
        let mut child = export_command(&from, &[&path_of(&huge)], &stick);
        let child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let child = std::cell::RefCell::new(child);
        let is_half = || {
            let nars: Vec<PathBuf> = fs::read_dir(stick.join("nar"))
                .map(|nars| nars.map(|entry| entry.unwrap().path()).collect())
                .unwrap_or_default();
            nars.iter().any(|path| path.metadata().is_ok_and(|metadata| metadata.len() > 0))
        };
        until("a file on its way", BEGIN_LIMIT, || async {
            let has_ended = child.borrow_mut().try_wait().unwrap().is_some();
            (has_ended || is_half()).then_some(())
        })
        .await;
        let mut child = child.into_inner();
        drop(child.kill());
        drop(child.wait());
        killed = on_stick(&stick, &huge).is_none();
        if killed {
            break;
        }
    }
    assert!(killed, "no export was ever killed in its middle");
    for name in names(&stick.join("nar")).iter().filter(|name| !name.starts_with('.')) {
        let sum: [u8; 32] = Sha256::digest(fs::read(stick.join("nar").join(name)).unwrap()).into();
        assert!(name.starts_with(&FileHash::from_bytes(sum).to_nix32()), "{name} is half");
    }
    let told = export(&from, &[&path_of(&huge)], &stick);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(check_stick(&stick, std::slice::from_ref(&huge)), 1);
    assert_eq!(names(&stick.join("nar")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_trusted_or_is_damaged_is_named_and_the_rest_is_taken() {
    let others = SecretKey::from_seed("others-1", [3; 32]).unwrap();
    let good = Made::mixed("good", 5000);
    let by_other = Made::mixed("by-other", 5000);
    let unsigned = Made::mixed("unsigned", 5000);
    let wrong = Made::mixed("wrong", 200_000).packed(Compression::Zstd);
    let short = Made::noise("short", 400_000);
    let gone = Made::mixed("gone", 5000);
    let absent = Made::mixed("absent", 5000);
    let refers = Made::mixed("refers", 700).referring_to(&[&good, &absent]);
    let all = [&good, &by_other, &unsigned, &wrong, &short, &gone, &refers];
    let stick = MadeCache::of(all);
    let write = |made: &Made, narinfo: &NarInfo| {
        let text = narinfo.print(&StoreDir::default());
        fs::write(stick.path(&made.narinfo_url()), text).unwrap();
    };
    let fingerprint = by_other.narinfo().fingerprint(&StoreDir::default());
    let signatures = vec![others.sign(&fingerprint)];
    write(&by_other, &NarInfo { signatures, ..by_other.narinfo() });
    write(&unsigned, &NarInfo { signatures: Vec::new(), ..unsigned.narinfo() });
    let another = Made::mixed("another", 200_000).packed(Compression::Zstd);
    fs::write(stick.path(&wrong.file_url()), &another.file).unwrap();
    fs::write(stick.path(&short.file_url()), &short.file[..300_000]).unwrap();
    stick.remove_nar(&gone);
    let garbage = "00000000000000000000000000000000.narinfo";
    fs::write(stick.path(garbage), "this is no narinfo\n").unwrap();

    let into = alone().await;
    let told = import(&into, stick.root(), &[]);
    assert_eq!(told.code, Some(1), "{told:?}");
    let said = told.json();
    assert_eq!((&said["taken"], &said["refused_count"]), (&2.into(), &6.into()), "{said}");
    assert_eq!(said["missing"], serde_json::json!([absent.store_path.base_name()]));
    let refused = told.named("refused");
    for (name, why) in [
        (by_other.store_path_hash().to_string(), "no trusted key signed it"),
        (unsigned.store_path_hash().to_string(), "no trusted key signed it"),
        (wrong.store_path_hash().to_string(), "not the one that was signed"),
        (short.store_path_hash().to_string(), "ends early"),
        (gone.store_path_hash().to_string(), "missing"),
        ("0".repeat(32), "no valid narinfo"),
    ] {
        let is_named = |(path, said): &(String, String)| *path == name && said.contains(why);
        assert!(refused.iter().any(is_named), "{name} {why}: {refused:?}");
    }
    for made in [&good, &refers] {
        assert!(serves(&into, made).await, "{}", made.store_path);
    }
    for made in [&by_other, &unsigned, &wrong, &short, &gone] {
        assert_eq!(into.client().get(&made.nar_url()).await.status, 404, "{}", made.store_path);
        assert!(into.parsed_narinfo(&made.narinfo_url()).await.is_none(), "{}", made.store_path);
    }
    // What was mended is taken at once, and another's key counts when it is named.
    for made in [&wrong, &short, &gone] {
        stick.add(made);
    }
    let key = others.public().to_string();
    let told = import(&into, stick.root(), &["--trusted-public-keys", &key]);
    let said = told.json();
    assert_eq!((told.code, &said["taken"], &said["there"]), (Some(1), &4.into(), &2.into()));
    assert_eq!(said["refused_count"], 2, "{said}");
    for made in [&wrong, &short, &gone] {
        assert!(serves(&into, made).await, "{}", made.store_path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_no_cache_is_refused_with_a_sentence() {
    let into = alone().await;
    let folder = TempDir::new().unwrap();
    let check = |dir: &Path, more: &[&str], words: &str| {
        let told = import(&into, dir, more);
        assert_eq!(told.code, Some(1), "{told:?}");
        assert!(told.stderr.contains(words), "{words}: {told:?}");
    };
    check(folder.path(), &[], "it has no nix-cache-info");
    check(&folder.path().join("none"), &[], "cannot read");
    fs::write(folder.path().join("nix-cache-info"), "StoreDir: /gnu/store\n").unwrap();
    check(folder.path(), &[], "/gnu/store");
    fs::write(folder.path().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    check(folder.path(), &["--trusted-public-keys", "nonsense"], "is no public key");
    let told = import(&into, folder.path(), &[&"0".repeat(32)]);
    assert_eq!((told.code, told.json()["refused_count"].as_u64()), (Some(1), Some(1)));
    let told = import(&into, folder.path(), &[]);
    assert_eq!((told.code, &told.json()["taken"]), (Some(0), &0.into()), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_substitutes_from_the_stick_and_from_the_importer() {
    let Some(closure) = Closure::get() else { return };
    let from =
        Settings::new().upstream(&closure.cache_url("xz"), &closure.public_key).start().await;
    let stick_url = "file:///world/stick";
    let key = &closure.public_key;
    let Some(offline) = NixClient::new(Release::Sid, &[stick_url], key) else { return };
    let stick = offline.folder().join("stick");
    let told = export(&from, &[&closure.top], &stick);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(told.json()["copied"], closure.paths.len(), "{told:?}");

    let upstream = Scripted::serve(closure.cache("xz")).await;
    upstream.refuse();
    let into = Settings::new().upstream(&upstream.url(), key).start().await;
    into.ready().await;
    let told = import(&into, &stick, &[]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(told.json()["taken"], closure.paths.len(), "{told:?}");
    let Some(online) = NixClient::new(Release::Trixie, &[&into.url()], key) else { return };
    for client in [&offline, &online] {
        client.run(&["nix-store", "--realise", &closure.top]).await.expect_success();
        client.run(&["nix-store", "--verify", "--check-contents"]).await.expect_success();
        let found = client.run(&["nix-store", "-qR", &closure.top]).await;
        assert_eq!(found.expect_success().lines().count(), closure.paths.len());
    }
}
