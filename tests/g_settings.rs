//! `first-boot` and `identity`, the built program on plain folders that stand for the partitions.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use world::Settings;

/// An appliance in a folder.
struct Pi {
    folder: TempDir,
}

impl Pi {
    fn new() -> Self {
        let pi = Self { folder: TempDir::new().unwrap() };
        for name in ["boot", "data", "root"] {
            fs::create_dir(pi.path(name)).unwrap();
        }
        fs::write(pi.path("boot/config.txt"), "os_prefix=a/\n").unwrap();
        let text = format!(
            "version = \"0.1.0\"\nboot = \"{}\"\ndata = \"{}\"\nnotes = \"{}\"\nslots = {{ a = \"a\", b = \
             \"b\" }}\nkeys = \"/usr/lib/snowberry/release-keys\"\n",
            pi.path("boot").display(),
            pi.path("data").display(),
            pi.path("notes").display()
        );
        fs::write(pi.path("appliance.toml"), text).unwrap();
        pi
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn first_boot(&self) -> Output {
        let root = self.path("root");
        let done = run(&["first-boot", "--root"], &[&root], &self.path("appliance.toml"));
        assert!(done.status.success(), "{done:?}");
        done
    }
}

fn run(command: &[&str], paths: &[&Path], appliance: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_snowberry"))
        .args(command)
        .args(paths)
        .arg("--appliance")
        .arg(appliance)
        .env("SNOWBERRY_CONFIG", "/dev/null")
        .output()
        .unwrap()
}

#[test]
fn settings_become_a_system_and_a_configuration_that_check_accepts() {
    let pi = Pi::new();
    let settings = "\u{feff}[system]\r\nhostname = \"attic\"\r\n[wlan]\r\nssid = \"home\"\r\npassword \
                    = \"correct horse\"\r\n[[upstream]]\r\nurl = \
                    \"s3://nix-cache?endpoint=minio.example\"\r\nunsigned = true\r\npush = true\r\n\
                    [bucket-credentials]\r\naccess-key-id = \"K\"\r\nsecret-access-key = \
                    \"s3cr3t\"\r\n[store]\r\nbudgett = \"1 GiB\"\r\nbudget = \"20 GiB\"\r\n";
    fs::write(pi.path("boot/snowberry.toml"), settings).unwrap();
    let done = pi.first_boot();
    let log = String::from_utf8_lossy(&done.stderr).into_owned();
    let wanted = "snowberry.toml:14: there is no key store.budgett; did you mean store.budget?";
    assert!(log.contains(wanted), "{log}");
    assert!(!log.contains("s3cr3t") && !log.contains("correct"), "{log}");
    assert!(pi.read("boot/snowberry-errors.txt").contains(wanted));
    let notes: toml::Table = toml::from_str(&pi.read("notes/settings.toml")).unwrap();
    assert_eq!(notes["errors"].as_array().unwrap().len(), 1, "{notes}");
    assert!(notes["applied-at"].as_integer().unwrap() > 1_700_000_000);
    let left = pi.read("boot/snowberry.toml");
    assert!(left.contains("\"(moved)\"") && !left.contains("s3cr3t"), "{left}");
    assert!(pi.read("root/etc/wpa_supplicant/wpa_supplicant-wlan0.conf").contains("correct horse"));
    assert!(pi.read("root/etc/snowberry/credentials").contains("s3cr3t"));
    assert_eq!(pi.read("root/etc/hostname"), "attic\n");
    let checked = Command::new(env!("CARGO_BIN_EXE_snowberry"))
        .args(["check", "--config-only", "--config"])
        .arg(pi.path("root/etc/snowberry/snowberry.toml"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");

    fs::write(pi.path("boot/snowberry.toml"), left.replace("budgett", "path")).unwrap();
    fs::remove_dir_all(pi.path("root/etc")).unwrap();
    pi.first_boot();
    assert!(pi.read("boot/snowberry-errors.txt").contains("store.path"), "it is no path");
    fs::remove_file(pi.path("boot/snowberry.toml")).unwrap();
    pi.first_boot();
    assert!(!pi.path("boot/snowberry-errors.txt").exists());
    assert_eq!(pi.read("root/etc/hostname"), "snowberry\n");
}

#[test]
fn without_any_partition_it_still_ends_well() {
    let pi = Pi::new();
    for name in ["boot", "data", "appliance.toml"] {
        let path = pi.path(name);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::write(path, "garbage [").unwrap();
        }
    }
    // Nothing of this machine's own may be taken for the appliance's.
    let text = format!("boot = {:?}\ndata = {:?}\nnotes = \"/proc/none\"\n", "/none", "/none");
    fs::write(pi.path("appliance.toml"), text).unwrap();
    let done = pi.first_boot();
    let log = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(log.contains("the boot partition cannot be read"), "{log}");
    assert_eq!(pi.read("root/etc/hostname"), "snowberry\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_identity_is_what_key_show_says_and_is_written_once() {
    let pi = Pi::new();
    let snowberry = Settings::new().set(r#"tls.listen=["127.0.0.1:0"]"#).start().await;
    snowberry.ready().await;
    let set = format!("state-dir={:?}", snowberry.state().display().to_string());
    let identity = || run(&["identity", "--set", &set], &[], &pi.path("appliance.toml"));
    assert!(identity().status.success());
    let text = pi.read("boot/snowberry-identity.txt");
    let shown = Command::new(env!("CARGO_BIN_EXE_snowberry"))
        .args(["key", "show", "--set", &set])
        .env("SNOWBERRY_CONFIG", "/dev/null")
        .output()
        .unwrap();
    let key = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains(&format!("\nkey  {key}")), "{text}");
    let ca = String::from_utf8(shown.stderr).unwrap();
    let ca = ca.trim_end().rsplit(' ').next().unwrap().to_owned();
    assert!(text.contains(&format!("\nCA   {ca}\n")), "{text} {ca}");
    let written = || pi.path("boot/snowberry-identity.txt").metadata().unwrap().modified().unwrap();
    let before = written();
    assert!(identity().status.success());
    assert_eq!(written(), before);
    let none = format!("state-dir={:?}", pi.path("none").display().to_string());
    let early = run(&["identity", "--set", &none], &[], &pi.path("appliance.toml"));
    assert_eq!(early.status.code(), Some(1), "{early:?}");
}
