//! The units of systemd, read by systemd itself. Nothing is started.

use std::path::Path;
use std::process::Command;

use super::world::parts;

/// Exposure that `systemd-analyze security` may find, in tenths: 0 is none, 100 all of it.
const CACHE_EXPOSURE_MAX: &str = "15";

/// The same of the forwarder, which talks to the Nix daemon and runs `nix`.
const FORWARDER_EXPOSURE_MAX: &str = "17";

const FORWARDER: [&str; 3] =
    ["snowberry-forward.service", "snowberry-forward.socket", "snowberry-forward.path"];

/// What `systemd-analyze verify` finds wrong with these units below a folder.
fn verify(folder: &str, manager: &str, names: &[&str]) {
    let Some(program) = parts::program("systemd-analyze") else { return };
    let units = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths = Vec::new();
    for name in names {
        let text = std::fs::read_to_string(from.join(name)).unwrap();
        // It looks for the program too, which is nowhere here.
        let text = text.replace("/usr/bin/snowberry", "/bin/true");
        std::fs::write(units.path().join(name), text).unwrap();
        paths.push(units.path().join(name));
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
    verify("systemd", "--system", &FORWARDER);
}

#[test]
fn the_units_of_a_single_user_are_sound() {
    verify("systemd/user", "--user", &FORWARDER);
}

#[test]
fn the_units_of_the_cache_are_sound() {
    let units = ["snowberry.service", "snowberry.socket", "snowberry-tls.socket"];
    verify("systemd", "--system", &units);
}

#[test]
fn the_units_of_the_settings_are_sound() {
    let units = ["snowberry-firstboot.service", "snowberry-identity.service"];
    verify("systemd/appliance", "--system", &units);
}

#[test]
fn what_the_services_may_do_is_little() {
    let Some(program) = parts::program("systemd-analyze") else { return };
    for (unit, threshold) in [
        ("snowberry.service", CACHE_EXPOSURE_MAX),
        ("snowberry-forward.service", FORWARDER_EXPOSURE_MAX),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(unit);
        let done = Command::new(&program)
            .args(["security", "--offline=yes", "--no-pager", "--threshold", threshold])
            .arg(path)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{unit}: {}", told.lines().last().unwrap_or_default());
    }
}
