//! Whole boots on plain folders: what is applied, what is told, what is written, and what is left
//! when the card refuses or the plug is pulled.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

const SSH_KEY: &str = "ssh-ed25519 \
    AAAAC3NzaC1lZDI1NTE5AAAAIGNbEz4+9hUsZDRyrrGTpoTcUAlfnHQgGfbAPtlYl4cd me@laptop";

const WHOLE: &str = r#"# mine
[system]
hostname = "attic"   # under the roof

[wlan]
ssid = "home"
password = "correct horse"   # do not tell
country = "DE"

[ssh]
authorized-keys = ["SSH_KEY"]

[locale]
timezone = "Europe/Berlin"

[network]
address = "192.168.1.20/24"
gateway = "192.168.1.1"
dns = ["192.168.1.1"]
interface = "wired"

[[upstream]]
url = "s3://nix-cache?endpoint=https://minio.example&profile=nixbuilder"
unsigned = true
push = true

[bucket-credentials]
access-key-id = "AKIA"
secret-access-key = "s3cr3t/+"

[store]
budget = "20 GiB"
"#;

fn whole() -> String {
    WHOLE.replace("SSH_KEY", SSH_KEY)
}

/// A partition that is read-only at rest, in a plain folder.
#[derive(Default)]
struct Card {
    is_protected: bool,
    opened: Cell<usize>,
    closed: Cell<usize>,
}

impl Mount for Card {
    fn make_writable(&self, _: &Path) -> io::Result<bool> {
        if self.is_protected {
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        }
        self.opened.set(self.opened.get() + 1);
        Ok(true)
    }

    fn make_read_only(&self, _: &Path) -> io::Result<()> {
        self.closed.set(self.closed.get() + 1);
        Ok(())
    }
}

struct World {
    top: tempfile::TempDir,
    folders: Folders,
    card: Card,
}

impl World {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = top.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let folders = Folders {
            boot: at("boot"),
            data: at("data"),
            notes: top.path().join("run/notes"),
            defaults: None,
        };
        fs::write(folders.boot.join("config.txt"), "os_prefix=a/\n").unwrap();
        let zones = at("root/usr/share/zoneinfo/Europe");
        fs::write(zones.join("Berlin"), "TZif").unwrap();
        Self { top, folders, card: Card::default() }
    }

    fn with(settings: &[u8]) -> Self {
        let world = Self::new();
        fs::write(world.boot("snowberry.toml"), settings).unwrap();
        world
    }

    fn boot(&self, name: &str) -> PathBuf {
        self.folders.boot.join(name)
    }

    fn start(&self) -> Vec<String> {
        // /etc is in memory: gone at each start.
        drop(fs::remove_dir_all(self.root("etc")));
        run(&self.folders, &self.root(""), &self.card, 1_800_000_000)
    }

    fn root(&self, name: &str) -> PathBuf {
        self.top.path().join("root").join(name)
    }

    fn etc(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.root("etc").join(name)).ok()
    }

    fn settings(&self) -> String {
        fs::read_to_string(self.boot("snowberry.toml")).unwrap()
    }

    fn wlan(&self) -> String {
        self.etc("wpa_supplicant/wpa_supplicant-wlan0.conf").unwrap_or_default()
    }
}

