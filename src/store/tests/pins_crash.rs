//! The plug is pulled at any call: a pin that was acknowledged holds, with every NAR that was here
//! then; one that replaces another is there, or the other is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kit::*;
use super::pin_kit::*;
use super::push_kit::*;
use crate::store::disk::fault::Faulty;
use crate::store::disk::memory::Memory;
use crate::store::{Error, State, Store};

const NUMBERS: u64 = 16;

const NAMES: [&str; 3] = ["desktop", "laptop", "web"];

/// Smaller than what a life fills, so that eviction runs.
const BUDGET: u64 = 12 << 20;

const DISK: u64 = 4 << 30;

fn len_of(number: u64) -> usize {
    let lens = [500, 40_000, 300_000, 900_000];
    lens[usize::try_from(number).unwrap() % lens.len()] + usize::try_from(number).unwrap() * 7
}

/// Numbers, and whether their NAR was here when the pin was acknowledged.
type Held = BTreeMap<u64, bool>;

#[derive(Default)]
struct Model {
    pins: BTreeMap<&'static str, Held>,
    /// Asked for and not answered: what it would hold, or nothing.
    open: Option<(&'static str, Option<Vec<u64>>)>,
}

impl Model {
    async fn pin(&mut self, store: &Store, chance: &mut Chance) -> Result<(), Error> {
        let name = NAMES[usize::try_from(chance.below(3)).unwrap()];
        let numbers: Vec<u64> = (0..=chance.below(4)).map(|_| chance.below(NUMBERS)).collect();
        self.open = Some((name, Some(numbers.clone())));
        let id = store.begin_pin(name, Vec::new(), 1).await?;
        let keys = numbers.iter().map(|number| key(*number)).collect();
        assert!(store.pin_paths(id, keys).await?);
        if chance.below(4) == 0 {
            // Its client goes away.
            self.open = None;
            return Ok(());
        }
        let mut held = Held::new();
        for number in numbers {
            held.insert(number, store.lookup(key(number)).await?.is_some_and(|it| it.1.is_some()));
        }
        assert!(store.hold_pin(id).await?);
        self.pins.insert(name, held);
        self.open = None;
        Ok(())
    }

    async fn step(&mut self, store: &Store, chance: &mut Chance) -> Result<(), Error> {
        let number = chance.below(NUMBERS);
        match chance.below(12) {
            0..=3 => self.pin(store, chance).await,
            4 => {
                let name = NAMES[usize::try_from(chance.below(3)).unwrap()];
                self.open = Some((name, None));
                store.unpin(name).await?;
                self.pins.remove(name);
                self.open = None;
                Ok(())
            }
            5..=8 => {
                drop(fill(store, number, len_of(number)).await?);
                store.keep_narinfo(narinfo(number, number)).await
            }
            9 => store.flush().await,
            // Others want room.
            _ => fill(store, 1000 + number, 1_500_000).await.map(drop),
        }
    }

    async fn check(&mut self, store: &Store) {
        if let Some((name, wanted)) = self.open.take() {
            let found = paths_of(store, name).await;
            let mut keys: Vec<_> = wanted.iter().flatten().map(|number| key(*number)).collect();
            keys.sort_unstable();
            keys.dedup();
            let is_new = match (&found, &wanted) {
                (Some(found), Some(_)) => found.iter().map(|path| path.key).eq(keys),
                (None, None) => true,
                (_, _) => false,
            };
            if is_new {
                let held = wanted.map(|it| it.into_iter().map(|number| (number, false)).collect());
                self.pins.remove(name);
                self.pins.extend(held.map(|held| (name, held)));
            }
        }
        for name in NAMES {
            let found = paths_of(store, name).await;
            let found: Option<Vec<_>> = found.map(|it| it.iter().map(|path| path.key).collect());
            let wanted = self.pins.get(name).map(|held| {
                let mut keys: Vec<_> = held.keys().map(|number| key(*number)).collect();
                keys.sort_unstable();
                keys
            });
            assert_eq!(found, wanted, "{name}");
            for (number, was_held) in self.pins.get(name).into_iter().flatten() {
                let Some(held) = store.lookup(key(*number)).await.unwrap() else {
                    assert!(!was_held, "the narinfo of {number} is gone");
                    continue;
                };
                match held.1 {
                    Some(held) => check_whole(&held).await,
                    None => assert!(!was_held, "{number} is gone"),
                }
            }
        }
    }
}

async fn round(seed: u64) {
    let house = House::new(BUDGET);
    let mut chance = Chance(seed ^ 0x70_696e);
    let mut memory = Memory::new(DISK);
    let mut model = Model::default();
    for life in 0..4 {
        let disk = Faulty::new(memory.clone());
        let store = house.start(Arc::new(disk.clone()));
        assert_eq!(store.first_opened().await, State::Open, "round {seed}, life {life}");
        disk.pull_plug_at(1 + chance.below(900));
        for _ in 0..50 {
            match model.step(&store, &mut chance).await {
                Ok(()) | Err(Error::NoRoom { .. }) => {}
                Err(error) => {
                    assert!(disk.is_pulled(), "round {seed}, life {life}: {error}");
                    break;
                }
            }
        }
        disk.pull_plug();
        let found = memory.after_power_cut(chance.below(u64::MAX));
        store.close().await;
        memory = found;
        let store = house.start(Arc::new(memory.clone()));
        assert_eq!(store.first_opened().await, State::Open, "found in round {seed}, life {life}");
        model.check(&store).await;
        check_pins(&store).await;
        store.close().await;
    }
}

#[tokio::test]
async fn a_pulled_plug_leaves_each_pin_as_it_was_or_as_it_was_to_be() {
    for seed in 0..rounds() {
        round(seed).await;
    }
}
