//! The units of the appliance's updates, read by systemd itself. Nothing is started.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::world::parts;

const UNITS: [&str; 4] = [
    "snowberry-update.service",
    "snowberry-update.timer",
    "snowberry-confirm.service",
    "snowberry-fall-back.service",
];

/// Exposure that `systemd-analyze security` may find, in tenths: all are root, and the first two write
/// partitions and mount.
const EXPOSURES_MAX: [(&str, &str); 3] = [
    ("snowberry-update.service", "30"),
    ("snowberry-confirm.service", "28"),
    ("snowberry-fall-back.service", "25"),
];

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
        let text = text.replace("/usr/lib/snowberry/fall-back", "/bin/true");
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

/// The script that ends a trial when nothing of the program runs: what it does is told by its last
/// word, as a `systemctl` of the test's own says it.
#[test]
fn the_way_back_is_taken_in_a_trial_only() {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("image/overlay/usr/lib/snowberry/fall-back");
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let systemctl = file("systemctl", "#!/bin/sh\necho \"systemctl $*\"\n");
    std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let goes_back = |config: &str, line: &str, note: &str| {
        let told = Command::new(&script)
            .arg(file("config.txt", config))
            .arg(file("cmdline", line))
            .arg(file("note", note))
            .env("PATH", &path)
            .output()
            .unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        String::from_utf8_lossy(&told.stdout).ends_with("systemctl --no-block reboot\n")
    };
    let (a, b) = ("x=1\r\nos_prefix=a/\r\n[pi5]\n", "os_prefix=b/\n");
    let (in_a, in_b) = ("ro snowberry.slot=a quiet\n", "snowberry.slot=b\n");
    assert!(goes_back(a, in_b, "") && goes_back(b, in_a, "state = \"confirming\"\n"));
    // Always booted: a restart would only come here again.
    assert!(!goes_back(a, in_a, "") && !goes_back(b, in_b, ""));
    // It cannot be told.
    assert!(!goes_back("", in_b, "") && !goes_back(a, "ro quiet\n", "") && !goes_back(a, "", ""));
    // The confirmation has ended by itself.
    assert!(!goes_back(a, in_b, "slot = \"b\"\nstate = \"failed\"\n"));
}
