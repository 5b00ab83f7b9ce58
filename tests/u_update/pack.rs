//! `image/pack-update`: what it packs, the program installs; twice the same bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use snowberry::nix::{PublicKey, TrustedKeys};
use snowberry::store;
use snowberry::update::{ARCH, Downgrade, Package, install};

use super::card::{Card, NEXT, NOW, Plug, Restart, Update};
use super::world::parts;

/// None: the test was noted as skipped and must return.
fn pack(arguments: &[&Path]) -> Option<Output> {
    for needed in ["openssl", "zstd"] {
        parts::program(needed)?;
    }
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("image/pack-update");
    let mut command = Command::new(program);
    Some(command.args(arguments).env("SOURCE_DATE_EPOCH", "1795266000").output().unwrap())
}

/// What is packed: the parts of an update as files.
fn folder_of(update: &Update, at: &Path) {
    for (name, bytes) in &update.parts {
        let path = at.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    fs::write(at.join("version"), format!("{}\n", update.version)).unwrap();
    fs::write(at.join("arch"), ARCH).unwrap();
}

struct Packed {
    card: Card,
    folder: PathBuf,
    out: PathBuf,
    key: PathBuf,
}

fn packed() -> Option<Packed> {
    let card = Card::new();
    let (folder, key) = (card.path("in"), card.path("release.pem"));
    folder_of(&Update::new(NEXT), &folder);
    let made = pack(&["--new-key".as_ref(), &key, "release-7".as_ref()])?;
    assert!(made.status.success(), "{made:?}");
    fs::write(&card.layout.keys, made.stdout).unwrap();
    fs::create_dir(card.path("out")).unwrap();
    let out = card.path("out/snowberry.update");
    let done = pack(&[&folder, &out, &key, "release-7".as_ref()])?;
    assert!(done.status.success(), "{done:?}");
    Some(Packed { card, folder, out, key })
}

#[test]
fn what_is_packed_is_installed() {
    let Some(Packed { mut card, out, .. }) = packed() else { return };
    let machine = card.machine();
    let package = Package::open(&out, &machine.keys().unwrap()).unwrap();
    let manifest = &package.head().manifest;
    assert_eq!((manifest.store_format, manifest.time), (store::FORMAT, NOW));
    install(&machine, &package, Downgrade::Refused, NOW, &mut Plug::default()).unwrap();
    assert_eq!(fs::read(card.path("out/latest")).unwrap(), package.head().bytes);
    assert_eq!(card.boot(Restart::Tryboot).1, NEXT);
}

#[test]
fn the_same_input_is_the_same_file() {
    let Some(Packed { card, folder, out, key }) = packed() else { return };
    let before = fs::read(&out).unwrap();
    fs::create_dir(card.path("again")).unwrap();
    let again = card.path("again/snowberry.update");
    assert!(pack(&[&folder, &again, &key, "release-7".as_ref()]).unwrap().status.success());
    assert!(fs::read(&again).unwrap() == before);
}

#[test]
fn two_keys_sign_and_a_key_is_secret_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(Packed { card, folder, out, key }) = packed() else { return };
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let again = pack(&["--new-key".as_ref(), &key, "release-7".as_ref()]).unwrap();
    assert!(!again.status.success() && again.stdout.is_empty(), "{again:?}");
    let second = card.path("second.pem");
    let made = pack(&["--new-key".as_ref(), &second, "release-8".as_ref()]).unwrap();
    let line = String::from_utf8(made.stdout).unwrap();
    let new = TrustedKeys::new(vec![PublicKey::parse(line.trim()).unwrap()]);
    assert!(Package::open(&out, &new).is_err());
    let by_both: [&Path; 6] =
        [&folder, &out, &key, "release-7".as_ref(), &second, "release-8".as_ref()];
    assert!(pack(&by_both).unwrap().status.success());
    Package::open(&out, &new).unwrap();
    Package::open(&out, &card.machine().keys().unwrap()).unwrap();
}

#[test]
fn what_could_not_be_installed_is_not_packed() {
    let Some(Packed { card, folder, key, .. }) = packed() else { return };
    let out = card.path("out/other.update");
    let refused = |words: &str| {
        let done = pack(&[&folder, &out, &key, "release-7".as_ref()]).unwrap();
        let told = String::from_utf8(done.stderr).unwrap();
        assert!(!done.status.success() && told.contains(words), "{told}\n{words}");
        assert!(!out.exists());
    };
    fs::write(folder.join("version"), "one\n").unwrap();
    refused("no version");
    fs::write(folder.join("version"), NEXT).unwrap();
    fs::write(folder.join("boot/a name"), "x").unwrap();
    refused("no name that an update may have");
    fs::remove_file(folder.join("boot/a name")).unwrap();
    fs::remove_file(folder.join("boot/vmlinuz")).unwrap();
    refused("boot/vmlinuz is missing");
}
