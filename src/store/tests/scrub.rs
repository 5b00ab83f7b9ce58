//! What the scrub stands on: every held NAR once, a mark that costs no write of its own, and rows of
//! the index that are found damaged by nobody else.

use std::time::Duration;

use super::flip::{Of, flip};
use super::kit::*;
use crate::store::disk::memory::Memory;
use crate::store::tables::{FILE_HASH, LISTING, NAR, SMALL_USE};
use crate::store::{Error, IndexPlace, Store};

const BUDGET: u64 = 1 << 30;

/// The seeds of the NARs that come, from this id on.
async fn come(store: &Store, mut from: u64, seeds: std::ops::Range<u64>) -> Vec<u64> {
    let mut came = Vec::new();
    while let Some((id, held)) = store.next_nar(from).await.unwrap() {
        assert!(id >= from);
        from = id + 1;
        check_whole(&held).await;
        came.extend(seeds.clone().find(|seed| nar_hash(*seed) == held.nar_hash()));
    }
    came
}

async fn read_index(store: &Store) -> usize {
    let (mut place, mut slices): (Option<IndexPlace>, _) = (None, 0);
    loop {
        slices += 1;
        place = store.check_index(place).await.unwrap();
        if place.is_none() {
            return slices;
        }
    }
}

#[tokio::test]
async fn every_held_nar_comes_once_and_none_that_goes() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for seed in 0..40 {
        drop(fill(&store, seed, 10_000 + usize::try_from(seed).unwrap() * 1000).await.unwrap());
    }
    store.flush().await.unwrap();
    for seed in [0, 7, 39] {
        store.withdraw_nar(nar_hash(seed)).await.unwrap();
    }
    let expected: Vec<u64> = (0..40).filter(|seed| ![0, 7, 39].contains(seed)).collect();
    assert_eq!(come(&store, 0, 0..40).await, expected);
    let (id, _) = store.next_nar(20).await.unwrap().unwrap();
    assert!(come(&store, id, 0..40).await.len() < expected.len());
    until_idle(&store).await;
    assert_eq!(come(&store, 0, 0..40).await, expected);
    store.close().await;
}

#[tokio::test]
async fn looking_is_no_use_and_keeps_no_store_awake() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for seed in 0..4 {
        drop(fill(&store, seed, 300_000).await.unwrap());
    }
    store.flush().await.unwrap();
    let session = store.shared.session().unwrap();
    drop(session.take_uses());
    let before = session.unread_for();
    assert_eq!(come(&store, 0, 0..4).await.len(), 4);
    read_index(&store).await;
    assert!(!session.has_uses());
    assert!(session.unread_for() >= before && store.quiet_for() >= before);
    drop(store.nar(nar_hash(1)).await.unwrap());
    assert!(session.has_uses());
    store.close().await;
}

#[tokio::test]
async fn the_mark_is_written_with_something_else_or_at_the_end() {
    let house = House::new(BUDGET);
    let memory = Memory::new(8 << 30);
    let store = house.open_on(memory.clone()).await;
    drop(fill(&store, 1, 300_000).await.unwrap());
    store.flush().await.unwrap();
    until_idle(&store).await;
    let written = store.figures().written_bytes;
    store.change_scrub_mark(|mark| mark.next_id = 17);
    store.flush().await.unwrap();
    assert_eq!(store.figures().written_bytes, written, "it was written on its own account");
    // A power cut loses it; whatever is written next takes it along.
    let cut = memory.after_power_cut(1);
    drop(fill(&store, 2, 300_000).await.unwrap());
    store.flush().await.unwrap();
    let later = memory.after_power_cut(2);
    store.change_scrub_mark(|mark| (mark.next_id, mark.found) = (18, 3));
    store.close().await;
    for (memory, next_id) in [(cut, 0), (later, 17), (memory, 18)] {
        let store = house.open_on(memory).await;
        assert_eq!(store.scrub_mark().unwrap().next_id, next_id);
        store.close().await;
    }
}

#[tokio::test]
async fn a_store_that_is_only_read_writes_its_mark_once_at_the_end() {
    let mut house = House::new(BUDGET);
    house.config.rest_after = Some(Duration::from_millis(1));
    let memory = Memory::new(8 << 30);
    let store = house.open_on(memory.clone()).await;
    drop(fill(&store, 1, 300_000).await.unwrap());
    store.close().await;
    let store = house.open_on(memory.clone()).await;
    until(&store, |store| store.shared.session().unwrap().index.is_resting()).await;
    let written = store.figures().written_bytes;
    store.change_scrub_mark(|mark| mark.next_id = 5);
    assert_eq!(come(&store, 0, 0..2).await, [1]);
    store.flush().await.unwrap();
    assert_eq!(store.figures().written_bytes, written);
    store.close().await;
    let store = house.open_on(memory.clone()).await;
    assert_eq!(store.scrub_mark().unwrap().next_id, 5);
    store.close().await;
}

#[tokio::test]
async fn rows_of_the_index_that_nobody_asks_for_are_found_and_mended() {
    let house = House::new(BUDGET);
    let memory = Memory::new(8 << 30);
    let store = house.open_on(memory.clone()).await;
    for seed in 0..600 {
        store.keep_narinfo(narinfo(seed, seed % 3)).await.unwrap();
    }
    for seed in 0..3 {
        drop(fill(&store, seed, 300_000).await.unwrap());
    }
    store.close().await;
    for (table, row) in [(LISTING, 1), (FILE_HASH, 2), (SMALL_USE, 0), (NAR, 1)] {
        let torn = memory.after_power_cut(0);
        flip(&house, &torn, table, row, Of::Value);
        let store = house.open_on(torn).await;
        assert!(read_index(&store).await > 17, "it is read in slices");
        let corrupt = &house.metrics.corrupt;
        until(&store, |store| corrupt.get() > 0 && !store.shared.session().unwrap().is_hurt())
            .await;
        check_books(&store).await;
        assert!(read_index(&store).await > 17);
        assert!(!store.shared.session().unwrap().is_hurt(), "{} is not mended", table.name());
        store.close().await;
    }
}

#[tokio::test]
async fn whoever_reads_what_is_found_wrong_is_cut_and_its_name_is_remembered() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let reader = fill(&store, 1, 900_000).await.unwrap();
    drop(fill(&store, 2, 900_000).await.unwrap());
    store.flush().await.unwrap();
    assert!(!reader.read(0).await.unwrap().is_empty());
    let (_, held) = store.next_nar(0).await.unwrap().unwrap();
    assert_eq!(held.nar_hash(), nar_hash(1));
    assert!(!store.is_withdrawn(&held).await.unwrap());
    store.withdraw_wrong(&held).await.unwrap();
    assert!(store.is_withdrawn(&held).await.unwrap());
    let hash = nar_hash(1);
    assert!(matches!(reader.read(300_000).await, Err(Error::Corrupt(it)) if it == hash));
    assert!(store.nar(hash).await.unwrap().is_none());
    assert_eq!(store.take_withdrawn(10), [hash]);
    assert!(store.take_withdrawn(10).is_empty());
    // Filled again, it is another one, and nobody is cut.
    let again = fill(&store, 1, 900_000).await.unwrap();
    check_whole(&again).await;
    drop((held, reader));
    check_books(&store).await;
    assert_eq!(house.metrics.corrupt.get(), 1);
    store.close().await;
}
