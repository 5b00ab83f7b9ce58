//! The units of the appliance's updates, read by systemd itself. Nothing is started.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::world::parts;

const UNITS: [&str; 3] =
    ["snowberry-update.service", "snowberry-update.timer", "snowberry-confirm.service"];

/// Exposure that `systemd-analyze security` may find, in tenths: both are root, write partitions and
/// mount.
const EXPOSURES_MAX: [(&str, &str); 2] =
    [("snowberry-update.service", "30"), ("snowberry-confirm.service", "28")];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/appliance")
}

#[test]
fn the_units_are_sound() {
    let Some(program) = parts::program("systemd-analyze") else { return };
    let units = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for name in UNITS {
        let text = std::fs::read_to_string(folder().join(name)).unwrap();
        // It looks for the program too, which is nowhere here.
        let text = text.replace("/usr/bin/snowberry", "/bin/true");
        paths.push(units.path().join(name));
        std::fs::write(units.path().join(name), text).unwrap();
    }
    let done = Command::new(program)
        .args(["verify", "--system", "--man=no", "--recursive-errors=no"])
        .args(&paths)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    let ours: Vec<&str> = told.lines().filter(|line| line.contains("snowberry")).collect();
    assert!(done.status.success() && ours.is_empty(), "{told}");
}

#[test]
fn what_the_services_may_do_is_little() {
    let Some(program) = parts::program("systemd-analyze") else { return };
    for (unit, threshold) in EXPOSURES_MAX {
        let done = Command::new(&program)
            .args(["security", "--offline=yes", "--no-pager", "--threshold", threshold])
            .arg(folder().join(unit))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{unit}: {}", told.lines().last().unwrap_or_default());
    }
}
