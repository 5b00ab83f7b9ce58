//! The units of systemd, read by systemd itself. Nothing is started.

use std::path::Path;
use std::process::Command;

use super::world::parts;

/// What `systemd-analyze verify` finds wrong with the forwarder's units below a folder.
fn verify(folder: &str, manager: &str) {
    let Some(program) = parts::program("systemd-analyze") else { return };
    let units = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths = Vec::new();
    for kind in ["service", "socket", "path"] {
        let name = format!("snowberry-forward.{kind}");
        let text = std::fs::read_to_string(from.join(&name)).unwrap();
        // It looks for the program too, which is nowhere here.
        let text = text.replace("/usr/bin/snowberry", "/bin/true");
        std::fs::write(units.path().join(&name), text).unwrap();
        paths.push(units.path().join(&name));
    }
    let done = Command::new(program)
        .args(["verify", manager, "--man=no", "--recursive-errors=no"])
        .args(&paths)
        .env("XDG_RUNTIME_DIR", units.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    let ours: Vec<&str> = told.lines().filter(|line| line.contains("snowberry")).collect();
    assert!(done.status.success() && ours.is_empty(), "{folder}: {told}");
}

#[test]
fn the_units_of_a_machine_are_sound() {
    verify("systemd", "--system");
}

#[test]
fn the_units_of_a_single_user_are_sound() {
    verify("systemd/user", "--user");
}