/// Name, content, inode and time of everything in a folder.
fn snapshot(folder: &Path) -> Vec<(PathBuf, Vec<u8>, u64, i64)> {
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let found = path.metadata().unwrap();
            let text = fs::read(&path).unwrap_or_default();
            (path, text, found.ino(), found.mtime_nsec())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn everything_is_applied_and_the_secrets_are_moved() {
    let world = World::with(whole().as_bytes());
    assert_eq!(world.start(), [""; 0]);
    assert_eq!(world.etc("hostname").unwrap(), "attic\n");
    assert!(world.wlan().contains("psk=\"correct horse\"") && world.wlan().contains("country=DE"));
    assert_eq!(world.etc("ssh/authorized_keys/root").unwrap(), format!("{SSH_KEY}\n"));
    let network = world.etc("systemd/network/10-snowberry-wired.network").unwrap();
    assert!(network.contains("Address=192.168.1.20/24"), "{network}");
    let zone = fs::read_link(world.root("etc/localtime")).unwrap();
    assert_eq!(zone, Path::new("../usr/share/zoneinfo/Europe/Berlin"));
    let credentials = world.etc("snowberry/credentials").unwrap();
    assert!(credentials.contains("[nixbuilder]\naws_access_key_id = AKIA\n"), "{credentials}");
    assert!(credentials.contains("aws_secret_access_key = s3cr3t/+\n"), "{credentials}");
    let daemon: toml::Table =
        toml::from_str(&world.etc("snowberry/snowberry.toml").unwrap()).unwrap();
    assert_eq!(daemon["name"].as_str(), Some("attic"));
    assert_eq!(daemon["store"]["budget"].as_str(), Some("20 GiB"));
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&world.root("etc/wpa_supplicant/wpa_supplicant-wlan0.conf")), 0o600);
    assert_eq!(mode(&world.root("etc/snowberry/credentials")), 0o600);
    assert_eq!(mode(&world.folders.data.join("settings/secrets.toml")), 0o600);
    assert_eq!(mode(&world.folders.data.join("settings")), 0o700);
    let wanted = whole().replace("correct horse", "(moved)").replace("s3cr3t/+", "(moved)");
    let rest = world.settings();
    let rest = rest.strip_prefix(&wanted).unwrap();
    assert!(rest.starts_with("# (moved): ") && rest.lines().count() == 1, "{rest}");
    assert!(!world.boot(ERRORS_FILE).exists());
}

#[test]
fn a_boot_with_nothing_new_writes_nothing() {
    let world = World::with(whole().as_bytes());
    world.start();
    let (boot, data) = (&world.folders.boot, world.folders.data.join("settings"));
    let before = (snapshot(boot), snapshot(&data), world.card.opened.get());
    assert_eq!(world.card.opened.get(), 1);
    assert_eq!(world.card.closed.get(), 1);
    assert_eq!(world.start(), [""; 0]);
    assert_eq!(before, (snapshot(boot), snapshot(&data), world.card.opened.get()));
    assert!(world.wlan().contains("correct horse"));
    assert!(world.etc("snowberry/credentials").unwrap().contains("s3cr3t/+"));
}

#[test]
fn no_settings_are_no_mistake() {
    let world = World::new();
    assert_eq!(world.start(), [""; 0]);
    assert_eq!(world.etc("hostname").unwrap(), "snowberry\n");
    assert_eq!(world.wlan(), "");
    assert_eq!(world.etc("ssh/authorized_keys/root"), None);
    assert_eq!(world.card.opened.get(), 0);
    let note = fs::read_to_string(world.folders.notes.join("settings.toml")).unwrap();
    assert_eq!(note, "errors = []\napplied-at = 1800000000\n");
}

#[test]
fn what_raspberry_pi_imager_writes_is_understood() {
    let world = World::new();
    let text = format!(
        "config_version = 1\n[system]\nhostname = \"Attic\"\n[user]\nname = \"pi\"\npassword = \
         \"$5$hash\"\npassword_encrypted = true\n[ssh]\nenabled = true\npassword_authentication = \
         false\nauthorized_keys = [\"{SSH_KEY}\"]\n[wlan]\nssid = \"home\"\npassword = \
         \"{}\"\npassword_encrypted = true\nhidden = true\ncountry = \"GB\"\n[locale]\nkeymap = \
         \"gb\"\ntimezone = \"Europe/Berlin\"\n",
        "0F".repeat(32)
    );
    fs::write(world.boot("custom.toml"), &text).unwrap();
    assert_eq!(world.start(), [""; 0]);
    assert_eq!(world.etc("hostname").unwrap(), "attic\n");
    assert!(world.wlan().contains(&format!("psk={}", "0f".repeat(32))), "{}", world.wlan());
    assert!(world.wlan().contains("scan_ssid=1"));
    assert!(world.etc("ssh/authorized_keys/root").is_some());
    let left = fs::read_to_string(world.boot("custom.toml")).unwrap();
    assert!(!left.contains("0F0F") && !left.contains("$5$"), "{left}");
    // The owner's own file goes before it, key by key.
    fs::write(world.boot("snowberry.toml"), "[system]\nhostname = \"cellar\"\n").unwrap();
    assert_eq!(world.start(), [""; 0]);
    assert_eq!(world.etc("hostname").unwrap(), "cellar\n");
    assert!(world.wlan().contains("0f0f"));
}

