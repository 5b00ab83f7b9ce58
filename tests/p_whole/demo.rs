//! `snowberry demo`, as somebody runs it who has nothing but the program.

use std::process::{Command, Stdio};

use tempfile::TempDir;

fn demo(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snowberry"));
    command.arg("demo").env_clear().env("TMPDIR", folder.path()).stdin(Stdio::null());
    command
}

#[test]
fn the_whole_story_is_told_and_nothing_is_left() {
    let folder = TempDir::new().unwrap();
    let told = demo(&folder).output().unwrap();
    assert!(told.status.success(), "{told:?}");
    let text = String::from_utf8(told.stdout).unwrap();
    let steps = ["upstream", "cache", "miss", "hit", "offline", "push", "figures", "page"];
    let first: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(first, steps, "{text}");
    // Six narinfos and their NARs: fetched once, and from here twice.
    assert!(text.contains("24 hits, 12 misses"), "{text}");
    assert!(text.contains("signed by demo-"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_interrupt_leaves_nothing_either() {
    let folder = TempDir::new().unwrap();
    let mut demo = demo(&folder).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Once it has begun.
    let mut byte = [0];
    std::io::Read::read_exact(demo.stdout.as_mut().unwrap(), &mut byte).unwrap();
    let pid = demo.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert!(demo.wait().unwrap().code().is_some(), "it did not end by itself");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
