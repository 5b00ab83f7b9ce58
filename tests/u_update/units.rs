//! The units of the appliance's updates and clock, read by systemd itself. Nothing is started.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::world::parts;

const UNITS: [&str; 6] = [
    "snowberry-update.service",
    "snowberry-update.timer",
    "snowberry-confirm.service",
    "snowberry-fall-back.service",
    "snowberry-clock.service",
    "snowberry-clock.timer",
];

/// Exposure that `systemd-analyze security` may find, in tenths: all are root, and the first two write
/// partitions and mount.
const EXPOSURES_MAX: [(&str, &str); 4] = [
    ("snowberry-update.service", "30"),
    ("snowberry-confirm.service", "28"),
    ("snowberry-fall-back.service", "25"),
    ("snowberry-clock.service", "25"),
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
        let text = text.replace("/usr/lib/snowberry/set-clock", "/bin/true");
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

/// A folder for a script of the image, with programs of the test's own before the system's.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.file(name, &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What the script says; it never fails.
    fn run(&self, script: &str, arguments: &[PathBuf]) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("image/overlay/usr/lib/snowberry");
        let told = Command::new(folder.join(script))
            .args(arguments)
            .env("PATH", format!("{}:/usr/bin:/bin", self.0.path().display()))
            .output()
            .unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        String::from_utf8_lossy(&told.stdout).into_owned()
    }
}

/// The script that ends a trial when nothing of the program runs: what it does is told by its last
/// word, as a `systemctl` of the test's own says it.
#[test]
fn the_way_back_is_taken_in_a_trial_only() {
    let bench = Bench::new();
    bench.program("systemctl", "echo \"systemctl $*\"");
    let goes_back = |config: &str, line: &str, note: &str| {
        let config = bench.file("config.txt", config);
        let told = bench
            .run("fall-back", &[config, bench.file("cmdline", line), bench.file("note", note)]);
        told.ends_with("systemctl --no-block reboot\n")
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

/// The script that sets the clock. The program's answer and the clock are the test's own; what it
/// sets is in a file.
#[test]
fn the_clock_is_set_forwards_only_and_within_bounds() {
    const NOW_S: u64 = 1_800_000_000;
    const DAY_S: u64 = 24 * 3600;
    let bench = Bench::new();
    let [set, image, saved] = ["set", "clock-epoch", "clock"].map(|name| bench.file(name, ""));
    let mtime = |path: &Path| path.metadata().unwrap().modified().unwrap();
    let at = |seconds| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let touch = |path: &Path, seconds| {
        let file = std::fs::File::options().append(true).open(path).unwrap();
        file.set_modified(at(seconds)).unwrap();
    };
    bench.program(
        "date",
        &format!("case $1 in +%s) echo {NOW_S} ;; -s) echo \"$2\" >{} ;; esac", set.display()),
    );
    // What the image is old by, what the status has, and what the clock is set to.
    let check = |image_age_s: u64, told: &str, wanted: &str| {
        bench.program("snowberry", &format!("cat <<'E'\n{told}\nE"));
        std::fs::write(&set, "").unwrap();
        touch(&image, NOW_S - image_age_s);
        touch(&saved, 1);
        let synchronized = bench.0.path().join("synchronized");
        bench.run("set-clock", &[image.clone(), synchronized, saved.clone()]);
        assert_eq!(std::fs::read_to_string(&set).unwrap().trim(), wanted, "{told}");
        // The next start begins there.
        assert_eq!(mtime(&saved) > at(1), !wanted.is_empty(), "{told}");
    };
    let behind = |told: &str| format!(r#"{{"host":{{"clock_behind_s":{told}}},"tls":null}}"#);
    check(DAY_S, &behind("3600"), "@1800003600");
    check(DAY_S, &behind("60"), "@1800000060");
    for told in ["59", "0", "-3600", "null", "\"3600\"", "99999999999"] {
        check(DAY_S, &behind(told), "");
    }
    check(DAY_S, "", "");
    // Not by what somebody called a cache.
    check(DAY_S, r#"{"name":"\"clock_behind_s\":3600,","host":{"clock_behind_s":null}}"#, "");
    // An image that is old, or of a machine whose clock is far too early, may come far forwards.
    check(14 * 365 * DAY_S, &behind(&(360 * DAY_S).to_string()), "@1831104000");
    check(0, &behind(&(15 * 365 * DAY_S).to_string()), "@2273040000");
    check(0, &behind(&(15 * 365 * DAY_S + 1).to_string()), "");
    check(14 * 365 * DAY_S, &behind(&(366 * DAY_S).to_string()), "");
    // The time came from the network: it stays.
    bench.program("snowberry", &format!("cat <<'E'\n{}\nE", behind("3600")));
    std::fs::write(&set, "").unwrap();
    bench.run("set-clock", &[image, bench.file("synchronized", ""), saved]);
    assert_eq!(std::fs::read_to_string(&set).unwrap(), "");
}