#[test]
fn what_is_wrong_is_told_everywhere_and_costs_nothing_beside_it() {
    let wrong = whole()
        .replace("\"DE\"", "\"UK\"")
        .replace("Europe/Berlin", "Mars/Olympus")
        .replace("gateway = \"192.168.1.1\"", "gateway = \"10.0.0.1\"")
        .replace("budget = \"20 GiB\"", "budgett = \"20 GiB\"")
        .replace(SSH_KEY, "ssh-ed25519 AAAA")
        .replace("under the roof", "\u{e9}");
    let world = World::with(wrong.as_bytes());
    let told = world.start();
    let file = fs::read_to_string(world.boot(ERRORS_FILE)).unwrap();
    let note = fs::read_to_string(world.folders.notes.join("settings.toml")).unwrap();
    let note: toml::Table = toml::from_str(&note).unwrap();
    assert_eq!(note["errors"].as_array().unwrap().len(), told.len());
    for (line, what) in [
        (8, "\"GB\""),
        (11, "not whole"),
        (14, "Mars/Olympus"),
        (18, "10.0.0.1"),
        (32, "did you mean store.budget?"),
    ] {
        let place = format!("snowberry.toml:{line}: ");
        let found = told.iter().find(|it| it.starts_with(&place));
        assert!(found.is_some_and(|it| it.contains(what)), "{what}: {told:?}");
        assert!(file.contains(found.unwrap()), "{file}");
    }
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(world.wlan().contains("correct horse") && !world.wlan().contains("country"));
    assert!(world.etc("systemd/network/10-snowberry-wired.network").unwrap().contains("Address="));
    // Mended: it goes.
    fs::write(world.boot("snowberry.toml"), whole()).unwrap();
    assert_eq!(world.start(), [""; 0]);
    assert!(!world.boot(ERRORS_FILE).exists());
}

#[test]
fn a_broken_line_leaves_what_worked_before_in_its_place() {
    let world = World::with(whole().as_bytes());
    world.start();
    let broken = world.settings().replace("hostname = \"attic\"", "hostname = \"attic");
    fs::write(world.boot("snowberry.toml"), &broken).unwrap();
    let told = world.start();
    assert!(told[0].starts_with("snowberry.toml:3: "), "{told:?}");
    assert_eq!(world.etc("hostname").unwrap(), "attic\n");
    assert!(world.wlan().contains("correct horse"));
    // At a first boot there is nothing before: the default, and the rest.
    let fresh =
        World::with(whole().replace("hostname = \"attic\"", "hostname = \"attic").as_bytes());
    assert_eq!(fresh.start().len(), 1);
    assert_eq!(fresh.etc("hostname").unwrap(), "snowberry\n");
    assert!(fresh.wlan().contains("correct horse"));
    assert!(!fresh.settings().contains("correct horse"));
}

#[test]
fn the_last_settings_that_worked_stay_when_the_file_cannot_be_read() {
    let spoil: [fn(&World); 5] = [
        |world| fs::write(world.boot("snowberry.toml"), vec![b'x'; 10 << 20]).unwrap(),
        |world| fs::write(world.boot("snowberry.toml"), b"\xff\xfe[\0s\0").unwrap(),
        |world| fs::write(world.boot("snowberry.toml"), [0; 700]).unwrap(),
        |world| {
            fs::remove_file(world.boot("snowberry.toml")).unwrap();
            fs::create_dir(world.boot("snowberry.toml")).unwrap();
        },
        |world| {
            fs::remove_dir_all(&world.folders.boot).unwrap();
        },
    ];
    for spoil in spoil {
        let world = World::with(whole().as_bytes());
        world.start();
        spoil(&world);
        assert!(!world.start().is_empty());
        assert_eq!(world.etc("hostname").unwrap(), "attic\n");
        assert!(world.wlan().contains("correct horse"));
        assert!(world.etc("snowberry/credentials").unwrap().contains("s3cr3t/+"));
    }
}

