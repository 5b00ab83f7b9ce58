//! The Debian package, made of the program under test, in a small Debian 12 of its own: installed,
//! upgraded, removed, purged; judged by lintian; the same bytes when it is made again. Where there is a
//! program for the Pi (`tests/run --arm`) all of it is done with that, in a Debian for arm64 under qemu.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops and says what it saw")]

mod world;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;
use world::parts;

/// Any date: that of a package that is compared with itself.
const DATE: &str = "1700000000";

/// What the package brings.
const UNITS: [&str; 8] = [
    "snowberry.service",
    "snowberry.socket",
    "snowberry-tls.socket",
    "snowberry-forward.service",
    "snowberry-forward.socket",
    "snowberry-forward.path",
    "snowberry-prefetch@.service",
    "snowberry-prefetch@.timer",
];

/// What systemd says of them then; a service that only its socket starts is never enabled by itself.
const NOT_ENABLED: [&str; 8] =
    ["disabled", "disabled", "disabled", "indirect", "disabled", "disabled", "static", "disabled"];

/// The program for the Pi, as `image/build-binary` makes it.
const PI: &str = "SNOWBERRY_BIN_AARCH64";

/// What Debian calls the machine that the package is for.
fn arch() -> &'static str {
    if env::var_os(PI).is_some() { "arm64" } else { "amd64" }
}

/// The package as revision 1 and as revision 2, which differs in nothing else.
struct Packages {
    folder: TempDir,
}

impl Packages {
    fn file(&self, revision: u32) -> PathBuf {
        let found = fs::read_dir(self.folder.path()).unwrap().map(|it| it.unwrap().path());
        let wanted = format!("-{revision}_{}.deb", arch());
        found.into_iter().find(|path| path.to_str().unwrap().ends_with(&wanted)).unwrap()
    }
}

fn packages() -> &'static Packages {
    static PACKAGES: OnceLock<Packages> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        for revision in [1, 2] {
            fs::copy(build(revision), folder.path().join(name(revision))).unwrap();
        }
        Packages { folder }
    })
}

fn name(revision: u32) -> String {
    format!("snowberry_{}-{revision}_{}.deb", env!("CARGO_PKG_VERSION"), arch())
}

fn build(revision: u32) -> PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = env::var_os(PI).unwrap_or_else(|| env!("CARGO_BIN_EXE_snowberry").into());
    let printed = run(Command::new(top.join("image/build-deb"))
        .arg(arch())
        .env("SNOWBERRY_BINARY", program)
        .env("SNOWBERRY_DEB_REVISION", revision.to_string())
        .env("SOURCE_DATE_EPOCH", DATE));
    top.join(printed.trim())
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// A machine with Debian 12: what is changed there stays for its next command, and in its folder.
struct Machine {
    folder: TempDir,
    root: PathBuf,
}

