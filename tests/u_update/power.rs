//! The plug is pulled between every two steps: the card always boots, what boots is whole, and the same
//! thing can be done again.

use std::fs;

use snowberry::appliance::{Slot, UpdateState};
use snowberry::update::{Boot, Downgrade, Error, Package, install, look, roll_back};

use super::card::{Card, FIRST, NEXT, NOW, Plug, Restart, Update, version};

fn install_with(card: &Card, plug: &mut Plug) -> Result<(), Error> {
    let path = card.put(&Update::new(NEXT));
    let machine = card.machine();
    let package = Package::open(&path, &machine.keys()?)?;
    install(&machine, &package, Downgrade::Refused, NOW, plug)
}

/// On trial in slot b.
fn on_trial() -> Card {
    let mut card = Card::new();
    settle(&card);
    install_with(&card, &mut Plug::default()).unwrap();
    assert_eq!(card.boot(Restart::Tryboot), (Slot::B, NEXT.to_owned()));
    card
}

/// What `--confirm` does in a slot that is always booted.
fn settle(card: &Card) {
    let boot = look(&card.machine(), NOW).unwrap();
    assert!(matches!(boot, Boot::Settled), "{boot:?}");
}

fn stay_with(card: &Card, plug: &mut Plug) -> Result<(), Error> {
    let machine = card.machine();
    match look(&machine, NOW)? {
        Boot::OnTrial(trial) => trial.stay(&machine, NOW, plug),
        Boot::Settled => panic!("no trial"),
    }
}

#[test]
fn an_install_that_is_cut_anywhere_leaves_what_runs_and_can_be_done_again() {
    let mut seen = Vec::new();
    for step in 0.. {
        let mut card = Card::new();
        settle(&card);
        let mut plug = Plug::at(step);
        let done = install_with(&card, &mut plug);
        assert_eq!(card.boots(Restart::Plain), Some((Slot::A, FIRST.to_owned())), "{plug:?}");
        // Even a restart that asks for a trial finds a whole system, of one version.
        let tried = card.boots(Restart::Tryboot).unwrap_or_else(|| panic!("{plug:?}"));
        let wanted = [(Slot::A, FIRST.to_owned()), (Slot::B, NEXT.to_owned())];
        assert!(wanted.contains(&tried), "{plug:?}");
        // A slot that was being written is no way back.
        let back = roll_back(&card.machine(), NOW, &mut Plug::default());
        assert!(matches!(back, Err(Error::NoWayBack { .. })), "{back:?}");
        card.boot(Restart::Plain);
        settle(&card);
        install_with(&card, &mut Plug::default()).unwrap();
        assert_eq!(card.boot(Restart::Tryboot), (Slot::B, NEXT.to_owned()));
        seen = plug.steps;
        if done.is_ok() {
            break;
        }
    }
    for step in ["verified", "a block of the slot", "slot durable", "a boot file", "installed"] {
        assert!(seen.contains(&step), "{step} is not among {seen:?}");
    }
    assert!(seen.len() > 15, "{seen:?}");
}

#[test]
fn a_trial_that_ends_anywhere_falls_back_unless_it_stays() {
    for step in 0.. {
        let mut card = on_trial();
        let mut plug = Plug::at(step);
        let done = stay_with(&card, &mut plug);
        let stays = plug.steps.contains(&"config.txt replaced")
            || step == plug.steps.len() && plug.steps == ["judged well"];
        let (slot, version_now) = card.boot(Restart::Plain);
        let wanted = if stays { (Slot::B, NEXT) } else { (Slot::A, FIRST) };
        assert_eq!((slot, version_now.as_str()), wanted, "{plug:?}");
        settle(&card);
        let record = card.machine().folder().unwrap().record();
        assert_eq!(record.trial, None, "{plug:?}");
        let holds = record.holds(slot).unwrap();
        assert!(holds.confirmed && holds.version.to_string() == version_now, "{record:?}");
        if stays {
            assert_eq!((record.state, record.refused.len()), (UpdateState::Idle, 0), "{plug:?}");
        } else {
            assert_eq!(record.state, UpdateState::RolledBack);
            assert_eq!(record.refused, [version(NEXT)]);
            assert!(record.last_error.unwrap().contains("restarted before it was confirmed"));
        }
        if done.is_ok() {
            break;
        }
    }
}