#[test]
fn secrets_stay_where_they_are_until_they_are_safe_elsewhere() {
    let world = World::with(whole().as_bytes());
    fs::remove_dir(&world.folders.data).unwrap();
    let told = world.start();
    assert!(told.iter().any(|it| it.contains("data partition")), "{told:?}");
    assert_eq!(world.settings(), whole());
    assert!(world.wlan().contains("correct horse"));
    // The partition is there, but the card is write-protected.
    fs::create_dir(&world.folders.data).unwrap();
    let world = World { card: Card { is_protected: true, ..Card::default() }, ..world };
    let told = world.start();
    assert!(told.iter().any(|it| it.contains("secrets stay")), "{told:?}");
    assert_eq!(world.settings(), whole());
    // A plug that was pulled in between leaves both.
    let world = World { card: Card::default(), ..world };
    assert!(world.start().is_empty());
    assert!(!world.settings().contains("correct horse"));
}

#[test]
fn a_moved_secret_is_of_its_own_network_only() {
    let world = World::with(whole().as_bytes());
    world.start();
    let other = world.settings().replace("\"home\"", "\"other\"");
    fs::write(world.boot("snowberry.toml"), other).unwrap();
    let told = world.start();
    assert!(told[0].contains("write it again"), "{told:?}");
    assert_eq!(world.wlan(), "");
    let new = world.settings().replacen("(moved)", "battery staple", 1);
    fs::write(world.boot("snowberry.toml"), new).unwrap();
    assert_eq!(world.start(), [""; 0]);
    assert!(world.wlan().contains("battery staple"));
    assert!(!world.settings().contains("battery"));
    let back = world.settings().replace("\"other\"", "\"home\"");
    fs::write(world.boot("snowberry.toml"), back).unwrap();
    assert_eq!(world.start(), [""; 0]);
    assert!(world.wlan().contains("correct horse"));
}

#[test]
fn a_new_card_gets_the_settings_that_are_on_its_data_partition() {
    let world = World::with(whole().as_bytes());
    world.start();
    let before = world.settings();
    fs::remove_file(world.boot("snowberry.toml")).unwrap();
    assert_eq!(put_back(&world.folders, &world.card).unwrap(), ["snowberry.toml"]);
    assert_eq!(world.settings(), before);
    assert!(put_back(&world.folders, &world.card).unwrap().is_empty());
    assert_eq!(world.card.opened.get(), world.card.closed.get());
    assert_eq!(world.start(), [""; 0]);
    assert!(world.wlan().contains("correct horse"));
}

#[test]
fn files_of_other_systems_are_named() {
    let world = World::new();
    fs::write(world.boot("user-data"), "#cloud-config\n").unwrap();
    fs::write(world.boot("firstrun.sh"), "").unwrap();
    fs::write(world.boot("snowberry.toml.txt"), "").unwrap();
    let told = world.start();
    assert!(told[0].starts_with("firstrun.sh, user-data on the boot partition"), "{told:?}");
    assert!(told[1].starts_with("snowberry.toml.txt is not read"), "{told:?}");
}

#[test]
fn a_file_beside_the_settings_is_brought_to_the_daemon() {
    let world = World::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
    fs::write(world.boot("ca.pem"), certificate.pem()).unwrap();
    let upstream = |name: &str| {
        format!("[[upstream]]\nurl = \"https://{name}\"\nunsigned = true\nca-file = \"{name}\"\n")
    };
    let text = [upstream("ca.pem"), upstream("none.pem"), upstream("../x")].concat();
    fs::write(world.boot("snowberry.toml"), text).unwrap();
    let told = world.start();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(world.etc("snowberry/files/ca.pem").unwrap(), certificate.pem());
    let daemon = world.etc("snowberry/snowberry.toml").unwrap();
    assert!(daemon.contains("ca-file = \"/etc/snowberry/files/ca.pem\""), "{daemon}");
    assert_eq!(daemon.matches("[[upstream]]").count(), 1);
}

#[test]
fn the_images_own_wishes_lie_under_the_owners() {
    let mut world = World::with(b"[store]\nbudget = \"20 GiB\"\n");
    let defaults = world.top.path().join("defaults.toml");
    fs::write(
        &defaults,
        "[store]\npath = \"/mnt/x\"\nbudget = \"1 GiB\"\n[mdns]\nenabled = false\n",
    )
    .unwrap();
    world.folders.defaults = Some(defaults);
    assert_eq!(world.start(), [""; 0]);
    let daemon: toml::Table =
        toml::from_str(&world.etc("snowberry/snowberry.toml").unwrap()).unwrap();
    assert_eq!(daemon["store"]["path"].as_str(), Some("/mnt/x"));
    assert_eq!(daemon["store"]["budget"].as_str(), Some("20 GiB"));
}

