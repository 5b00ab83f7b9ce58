//! After a while of quiet the files are closed, and nobody notices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::kit::*;
use crate::metrics::Metrics;
use crate::store::backend::Meters;
use crate::store::disk::Mode;
use crate::store::disk::fault::{Call, Faulty, Trouble};
use crate::store::disk::memory::Memory;
use crate::store::keys::{SmallKey, row_key};
use crate::store::queue::Queue;
use crate::store::segment::{Segments, WRITE_CACHE_BYTES};
use crate::store::tables::{ROWS, SMALL_USE};
use crate::store::writer::{Durable, write_txn};
use crate::store::{State, Store};

/// A house whose store rests as soon as nobody asks.
fn drowsy() -> House {
    let mut house = House::new(1 << 30);
    house.config.rest_after = Some(Duration::from_millis(1));
    house
}

fn is_resting(store: &Store) -> bool {
    let session = store.shared.session().unwrap();
    session.index.is_resting() && session.segments.open_count() == 0
}

async fn until_true(what: &str, is_true: impl Fn() -> bool) {
    let wait = async {
        while !is_true() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(), "{what}");
}

async fn until_resting(store: &Store) {
    until_true("the store does not rest", || is_resting(store)).await;
}

async fn check_read(store: &Store, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let key = narinfo(seed, seed).narinfo.store_path.hash();
        let (found, held) = store.lookup(key).await.unwrap().unwrap();
        assert_eq!(found, narinfo(seed, seed));
        check_whole(&held.unwrap()).await;
    }
}

async fn write(store: &Store, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        drop(fill(store, seed, 300_000).await.unwrap());
        store.keep_narinfo(narinfo(seed, seed)).await.unwrap();
    }
}

#[tokio::test]
async fn a_store_at_rest_has_no_file_open_for_writing_and_reads_write_nothing() {
    let house = drowsy();
    let memory = Memory::new(4 << 30);
    let store = house.open_on(memory.clone()).await;
    write(&store, 0..4).await;
    store.flush().await.unwrap();
    until_resting(&store).await;
    let written = store.figures().written_bytes;
    for _ in 0..10 {
        check_read(&store, 0..4).await;
        store.flush().await.unwrap();
        until_resting(&store).await;
    }
    assert_eq!(store.figures().written_bytes, written);
    // What is written next wakes it, and a power cut at rest costs nothing.
    write(&store, 4..8).await;
    store.flush().await.unwrap();
    until_resting(&store).await;
    check_books(&store).await;
    let cut = memory.after_power_cut(1);
    store.close().await;
    for memory in [cut, memory] {
        let store = house.open_on(memory).await;
        check_read(&store, 0..8).await;
        until_resting(&store).await;
        store.close().await;
    }
}