#[test]
fn a_trial_that_never_comes_up_is_known_and_not_tried_again_by_itself() {
    let mut card = Card::new();
    settle(&card);
    install_with(&card, &mut Plug::default()).unwrap();
    // The same boot is no trial.
    settle(&card);
    let record = || card.machine().folder().unwrap().record();
    assert_eq!(record().trial.unwrap().version, version(NEXT));
    card.boot(Restart::Plain);
    settle(&card);
    let record = card.machine().folder().unwrap().record();
    assert_eq!((record.state, record.trial), (UpdateState::RolledBack, None));
    assert_eq!(record.refused, [version(NEXT)]);
    assert!(record.last_error.unwrap().contains("did not come up"));
    // By hand it is.
    install_with(&card, &mut Plug::default()).unwrap();
    assert!(card.machine().folder().unwrap().record().refused.is_empty());
}

#[test]
fn the_way_back_is_cut_anywhere_and_boots_all_the_same() {
    for step in 0.. {
        let mut card = on_trial();
        stay_with(&card, &mut Plug::default()).unwrap();
        assert_eq!(card.boot(Restart::Plain), (Slot::B, NEXT.to_owned()));
        settle(&card);
        let mut plug = Plug::at(step);
        let done = roll_back(&card.machine(), NOW, &mut plug);
        assert_eq!(card.boots(Restart::Plain), Some((Slot::B, NEXT.to_owned())), "{plug:?}");
        if done.is_err() {
            assert!(card.boots(Restart::Tryboot).is_some(), "{plug:?}");
            continue;
        }
        assert_eq!(card.boot(Restart::Tryboot), (Slot::A, FIRST.to_owned()));
        stay_with(&card, &mut Plug::default()).unwrap();
        assert_eq!(card.boot(Restart::Plain), (Slot::A, FIRST.to_owned()));
        settle(&card);
        // What was taken back is left out by the timer, and can be gone forward to.
        let record = card.machine().folder().unwrap().record();
        assert_eq!((record.state, record.refused), (UpdateState::Idle, vec![version(NEXT)]));
        roll_back(&card.machine(), NOW, &mut Plug::default()).unwrap();
        assert_eq!(card.boot(Restart::Tryboot), (Slot::B, NEXT.to_owned()));
        break;
    }
}

#[test]
fn a_slot_that_changed_since_is_no_way_back() {
    let mut card = on_trial();
    stay_with(&card, &mut Plug::default()).unwrap();
    card.boot(Restart::Plain);
    settle(&card);
    let whole = fs::read(&card.layout.slots.a).unwrap();
    let other = [b"another card", &whole[12..]].concat();
    fs::write(&card.layout.slots.a, other).unwrap();
    let back = roll_back(&card.machine(), NOW, &mut Plug::default());
    assert!(matches!(back, Err(Error::NoWayBack { slot: Slot::A, .. })), "{back:?}");
    fs::write(&card.layout.slots.a, whole).unwrap();
    fs::write(card.path("boot/a/vmlinuz"), "kernel 0.1.0 and more").unwrap();
    assert!(roll_back(&card.machine(), NOW, &mut Plug::default()).is_err());
}

#[test]
fn without_the_data_partition_a_trial_still_stays() {
    let mut card = on_trial();
    fs::remove_dir_all(&card.layout.data).unwrap();
    stay_with(&card, &mut Plug::default()).unwrap();
    assert_eq!(card.boot(Restart::Plain), (Slot::B, NEXT.to_owned()));
    settle(&card);
}