#[test]
fn every_key_is_explained_and_the_example_is_sound() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_to_string(top.join("docs/settings.md")).unwrap();
    for key in &KEYS {
        assert!(
            docs.contains(&format!("`{}`", key.path)),
            "{} is not in docs/settings.md",
            key.path
        );
    }
    let example =
        fs::read_to_string(top.join("image/boot-partition/snowberry.toml.example")).unwrap();
    assert_eq!(World::with(example.as_bytes()).start(), [""; 0]);
    // And with every line of it meant.
    let meant: String = example
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.starts_with('[') || line.contains(" = "))
        .fold(String::new(), |text, line| text + line + "\n")
        .replace("ssh-ed25519 AAAA... me@laptop", SSH_KEY)
        .replace(
            "minio.example-1:...",
            "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
        )
        .replace("ca-file = \"my-ca.pem\"", "");
    assert_eq!(World::with(meant.as_bytes()).start(), [""; 0], "{meant}");
}

/// A change that a person, an editor or a card makes.
fn change() -> impl Strategy<Value = (usize, usize, Vec<u8>)> {
    let inserted = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..8),
        Just(b"\"".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"[".to_vec()),
        Just(b"]]".to_vec()),
        Just(b"'''".to_vec()),
        Just(b"= {".to_vec()),
        Just(b"\n\n[wlan]\n".to_vec()),
        Just("\u{201c}".as_bytes().to_vec()),
    ];
    (any::<usize>(), 0..40_usize, inserted)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_file_whatever_panics_or_costs_the_daemon_its_configuration(
        changes in proptest::collection::vec(change(), 1..5),
    ) {
        let mut text = whole().into_bytes();
        for (at, gone, inserted) in changes {
            let at = at % (text.len() + 1);
            let end = (at + gone).min(text.len());
            text.splice(at..end, inserted);
        }
        let world = World::with(&text);
        let told = world.start();
        prop_assert!(told.len() <= 64);
        let daemon = world.etc("snowberry/snowberry.toml").unwrap();
        let surroundings = crate::config::Surroundings {
            is_root: true,
            files: crate::config::Files::Elsewhere,
            ..Default::default()
        };
        prop_assert!(crate::config::parse(&daemon, &surroundings).is_ok(), "{}", daemon);
        prop_assert!(world.etc("hostname").is_some());
    }

    #[test]
    fn a_right_key_is_never_lost_beside_a_wrong_line(
        wrong in "[ -~]{1,30}",
        at in 0_usize..5,
    ) {
        let parts = [
            "[system]\nhostname = \"attic\"\n",
            "[wlan]\nssid = \"home\"\npassword = \"correct horse\"\n",
            "[locale]\ntimezone = \"Europe/Berlin\"\n",
            "[network]\naddress = \"192.168.1.20/24\"\n",
            "[store]\nbudget = \"20 GiB\"\n",
        ];
        // A wrong line below the last key of a table; what it opens it does not close.
        prop_assume!(!wrong.contains("\"\"\"") && !wrong.contains("'''"));
        let mut text = String::new();
        for (index, part) in parts.iter().enumerate() {
            text.push_str(part);
            if index == at {
                text.push_str(&wrong);
                text.push('\n');
            }
        }
        let world = World::with(text.as_bytes());
        world.start();
        prop_assert_eq!(world.etc("hostname").unwrap(), "attic\n", "{}", text);
        prop_assert!(world.wlan().contains("correct horse"), "{}", text);
        prop_assert!(world.root("etc/localtime").symlink_metadata().is_ok(), "{}", text);
        let wired = world.etc("systemd/network/10-snowberry-wired.network");
        let wireless = world.etc("systemd/network/10-snowberry-wireless.network");
        prop_assert!(wired.or(wireless).unwrap().contains("192.168.1.20/24"));
        let daemon = world.etc("snowberry/snowberry.toml").unwrap();
        prop_assert!(daemon.contains("20 GiB"), "{}\n{}", text, daemon);
    }
}