impl Machine {
    /// One with both packages at `/world`. None: the test was noted as skipped and must return.
    fn new() -> Option<Self> {
        let root = parts::part(if arch() == "amd64" { "debian" } else { "debian-arm64" })?;
        parts::program("dpkg-deb")?;
        let folder = TempDir::new().unwrap();
        for name in ["upper", "work", "merged", "world"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for revision in [1, 2] {
            let to = folder.path().join("world").join(format!("{revision}.deb"));
            fs::copy(packages().file(revision), to).unwrap();
        }
        Some(Self { folder, root })
    }

    /// Runs a script as root; what it prints, both ways.
    #[track_caller]
    fn run(&self, script: &str) -> String {
        let enter = r#"
            mount -t overlay -o "userxattr,lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/merged"
            cd "$2"; mount --bind world merged/world
            mount -t proc proc merged/proc; mount --rbind /dev merged/dev
            exec chroot merged env -i LC_ALL=C.UTF-8 HOME=/root DEBIAN_FRONTEND=noninteractive \
              PATH=/usr/sbin:/usr/bin:/sbin:/bin /bin/sh -euc "$3" 2>&1"#;
        let mut machine = if arch() == "amd64" {
            let mut unshare = Command::new("unshare");
            unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--"]);
            unshare
        } else {
            let mut emulated = Command::new("bash");
            let library = concat!(env!("CARGO_MANIFEST_DIR"), "/image/lib/userns.sh");
            emulated.args(["-euc", r#". "$0"; in_userns "$@""#, library]);
            emulated
        };
        machine.args(["/bin/sh", "-euc", enter, "enter"]);
        run(machine.args([&self.root, self.folder.path()]).arg(script))
    }

    /// What `systemctl is-enabled` says of each unit, in the order of [`UNITS`].
    #[track_caller]
    fn enabled(&self) -> Vec<String> {
        let script = format!("systemctl is-enabled {} || true", UNITS.join(" "));
        self.run(&script).lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_package_is_the_same_bytes_when_it_is_made_again() {
    let Some(_dpkg) = parts::program("dpkg-deb") else { return };
    let first = fs::read(packages().file(1)).unwrap();
    let again = fs::read(build(1)).unwrap();
    assert!(first == again, "the package differs from itself: {} bytes", first.len());
}

#[test]
fn lintian_has_nothing_to_say() {
    let Some(machine) = Machine::new() else { return };
    let said = machine.run("lintian --allow-root --fail-on error,warning /world/1.deb");
    assert_eq!(said, "");
}

#[test]
fn installing_it_enables_and_starts_nothing() {
    let Some(machine) = Machine::new() else { return };
    machine.run("dpkg --install /world/1.deb");
    let version = machine.run("snowberry --version");
    assert_eq!(version.trim(), format!("snowberry {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(machine.enabled(), NOT_ENABLED);
    machine.run("getent passwd snowberry && getent group snowberry");
    machine.run(
        "man --where snowberry snowberry-join snowberry-hook; man --where 5 snowberry.toml
         bash -n /usr/share/bash-completion/completions/snowberry",
    );
    let hook = machine.run("readlink -f /usr/bin/snowberry-hook");
    assert_eq!(hook.trim(), "/usr/bin/snowberry");
    assert!(!machine.run("ls /var/lib").contains("snowberry"), "a store was begun");
}

#[test]
fn its_configuration_sets_nothing_and_names_every_key() {
    let Some(machine) = Machine::new() else { return };
    machine.run("dpkg --install /world/1.deb");
    let text = machine.run("cat /etc/snowberry/snowberry.toml");
    let set = text.lines().find(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(set, None);
    for key in &snowberry::config::KEYS {
        let (_, name) = key.split();
        assert!(text.contains(&format!("\n#{name} = ")), "{} is not named", key.path);
    }
    machine.run("snowberry check --config-only");
    // Keys whose default can be written down are right when they are taken as they stand; an upstream
    // has some that cannot.
    let script = r"sed -E -e '/^#\[\[upstream/,/^#\[push/ { /^#\[push/! d }' \
          -e '/^#[a-z-]+ =    #/ d; s/^#(\[[a-z]+\]|[a-z-]+ = .*)$/\1/' \
          /etc/snowberry/snowberry.toml > /tmp/all.toml
        grep -q '^plain = false' /tmp/all.toml; grep -q '^sign = ' /tmp/all.toml
        snowberry check --config-only --config /tmp/all.toml";
    machine.run(script);
}

#[test]
fn an_upgrade_keeps_configuration_store_and_what_is_enabled() {
    let Some(machine) = Machine::new() else { return };
    machine.run(
        "dpkg --install /world/1.deb
         systemctl enable snowberry.socket
         echo 'name = \"mine\"' >> /etc/snowberry/snowberry.toml
         mkdir -p /var/lib/snowberry/store; echo held > /var/lib/snowberry/store/nar",
    );
    machine.run("dpkg --install /world/2.deb < /dev/null");
    let version = machine.run("dpkg-query --show --showformat='${Version}' snowberry");
    assert!(version.ends_with("-2"), "{version}");
    assert!(machine.run("cat /etc/snowberry/snowberry.toml").ends_with("name = \"mine\"\n"));
    assert_eq!(machine.run("cat /var/lib/snowberry/store/nar"), "held\n");
    let mut expected = NOT_ENABLED;
    expected[1] = "enabled";
    assert_eq!(machine.enabled(), expected);
}

#[test]
fn purging_keeps_the_store_and_takes_all_else() {
    let Some(machine) = Machine::new() else { return };
    machine.run(
        "dpkg --install /world/1.deb
         systemctl enable snowberry.socket snowberry-forward.path
         systemctl enable snowberry-prefetch@desktop.timer snowberry-prefetch@laptop.timer
         test -L /etc/systemd/system/timers.target.wants/snowberry-prefetch@desktop.timer
         mkdir -p /var/lib/snowberry/store; echo held > /var/lib/snowberry/store/nar",
    );
    machine.run("dpkg --remove snowberry; test -e /etc/snowberry/snowberry.toml");
    let said = machine.run("dpkg --purge snowberry");
    assert!(said.contains("/var/lib/snowberry is kept"), "{said}");
    assert_eq!(machine.run("cat /var/lib/snowberry/store/nar"), "held\n");
    let left = machine.run(
        r"find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /world \
             -o -path /var/lib/snowberry \) -prune -o -name '*snowberry*' -print",
    );
    assert_eq!(left, "", "purge left these behind");
}

#[test]
fn purging_takes_the_store_where_that_is_asked_for() {
    let Some(machine) = Machine::new() else { return };
    machine.run(
        "dpkg --install /world/1.deb
         mkdir -p /var/lib/snowberry/store; touch /var/lib/snowberry/remove-on-purge
         dpkg --purge snowberry; test ! -e /var/lib/snowberry",
    );
}
