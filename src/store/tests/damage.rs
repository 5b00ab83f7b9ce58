//! A damaged segment takes its own NARs with it and nobody else's; no wrong byte is given.

use std::collections::BTreeSet;

use super::kit::*;
use crate::store::disk::memory::Memory;
use crate::store::disk::{Disk, Mode};
use crate::store::{Error, State, Store};

const BUDGET: u64 = 1 << 30;
const SEEDS: u64 = 24;

fn len_of(seed: u64) -> usize {
    usize::try_from(200_000 + seed * 150_001).unwrap()
}

/// A disk with a store of several segments.
async fn stored(house: &House) -> Memory {
    let memory = Memory::new(8 << 30);
    let store = house.open_on(memory.clone()).await;
    for seed in 0..SEEDS {
        fill(&store, seed, len_of(seed)).await.unwrap();
    }
    store.close().await;
    memory
}

/// Seeds of the NARs that have rows in a segment.
fn in_segment(store: &Store, segment: u32) -> BTreeSet<u64> {
    let records = records(store);
    let lies = |seed: &u64| {
        records.iter().any(|(_, record)| {
            let there = record.parts.iter().any(|part| part.segment == segment);
            there && record.nar_hash == nar_hash(*seed)
        })
    };
    (0..SEEDS).filter(lies).collect()
}

/// Reads all, fills again what is gone, and reads all again.
async fn check_only_its_own_are_gone(house: &House, memory: &Memory, segment: u32) -> usize {
    let store = house.open_on(memory.clone()).await;
    let own = in_segment(&store, segment);
    assert!(own.len() > 2 && own.len() < usize::try_from(SEEDS).unwrap() - 2);
    for seed in 0..SEEDS {
        let Some(held) = store.nar(nar_hash(seed)).await.unwrap() else {
            assert!(own.contains(&seed), "{seed} is gone with another's segment");
            continue;
        };
        match whole(&held).await {
            Ok(bytes) => assert!(bytes == stream(seed, len_of(seed)), "{seed}: wrong bytes"),
            Err(Error::Corrupt(hash)) => {
                assert_eq!(hash, nar_hash(seed));
                assert!(own.contains(&seed), "{seed} is damaged with another's segment");
            }
            Err(error) => panic!("{seed}: {error}"),
        }
    }
    // What is damaged goes in the background; only then is it known what has to be filled again.
    until_idle(&store).await;
    let mut gone = 0;
    for seed in 0..SEEDS {
        if store.nar(nar_hash(seed)).await.unwrap().is_none() {
            gone += 1;
            drop(fill(&store, seed, len_of(seed)).await.unwrap());
        }
    }
    check_books(&store).await;
    for seed in 0..SEEDS {
        let held = store.nar(nar_hash(seed)).await.unwrap().unwrap();
        assert!(whole(&held).await.unwrap() == stream(seed, len_of(seed)));
        drop(held);
    }
    assert_eq!(store.state(), State::Open);
    store.close().await;
    let store = house.open_on(memory.clone()).await;
    assert_eq!(store.figures().nars, SEEDS);
    store.close().await;
    gone
}

const NAME: &str = "nars-1.redb";

#[tokio::test]
async fn bits_that_flip_in_a_segment_cost_its_own_nars() {
    let house = House::new(BUDGET);
    let whole = stored(&house).await;
    for seed in 0..rounds() {
        let memory = whole.after_power_cut(0);
        let file = memory.open(NAME, Mode::Write).unwrap();
        let mut chance = Chance(seed);
        // A single bit, some, or a page of nothing.
        for _ in 0..1 << (seed % 7) {
            let at = chance.below(file.len_bytes().unwrap());
            let mut byte = [0];
            file.read(at, &mut byte).unwrap();
            file.write(at, &[byte[0] ^ (1 << chance.below(8))]).unwrap();
        }
        if seed % 3 == 0 {
            let pages = file.len_bytes().unwrap() / 4096;
            file.write(chance.below(pages) * 4096, &[0; 4096]).unwrap();
        }
        if seed % 5 == 0 {
            // The first pages are redb's own.
            file.write(chance.below(64) * 64, &stream(seed, 64)).unwrap();
        }
        check_only_its_own_are_gone(&house, &memory, 1).await;
    }
}

#[tokio::test]
async fn a_segment_that_is_cut_deleted_or_garbage_costs_its_own_nars() {
    let house = House::new(BUDGET);
    let whole = stored(&house).await;
    for len in [0, 100, 4096, 1 << 20, 10 << 20] {
        let memory = whole.after_power_cut(0);
        memory.open(NAME, Mode::Write).unwrap().set_len(len).unwrap();
        assert!(check_only_its_own_are_gone(&house, &memory, 1).await > 2);
    }
    let memory = whole.after_power_cut(0);
    memory.remove(NAME).unwrap();
    assert!(check_only_its_own_are_gone(&house, &memory, 1).await > 2);
    let memory = whole.after_power_cut(0);
    memory.open(NAME, Mode::Write).unwrap().write(0, &stream(1, 100_000)).unwrap();
    assert!(check_only_its_own_are_gone(&house, &memory, 1).await > 2);
}

/// A disk with a NAR that lies in the first two segments, and that NAR's seed. Where segments end
/// depends a little on when the writer came to what.
async fn stored_over_two() -> (House, Memory, u64) {
    for _ in 0..20 {
        let house = House::new(BUDGET);
        let memory = stored(&house).await;
        let store = house.open_on(memory.clone()).await;
        let next = in_segment(&store, 2);
        let both = in_segment(&store, 1).into_iter().find(|seed| next.contains(seed));
        store.close().await;
        if let Some(both) = both {
            return (house, memory, both);
        }
    }
    panic!("no NAR ever lay in two segments");
}

/// The last reader of the NAR that goes on in the next segment leaves after all else is swept.
#[tokio::test]
async fn a_lost_segment_goes_with_the_last_reader_of_a_nar_that_lies_in_two() {
    let (house, memory, both) = stored_over_two().await;
    memory.open(NAME, Mode::Write).unwrap().set_len(1 << 20).unwrap();
    let store = house.open_on(memory.clone()).await;
    let held = store.nar(nar_hash(both)).await.unwrap().unwrap();
    assert!(matches!(whole(&held).await, Err(Error::Corrupt(_))));
    until_idle(&store).await;
    drop(held);
    until_idle(&store).await;
    assert!(!memory.names().unwrap().iter().any(|name| name == NAME), "its file is still there");
    check_books(&store).await;
    store.close().await;
}
