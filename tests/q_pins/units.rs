//! The unit that fetches at night, read by systemd itself, and its command as a shell runs it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::made::Made;
use crate::world::parts;
use crate::{Lab, hash};

const UNITS: [&str; 2] = ["snowberry-prefetch@.service", "snowberry-prefetch@.timer"];

/// Exposure that `systemd-analyze security` may find, in tenths: it runs a program of the owner's.
const EXPOSURE_MAX: &str = "25";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

#[test]
fn the_units_are_sound() {
    let Some(program) = parts::program("systemd-analyze") else { return };
    let units = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for name in UNITS {
        let text = std::fs::read_to_string(folder().join(name)).unwrap();
        let path = units.path().join(name.replace('@', "@desktop"));
        std::fs::write(&path, text).unwrap();
        paths.push(path);
    }
    let done = Command::new(&program)
        .args(["verify", "--system", "--man=no", "--recursive-errors=no"])
        .args(&paths)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    let ours: Vec<&str> = told.lines().filter(|line| line.contains("snowberry")).collect();
    assert!(done.status.success() && ours.is_empty(), "{told}");
    let done = Command::new(&program)
        .args(["security", "--offline=yes", "--no-pager", "--threshold", EXPOSURE_MAX])
        .arg(folder().join(UNITS[0]))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{}", told.lines().last().unwrap_or_default());
}

/// What stands between the quotes of `ExecStart=`, with systemd's own escapes undone.
fn script() -> String {
    let text = std::fs::read_to_string(folder().join(UNITS[0])).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=/bin/sh -ec '")).unwrap();
    let (script, rest) = line.split_once('\'').unwrap();
    assert_eq!(rest, " /etc/snowberry/prefetch/%i");
    script.replace("%%", "%").replace("$$", "$").replace("\\n", "\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_and_a_program_are_followed_and_a_program_that_fails_is_not() {
    let (listed, printed) = (Made::mixed("listed", 20_000), Made::mixed("printed", 20_000));
    let lab = Lab::of([&listed, &printed], "1 GiB").await;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("snowberry");
    let state = lab.snowberry.state();
    let real = env!("CARGO_BIN_EXE_snowberry");
    let text = format!(
        "#!/bin/sh\nexec {real} \"$@\" --set 'state-dir={:?}'\n",
        state.display().to_string()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = script().replace("/usr/bin/snowberry", &program.display().to_string());
    let follow = |name: &str, text: String, mode: u32| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-ec", &script]).arg(&file).env("SNOWBERRY_CONFIG", "/dev/null");
        shell.env("LIMIT", "8MiB");
        tokio::task::spawn_blocking(move || shell.output().unwrap())
    };
    let list = format!("/nix/store/{}\n", listed.store_path.base_name());
    let done = follow("list", list, 0o644).await.unwrap();
    assert!(done.status.success(), "{done:?}");
    assert!(lab.is_held(&listed).await && !lab.is_held(&printed).await);
    let fails = format!("#!/bin/sh\necho {}\nexit 3\n", hash(&printed));
    let done = follow("fails", fails, 0o755).await.unwrap();
    assert!(!done.status.success() && !lab.is_held(&printed).await, "{done:?}");
    let prints = format!("#!/bin/sh\necho {}\n", hash(&printed));
    let done = follow("prints", prints, 0o755).await.unwrap();
    assert!(done.status.success() && lab.is_held(&printed).await, "{done:?}");
}
