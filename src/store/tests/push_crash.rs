//! The plug is pulled at any call: what was acknowledged is there whole, with all of its rows, and no
//! row is there without what it is about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::kit::*;
use super::push_kit::*;
use crate::store::disk::fault::Faulty;
use crate::store::disk::memory::Memory;
use crate::store::{Error, Origin, Queued, State, Store};

const SEEDS: u64 = 24;

/// Smaller than what a life fills, so that eviction runs and uploads are refused.
const BUDGET: u64 = 16 << 20;

const DISK: u64 = 4 << 30;

fn len_of(seed: u64) -> usize {
    let lens = [0, 3000, 40_000, 300_000, 900_000, 2_500_000];
    lens[usize::try_from(seed).unwrap() % lens.len()] + usize::try_from(seed).unwrap() * 7
}

fn targets(choice: u64) -> &'static [&'static str] {
    [&[][..], &[ONE], &[TWO], &[ONE, TWO]][usize::try_from(choice % 4).unwrap()]
}

fn name_of(seed: u64) -> String {
    format!("log/{seed}")
}

fn document(seed: u64) -> Bytes {
    stream(seed, 300 + usize::try_from(seed).unwrap())
}

/// What was acknowledged and not answered as gone since.
#[derive(Default)]
struct Model {
    rows: BTreeSet<(&'static str, Queued)>,
    /// All that ever was: what is gone without a durable commit may come back.
    ever: BTreeSet<(&'static str, Queued)>,
    /// Acceptances that nobody answered, with the targets that they were for.
    open: BTreeMap<Queued, &'static [&'static str]>,
    aliases: BTreeSet<u64>,
}

impl Model {
    fn acknowledged(&mut self, targets: &[&'static str], what: &Queued) {
        for target in targets {
            self.rows.insert((*target, what.clone()));
            self.ever.insert((*target, what.clone()));
        }
    }

    /// Several at once, so that they share a commit.
    async fn accept(&mut self, store: &Store, chance: &mut Chance) -> Result<(), Error> {
        let mut all = tokio::task::JoinSet::new();
        let mut chosen = BTreeSet::new();
        for _ in 0..=chance.below(3) {
            let (seed, choice, second) =
                (chance.below(SEEDS), chance.below(4), 100 * chance.below(2));
            if !chosen.insert(seed) {
                continue;
            }
            self.open.insert(path(seed + second), targets(choice));
            let store = store.clone();
            all.spawn(async move {
                let nar = match upload(&store, seed, len_of(seed), seed).await {
                    Ok(nar) => nar,
                    Err(error) => return (seed, second, choice, Err(error)),
                };
                let numbers = (seed + second, seed);
                let accepted = accept(&store, numbers, nar, targets(choice), seed).await;
                (seed, second, choice, accepted)
            });
        }
        let mut worst = Ok(());
        while let Some(accepted) = all.join_next().await {
            let (seed, second, choice, accepted) = accepted.unwrap();
            match accepted {
                Ok(()) => {
                    self.aliases.insert(seed);
                    let what = path(seed + second);
                    self.open.remove(&what);
                    self.acknowledged(targets(choice), &what);
                }
                Err(Error::NoRoom { .. }) => drop(self.open.remove(&path(seed + second))),
                Err(error) => worst = Err(error),
            }
        }
        worst
    }

    async fn strike(&mut self, store: &Store, chance: &mut Chance) -> Result<(), Error> {
        let target = [ONE, TWO][usize::try_from(chance.below(2)).unwrap()];
        for row in store.queue(target, 0, 8).await? {
            self.rows.remove(&(target, row.what.clone()));
            store.strike(target, row.what, row.seq).await?;
        }
        Ok(())
    }

    async fn step(&mut self, store: &Store, chance: &mut Chance) -> Result<(), Error> {
        let seed = chance.below(SEEDS);
        match chance.below(16) {
            0..=6 => self.accept(store, chance).await,
            7 | 8 => self.strike(store, chance).await,
            9 => {
                let choice = targets(chance.below(4));
                let (name, body) = (name_of(seed), document(seed));
                let what = Queued::Document(name.clone());
                self.open.insert(what.clone(), choice);
                let urls = choice.iter().map(|target| (*target).to_owned()).collect();
                store.accept_document(&name, body, urls, 5).await?;
                self.open.remove(&what);
                self.acknowledged(choice, &what);
                Ok(())
            }
            10 => store.drop_unbound(seed).await.map(drop),
            11 => {
                drop(upload(store, seed, len_of(seed), seed).await?);
                Ok(())
            }
            12 => store.flush().await,
            13 => {
                self.rows.retain(|(target, _)| *target != TWO);
                store.forget_target(TWO, false).await.map(drop)
            }
            14 => store.withdraw_narinfo(key(seed)).await,
            // Others want room.
            _ => fill(store, 1000 + seed, 1_500_000).await.map(drop),
        }
    }

    /// After a crash and a new start.
    async fn check(&mut self, store: &Store) {
        let mut found = BTreeSet::new();
        for target in [ONE, TWO] {
            for row in store.queue(target, 0, 1000).await.unwrap() {
                match &row.what {
                    Queued::Document(name) => {
                        assert!(store.document(name).await.unwrap().is_some(), "{row:?}");
                    }
                    Queued::Path(key) => {
                        let (stored, held) = store.lookup(*key).await.unwrap().unwrap();
                        assert_eq!(stored.origin, Origin::Ours);
                        let held = held.unwrap_or_else(|| panic!("{row:?} without its NAR"));
                        assert_eq!(held.file_size(), row.len_bytes);
                        check_whole(&held).await;
                    }
                }
                assert!(found.insert((target, row.what)), "a row is there twice");
            }
        }
        let missing: Vec<_> = self.rows.difference(&found).collect();
        assert!(missing.is_empty(), "acknowledged and gone: {missing:?}");
        // What nobody answered is there at all of its targets or at none (but those of before).
        for (what, targets) in std::mem::take(&mut self.open) {
            let new = |it: &&&'static str| !self.ever.contains(&(**it, what.clone()));
            let new: Vec<_> = targets.iter().filter(new).collect();
            let there = new.iter().filter(|it| found.contains(&(***it, what.clone()))).count();
            assert!(there == 0 || there == new.len(), "{what:?} is half there");
        }
        for seed in std::mem::take(&mut self.aliases) {
            let is_queued = found.contains(&(ONE, path(seed)));
            let alias = store.alias(upload_name(seed)).await.unwrap();
            assert!(alias.is_some() || !is_queued, "{seed} has lost its alias");
        }
        self.ever.extend(found.iter().cloned());
        self.rows = found;
    }
}

async fn round(seed: u64) {
    let house = House::new(BUDGET);
    let mut chance = Chance(seed ^ 0x7075_7368);
    let mut memory = Memory::new(DISK);
    let mut model = Model::default();
    for life in 0..4 {
        let disk = Faulty::new(memory.clone());
        let store = house.start(Arc::new(disk.clone()));
        assert_eq!(store.first_opened().await, State::Open, "round {seed}, life {life}");
        disk.pull_plug_at(1 + chance.below(1200));
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
        check_figures(&store).await;
        store.close().await;
    }
}

#[tokio::test]
async fn a_pulled_plug_loses_nothing_that_was_acknowledged() {
    for seed in 0..rounds() {
        round(seed).await;
    }
}
