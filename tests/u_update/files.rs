//! What is installed, and what is refused with the card left as it was.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use snowberry::appliance::Slot;
use snowberry::nix::SecretKey;
use snowberry::store;
use snowberry::update::{Downgrade, Error, Package, install};

use super::card::{Card, FIRST, NEXT, NOW, Plug, Restart, SLOT_LEN, Update, hex, version};

/// Every byte of the card.
fn everything(card: &Card) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![card.path("")]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn try_file(card: &Card, file: &[u8], downgrade: Downgrade) -> Result<(), Error> {
    let path = card.path("given.update");
    fs::write(&path, file).unwrap();
    let machine = card.machine();
    let package = Package::open(&path, &machine.keys()?)?;
    install(&machine, &package, downgrade, NOW, &mut Plug::default())
}

/// Refused with these words, and nothing is changed.
fn refused(card: &Card, file: &[u8], words: &str) {
    fs::write(card.path("given.update"), file).unwrap();
    let before = everything(card);
    let error = try_file(card, file, Downgrade::Refused).unwrap_err();
    let mut told = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        write!(told, ": {source}").unwrap();
        cause = source.source();
    }
    assert!(told.contains(words), "{told}\n{words}");
    assert!(everything(card) == before, "the card was changed by what is refused: {told}");
}

#[test]
fn an_update_is_written_whole_and_booted_once() {
    let mut card = Card::new();
    try_file(&card, &Update::new(NEXT).file(), Downgrade::Refused).unwrap();
    assert_eq!(card.boots(Restart::Plain), Some((Slot::A, FIRST.to_owned())));
    assert_eq!(card.boot(Restart::Tryboot), (Slot::B, NEXT.to_owned()));
    assert_eq!(card.read("boot/tryboot.txt"), card.read("boot/config.txt").replace("=a/", "=b/"));
    let overlay = fs::read(card.path("boot/b/overlays/x.dtbo")).unwrap();
    assert_eq!(overlay, vec![7; 5000]);
    assert_eq!(card.boot(Restart::Plain), (Slot::A, FIRST.to_owned()));
}

#[test]
fn what_is_not_right_is_refused_and_changes_nothing() {
    let card = Card::new();
    let good = Update::new(NEXT).file();
    refused(&card, b"", "is no update of snowberry");
    refused(&card, b"PK\x03\x04 something else", "is no update of snowberry");
    refused(&card, &good[..good.len() - 1], "cut short");
    refused(&card, &good[..100], "cut short");
    refused(&card, &[&good[..], b"x"].concat(), "cut short or is another file");
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    refused(&card, &damaged, "root.squashfs is damaged");
    let mut changed = good;
    changed[40] ^= 1;
    refused(&card, &changed, "has signed it");
    let stranger = SecretKey::from_seed("snowberry-release-1", [9; 32]).unwrap();
    let by_stranger = Update { keys: vec![stranger], ..Update::new(NEXT) };
    refused(&card, &by_stranger.file(), "none of this image's release keys (snowberry-release-1)");
    refused(&card, &Update { keys: vec![], ..Update::new(NEXT) }.file(), "signatures by none");
    let other = Update { arch: "riscv64".into(), ..Update::new(NEXT) };
    refused(&card, &other.file(), "is for riscv64");
    refused(&card, &Update::new(FIRST).file(), "is not newer than 0.1.0");
    refused(&card, &Update::new("0.0.9").file(), "--allow-downgrade");
    let format = Update { store_format: store::FORMAT + 1, ..Update::new(NEXT) };
    refused(&card, &format.file(), "a store that it cannot open");
}

#[test]
fn what_was_signed_and_is_wrong_all_the_same_is_refused() {
    let card = Card::new();
    let with = |name: &str, bytes: Vec<u8>| {
        let mut update = Update::new(NEXT);
        *update.part(name) = bytes;
        update.file()
    };
    refused(&card, &with("root.squashfs", vec![1; SLOT_LEN + 1]), "root file system needs 1.0 MiB");
    refused(&card, &with("boot/cmdline.txt", b"root=/dev/x quiet".to_vec()), "root=@ROOT@");
    refused(&card, &with("boot/cmdline.txt", vec![b' '; 5000]), "longer than the kernel reads");
    refused(&card, &with("boot/cmdline.txt", vec![0xff]), "it is no text");
    // A part that unpacks to more, or to something else, than what was signed of it.
    for (size, sha_of) in [(7, "kernel 0.2.0"), (12, "kernel 0.2.1"), (11, "kernel 0.2.0")] {
        let update = Update::new(NEXT);
        let (head, parts) = update.pack();
        let head = String::from_utf8(head).unwrap();
        let manifest = head.split_once('\n').unwrap().1.split_once("Sig: ").unwrap().0;
        let (before, after) = manifest.split_once("name = \"boot/vmlinuz\"\n").unwrap();
        let mut lines = after.splitn(3, '\n').skip(2);
        let hash = hex(sha_of.as_bytes());
        let manifest = format!(
            "{before}name = \"boot/vmlinuz\"\nsize = {size}\nsha256 = \"{hash}\"\n{}",
            lines.next().unwrap()
        );
        let file = [update.sign(&manifest), parts].concat();
        refused(&card, &file, "boot/vmlinuz does not unpack to what its manifest says");
    }
}

#[test]
fn a_file_goes_back_only_when_that_is_asked_for() {
    let mut card = Card::new();
    try_file(&card, &Update::new("0.0.9").file(), Downgrade::Allowed).unwrap();
    assert_eq!(card.boot(Restart::Tryboot), (Slot::B, "0.0.9".to_owned()));
    card.boot(Restart::Plain);
    try_file(&card, &Update::new(FIRST).file(), Downgrade::Allowed).unwrap();
    assert_eq!(card.boot(Restart::Tryboot), (Slot::B, FIRST.to_owned()));
}

#[test]
fn either_of_two_keys_is_enough_so_that_one_can_replace_the_other() {
    let card = Card::new();
    let new = SecretKey::from_seed("snowberry-release-2", [2; 32]).unwrap();
    let by_new = Update { keys: vec![new.clone()], ..Update::new(NEXT) };
    refused(&card, &by_new.file(), "it has signatures by snowberry-release-2");
    let by_both = Update { keys: vec![new.clone(), super::card::release_key()], ..by_new.clone() };
    try_file(&card, &by_both.file(), Downgrade::Refused).unwrap();
    let both: Vec<String> =
        [super::card::release_key(), new].iter().map(|key| key.public().to_string()).collect();
    let both = both.join("\n");
    fs::write(&card.layout.keys, both).unwrap();
    try_file(&card, &by_new.file(), Downgrade::Refused).unwrap();
}

#[test]
fn no_slot_is_written_while_another_runs_on_trial_or_when_it_is_not_known_which_runs() {
    let mut card = Card::new();
    try_file(&card, &Update::new(NEXT).file(), Downgrade::Refused).unwrap();
    card.boot(Restart::Tryboot);
    refused(&card, &Update::new("0.3.0").file(), "slot b runs on trial");
    card.boot(Restart::Plain);
    let config = card.read("boot/config.txt");
    fs::write(card.path("boot/config.txt"), "os_prefix=a/\nos_prefix=b/\n").unwrap();
    refused(&card, &Update::new("0.3.0").file(), "os_prefix");
    fs::write(card.path("boot/config.txt"), config).unwrap();
    assert_eq!(card.machine().folder().unwrap().record().trial.unwrap().version, version(NEXT));
}
