//! Garbage in each small file: told, never believed, and the card boots what it booted.

use std::fs;

use snowberry::appliance::{LAYOUT_FILE, Layout, Notes, Slot};
use snowberry::update::{Boot, Downgrade, Package, install, look};

use super::card::{Card, FIRST, NEXT, NOW, Plug, Restart, Update};

/// What a torn or worn card may have in the place of a small file.
fn garbage() -> Vec<Vec<u8>> {
    let noise = (0..1024_u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    vec![
        Vec::new(),
        vec![0; 512],
        vec![0xff; 1 << 17],
        b"os_prefix=".to_vec(),
        b"state = \"idle\"\nsince = -1".to_vec(),
        b"version = \"x\"".to_vec(),
        noise,
    ]
}

fn install_next(card: &Card) -> Result<(), snowberry::update::Error> {
    let path = card.put(&Update::new(NEXT));
    let machine = card.machine();
    let package = Package::open(&path, &machine.keys()?)?;
    install(&machine, &package, Downgrade::Refused, NOW, &mut Plug::default())
}

#[test]
fn garbage_in_config_txt_is_told_and_left() {
    for bytes in garbage() {
        let card = Card::new();
        fs::write(card.path("boot/config.txt"), &bytes).unwrap();
        assert!(install_next(&card).is_err());
        assert!(look(&card.machine(), NOW).is_err());
        assert_eq!(fs::read(card.path("boot/config.txt")).unwrap(), bytes);
        assert!(!card.path("boot/tryboot.txt").exists());
    }
}

#[test]
fn a_config_txt_that_breaks_during_a_trial_is_replaced_by_what_booted_it() {
    for bytes in garbage() {
        let mut card = Card::new();
        install_next(&card).unwrap();
        card.boot(Restart::Tryboot);
        fs::write(card.path("boot/config.txt"), &bytes).unwrap();
        let machine = card.machine();
        let Boot::OnTrial(trial) = look(&machine, NOW).unwrap() else { panic!("no trial") };
        trial.stay(&machine, NOW, &mut Plug::default()).unwrap();
        assert_eq!(card.boot(Restart::Plain), (Slot::B, NEXT.to_owned()));
    }
}

#[test]
fn garbage_in_tryboot_txt_and_in_the_record_costs_nothing_but_memory() {
    for bytes in garbage() {
        let mut card = Card::new();
        look(&card.machine(), NOW).unwrap();
        fs::write(card.path("boot/tryboot.txt"), &bytes).unwrap();
        fs::write(card.path("data/update/record.toml"), &bytes).unwrap();
        assert!(matches!(look(&card.machine(), NOW).unwrap(), Boot::Settled));
        assert_eq!(card.boots(Restart::Plain), Some((Slot::A, FIRST.to_owned())));
        install_next(&card).unwrap();
        fs::write(card.path("data/update/record.toml"), &bytes).unwrap();
        assert_eq!(card.boot(Restart::Tryboot), (Slot::B, NEXT.to_owned()));
        let machine = card.machine();
        let Boot::OnTrial(trial) = look(&machine, NOW).unwrap() else { panic!("no trial") };
        trial.stay(&machine, NOW, &mut Plug::default()).unwrap();
        assert_eq!(card.boot(Restart::Plain), (Slot::B, NEXT.to_owned()));
    }
}

#[test]
fn garbage_in_keys_layout_and_command_line_is_told() {
    for bytes in garbage() {
        let card = Card::new();
        fs::write(&card.layout.keys, &bytes).unwrap();
        assert!(install_next(&card).is_err());
        assert!(look(&card.machine(), NOW).is_ok(), "a boot needs no key");
        let layout = card.path("appliance.toml");
        fs::write(&layout, &bytes).unwrap();
        let error = Layout::read(&layout).unwrap_err();
        assert!(error.to_string().contains("appliance.toml"), "{error} {LAYOUT_FILE}");
        fs::write(card.path("proc/cmdline"), &bytes).unwrap();
        let machine = snowberry::update::Machine::read(card.layout.clone(), &card.path("proc"), 2);
        assert!(machine.is_err());
    }
}

#[test]
fn notes_are_told_even_where_garbage_lies() {
    for bytes in garbage() {
        let card = Card::new();
        fs::write(card.path("notes/update.toml"), &bytes).unwrap();
        fs::write(card.path("notes/update.toml.new"), &bytes).unwrap();
        look(&card.machine(), NOW).unwrap();
        let update = Notes::read(&card.layout.notes).unwrap().update.unwrap();
        assert_eq!((update.slot, update.version.as_str()), (Some(Slot::A), FIRST));
    }
    // Without a place for them everything else goes on.
    let card = Card::new();
    fs::remove_dir_all(&card.layout.notes).unwrap();
    fs::write(&card.layout.notes, b"a file").unwrap();
    install_next(&card).unwrap();
}
