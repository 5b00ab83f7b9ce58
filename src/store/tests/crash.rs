//! The plug is pulled at any call: what the store calls held afterwards is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::kit::*;
use crate::store::disk::fault::Faulty;
use crate::store::disk::memory::Memory;
use crate::store::{Error, Origin, State, Store};

/// NARs of a round, by their seeds.
const SEEDS: u64 = 40;

/// Smaller than what a life fills, so that eviction runs.
const BUDGET: u64 = 24 << 20;

const DISK: u64 = 4 << 30;

/// Lengths of all kinds, the same for the same seed.
fn len_of(seed: u64) -> usize {
    let lens = [0, 3000, 40_000, 261_112, 300_000, 900_000, 1_500_000, 4_300_000];
    let len = lens[usize::try_from(seed).unwrap() % lens.len()];
    len + usize::try_from(seed).unwrap() * 7
}

/// What has to be there after a crash.
#[derive(Default)]
struct Model {
    /// Finished before a flush that was answered.
    durable: BTreeSet<u64>,
    finished: BTreeSet<u64>,
    /// Withdrawn, and answered.
    gone: BTreeSet<u64>,
    narinfos: BTreeMap<u64, bool>,
    evicted_before: u64,
}

impl Model {
    async fn step(&mut self, store: &Store, chance: &mut Chance) -> Result<(), Error> {
        let seed = chance.below(SEEDS);
        match chance.below(12) {
            0..=5 => {
                self.gone.remove(&seed);
                let held = fill(store, seed, len_of(seed)).await?;
                assert_eq!(held.nar_hash(), nar_hash(seed));
                self.finished.insert(seed);
            }
            6 => {
                self.finished.remove(&seed);
                self.durable.remove(&seed);
                store.withdraw_nar(nar_hash(seed)).await?;
                self.gone.insert(seed);
            }
            7 => {
                store.flush().await?;
                self.durable.append(&mut self.finished);
                self.narinfos.values_mut().for_each(|durable| *durable = true);
            }
            8 => {
                let mut writer = begin(store, len_of(seed)).await?;
                writer.append(stream(seed, len_of(seed) / 2)).await?;
            }
            9 => {
                store.keep_narinfo(narinfo(seed, seed)).await?;
                self.narinfos.entry(seed).or_insert(false);
            }
            10 => {
                let body = Bytes::from_static(b"a log");
                store.keep_document(&format!("log/{seed}"), body, Origin::Ours).await?;
            }
            _ => {
                if let Some(held) = store.nar(nar_hash(seed)).await? {
                    assert!(whole(&held).await? == stream(seed, len_of(seed)));
                }
            }
        }
        Ok(())
    }

    /// After a crash and a new start.
    async fn check(&mut self, store: &Store, evicted: u64) {
        let mut held = BTreeSet::new();
        for seed in 0..SEEDS {
            let Some(nar) = store.nar(nar_hash(seed)).await.unwrap() else { continue };
            assert!(!self.gone.contains(&seed), "{seed} was withdrawn");
            check_whole(&nar).await;
            assert!(whole(&nar).await.unwrap() == stream(seed, len_of(seed)));
            held.insert(seed);
        }
        let missing = self.durable.difference(&held).count();
        let evicted_now = usize::try_from(evicted - self.evicted_before).unwrap();
        assert!(missing <= evicted_now, "{missing} are gone, {evicted_now} were evicted");
        for (seed, durable) in &self.narinfos {
            let stored = narinfo(*seed, *seed);
            let found = store.lookup(stored.narinfo.store_path.hash()).await.unwrap();
            assert!(found.is_none_or(|found| found.0 == stored) || !durable);
        }
        self.durable = held;
        self.finished.clear();
        self.evicted_before = evicted;
    }
}

async fn round(seed: u64) {
    let house = House::new(BUDGET);
    let mut chance = Chance(seed);
    let mut memory = Memory::new(DISK);
    let mut model = Model::default();
    for life in 0..4 {
        let disk = Faulty::new(memory.clone());
        if chance.below(8) == 0 {
            disk.pull_plug_at(1 + chance.below(60));
        }
        let store = house.start(Arc::new(disk.clone()));
        let state = store.first_opened().await;
        if !disk.is_pulled() {
            assert_eq!(state, State::Open, "round {seed}, life {life}");
        }
        if state == State::Open && !disk.is_pulled() {
            disk.pull_plug_at(1 + chance.below(1500));
            for _ in 0..60 {
                match model.step(&store, &mut chance).await {
                    Ok(()) | Err(Error::NoRoom { .. }) => {}
                    Err(error) => {
                        assert!(disk.is_pulled(), "round {seed}, life {life}: {error}");
                        break;
                    }
                }
            }
        }
        disk.pull_plug();
        let found = memory.after_power_cut(chance.below(u64::MAX));
        store.close().await;
        memory = found;

        let store = house.start(Arc::new(memory.clone()));
        assert_eq!(store.first_opened().await, State::Open, "found in round {seed}, life {life}");
        model.check(&store, house.metrics.evicted.get()).await;
        check_books(&store).await;
        model.evicted_before = house.metrics.evicted.get();
        model
            .durable
            .retain(|seed| records(&store).iter().any(|(_, nar)| nar.nar_hash == nar_hash(*seed)));
        store.close().await;
    }
}

#[tokio::test]
async fn a_pulled_plug_tears_nothing() {
    for seed in 0..rounds() {
        round(seed).await;
    }
}