#[tokio::test]
async fn a_store_that_is_awake_keeps_its_files_open() {
    let house = House::new(1 << 30);
    let store = house.open().await;
    write(&store, 0..2).await;
    until_idle(&store).await;
    let session = store.shared.session().unwrap();
    assert!(!session.index.is_resting());
    assert_eq!(session.segments.open_count(), 1);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_while_it_falls_asleep_or_wakes_is_answered() {
    let house = drowsy();
    let store = house.open_on(Memory::new(4 << 30)).await;
    write(&store, 0..4).await;
    store.flush().await.unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..3 {
        let store = store.clone();
        readers.spawn(async move {
            let mut chance = Chance(reader);
            for _ in 0..rounds() * 3 {
                let seed = chance.below(4);
                check_read(&store, seed..seed + 1).await;
                let (since, pause) = (Instant::now(), chance.below(3000));
                while since.elapsed() < Duration::from_micros(pause) {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    for seed in 4..4 + rounds() {
        until_true("the index does not rest", || {
            readers.is_empty() || store.shared.session().unwrap().index.is_resting()
        })
        .await;
        write(&store, seed..seed + 1).await;
        store.flush().await.unwrap();
    }
    readers.join_all().await;
    check_read(&store, 0..4 + rounds()).await;
    check_books(&store).await;
    assert_eq!(store.state(), State::Open);
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_does_not_keep_a_resting_store_from_answering() {
    let mut house = drowsy();
    // Long enough for the disk to be full before.
    house.config.rest_after = Some(Duration::from_millis(300));
    let disk = Faulty::new(Memory::new(4 << 30));
    let store = house.open_on(disk.clone()).await;
    write(&store, 0..4).await;
    store.flush().await.unwrap();
    disk.fail(Call::SetLen, Trouble::Enospc);
    let session = store.shared.session().unwrap();
    let rests = || session.index.has_rested() || store.state() != State::Open;
    until_true("the store does not rest", rests).await;
    for _ in 0..3 {
        check_read(&store, 0..4).await;
    }
    assert_eq!(store.state(), State::Open);
    disk.well();
    write(&store, 4..6).await;
    store.flush().await.unwrap();
    check_read(&store, 0..6).await;
    store.close().await;
}

/// A file has to change its length when it is closed, and cannot: it is dirty then, and not damaged.
#[test]
fn a_segment_that_a_full_disk_keeps_from_closing_is_read_all_the_same() {
    const ROWS_BEFORE: u32 = 64;
    let body = stream(7, 256 << 10);
    for removed in 1..ROWS_BEFORE {
        let disk = Faulty::new(Memory::new(1 << 30));
        let meters = Meters::new(Metrics::new());
        let segments = Segments::new(Arc::new(disk.clone()), meters, Arc::new(Queue::new(16)));
        segments.open_for_writing(0, Mode::Create, WRITE_CACHE_BYTES).unwrap();
        let change = |act: &dyn Fn(&redb::WriteTransaction)| {
            let write = |database: &redb::Database| {
                let txn = write_txn(database, Durable::Yes)?;
                act(&txn);
                Ok(txn.commit()?)
            };
            segments.write(0, write).unwrap();
        };
        for row in 0..ROWS_BEFORE {
            change(&|txn| ROWS.insert(txn, &row_key(1, row), &body).unwrap());
        }
        let left = ROWS_BEFORE - removed;
        change(&|txn| {
            for row in left..ROWS_BEFORE {
                assert!(ROWS.remove(txn, &row_key(1, row)).unwrap());
            }
        });
        disk.fail(Call::SetLen, Trouble::Enospc);
        for _ in 0..3 {
            assert!(segments.rest());
            for row in 0..left {
                assert_eq!(segments.read_row(0, 1, row).unwrap(), body, "{removed}");
            }
        }
        // A handle that met an error once refuses everything: a fresh one reads.
        disk.fail_nth(Call::Read, 1, Trouble::Eio);
        drop(segments.read_row(0, 1, 0));
        segments.forget_reader(0);
        assert_eq!(segments.read_row(0, 1, 0).unwrap(), body);
        disk.well();
        // Who writes gets a handle that is meant for that.
        segments.open_for_writing(0, Mode::Write, WRITE_CACHE_BYTES).unwrap();
        change(&|txn| ROWS.insert(txn, &row_key(1, ROWS_BEFORE), &body).unwrap());
        assert!(segments.rest());
        assert_eq!(segments.read_row(0, 1, ROWS_BEFORE).unwrap(), body);
        segments.close_all();
    }
}

/// The narinfo that was used longest ago, as the index says.
async fn least_used(house: &House, memory: &Memory) -> SmallKey {
    let store = house.open_on(memory.clone()).await;
    let session = store.shared.session().unwrap();
    let rows = session.index.read(|txn| SMALL_USE.scan(txn, &[], 1, |_| true)).unwrap();
    store.close().await;
    SmallKey::from_use_key(SMALL_USE, &rows.first().unwrap().0).unwrap()
}

#[tokio::test]
async fn uses_are_written_at_the_close_of_a_store_that_wrote() {
    let key = |seed| narinfo(seed, seed).narinfo.store_path.hash();
    for writes in [false, true] {
        let house = drowsy();
        let memory = Memory::new(4 << 30);
        let store = house.open_on(memory.clone()).await;
        write(&store, 0..2).await;
        store.close().await;
        assert!(least_used(&house, &memory).await == SmallKey::Narinfo(key(0)));
        let store = house.open_on(memory.clone()).await;
        if writes {
            write(&store, 2..3).await;
            store.flush().await.unwrap();
        }
        check_read(&store, 0..1).await;
        until_resting(&store).await;
        store.close().await;
        let expected = if writes { key(1) } else { key(0) };
        assert!(least_used(&house, &memory).await == SmallKey::Narinfo(expected), "{writes}");
    }
}

#[tokio::test]
async fn uses_are_written_at_the_close_of_a_store_that_kept_narinfos_only() {
    let key = |seed| narinfo(seed, seed).narinfo.store_path.hash();
    let house = House::new(1 << 30);
    let memory = Memory::new(4 << 30);
    let store = house.open_on(memory.clone()).await;
    for seed in 0..2 {
        store.keep_narinfo(narinfo(seed, seed)).await.unwrap();
    }
    store.flush().await.unwrap();
    assert!(store.lookup(key(0)).await.unwrap().is_some());
    store.close().await;
    assert!(least_used(&house, &memory).await == SmallKey::Narinfo(key(1)));
}

#[tokio::test]
async fn a_segment_that_was_left_for_a_rest_is_filled_up() {
    let house = drowsy();
    let memory = Memory::new(4 << 30);
    let store = house.open_on(memory.clone()).await;
    // More than a segment that is filled again may hold, less than a full one.
    drop(fill(&store, 0, 13 << 20).await.unwrap());
    store.flush().await.unwrap();
    until_resting(&store).await;
    drop(fill(&store, 1, 1 << 20).await.unwrap());
    store.close().await;
    let store = house.open_on(memory.clone()).await;
    drop(fill(&store, 2, 1 << 20).await.unwrap());
    store.flush().await.unwrap();
    for (_, record) in records(&store) {
        assert!(record.parts.iter().all(|part| part.segment == 0), "{:?}", record.parts);
    }
    drop(fill(&store, 3, 3 << 20).await.unwrap());
    assert_eq!(records(&store).len(), 3);
    store.flush().await.unwrap();
    let last = records(&store).pop().unwrap().1;
    assert_eq!(last.parts.last().unwrap().segment, 1);
    store.close().await;
}
