//! The disk fails: degraded, never off, nothing touched, and open again by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::kit::*;
use crate::store::disk::fault::{Call, Faulty, Trouble};
use crate::store::disk::memory::Memory;
use crate::store::index::META_FORMAT;
use crate::store::tables::META;
use crate::store::writer::{Durable, write_txn};
use crate::store::{Error, Origin, State, Store};

const BUDGET: u64 = 1 << 30;

fn reason(state: &State) -> String {
    match state {
        State::Open => panic!("open"),
        State::Degraded { reason, .. } => reason.to_string(),
    }
}

/// Everything answers at once that the store is degraded.
async fn check_degraded(store: &Store) {
    let since = Instant::now();
    let key = narinfo(1, 1).narinfo.store_path.hash();
    let body = Bytes::from_static(b"x");
    let is = |error: Option<Error>| matches!(error, Some(Error::Degraded(_)));
    assert!(is(store.lookup(key).await.err()));
    assert!(is(store.keep_narinfo(narinfo(1, 1)).await.err()));
    assert!(is(store.withdraw_narinfo(key).await.err()));
    assert!(is(store.nar(nar_hash(1)).await.err()));
    assert!(is(store.reserve(1).await.err()));
    assert!(is(store.withdraw_nar(nar_hash(1)).await.err()));
    assert!(is(store.document("log/x").await.err()));
    assert!(is(store.keep_document("log/x", body, Origin::Ours).await.err()));
    assert!(is(store.flush().await.err()));
    assert!(since.elapsed() < Duration::from_secs(1));
}

/// Works until something fails.
async fn work(store: &Store, from: u64) -> Result<(), Error> {
    for seed in from..from + 40 {
        fill(store, seed, 1 << 20).await?;
        store.flush().await?;
        // What was not durable in a segment that is written no more is gone.
        let Some(held) = store.nar(nar_hash(seed)).await? else { return Err(Error::Abandoned) };
        whole(&held).await?;
    }
    Ok(())
}

async fn fails_and_heals(call: Call, prefix: &str, trouble: Trouble, nth: Option<u64>) {
    let context = format!("{call:?} of {prefix:?}: {trouble:?}, {nth:?}");
    let house = House::new(BUDGET);
    let disk = Faulty::new(Memory::new(4 << 30));
    let store = house.open_on(disk.clone()).await;
    for seed in 0..3 {
        fill(&store, seed, 1_000_000).await.unwrap();
    }
    store.flush().await.unwrap();
    disk.only(prefix);
    match nth {
        Some(nth) => disk.fail_nth(call, nth, trouble),
        None => disk.fail(call, trouble),
    }
    let failed = work(&store, 100).await;
    assert!(matches!(failed, Err(Error::Degraded(_))), "{context}: {failed:?}");
    until_state(&store, false).await;
    if nth.is_none() {
        assert!(reason(&store.state()).len() > 20, "{context}");
        check_degraded(&store).await;
    }
    disk.well();
    until_state(&store, true).await;
    for seed in 0..3 {
        let held = store.nar(nar_hash(seed)).await.unwrap();
        check_whole(&held.unwrap_or_else(|| panic!("{context}: {seed} is gone"))).await;
    }
    work(&store, 200).await.unwrap();
    check_books(&store).await;
    store.close().await;
}

#[tokio::test]
async fn writes_that_fail_degrade_until_they_work_again() {
    for call in [Call::Write, Call::Sync] {
        fails_and_heals(call, "", Trouble::Eio, None).await;
        for prefix in ["index", "nars"] {
            fails_and_heals(call, prefix, Trouble::Eio, Some(2)).await;
        }
    }
}

#[tokio::test]
async fn a_full_disk_and_a_torn_write_degrade_until_they_are_well() {
    fails_and_heals(Call::SetLen, "", Trouble::Enospc, None).await;
    fails_and_heals(Call::Write, "", Trouble::Enospc, None).await;
    fails_and_heals(Call::Write, "nars", Trouble::Torn, Some(3)).await;
    fails_and_heals(Call::Write, "index", Trouble::Torn, Some(3)).await;
}

/// A segment that cannot be written, again and again, is not lost: what is held in it stays.
async fn nothing_held_is_lost(call: Call, trouble: Trouble) {
    let house = House::new(BUDGET);
    let disk = Faulty::new(Memory::new(4 << 30));
    let store = house.open_on(disk.clone()).await;
    for seed in 0..4 {
        fill(&store, seed, 5_000_000).await.unwrap();
    }
    store.flush().await.unwrap();
    for round in 0..3 {
        drop(fill(&store, 50 + round, 2_000_000).await.unwrap());
        store.flush().await.unwrap();
        disk.only("nars");
        disk.fail(call, trouble);
        // Written, removed from and read, as long as the store is open; and opened again meanwhile.
        drop(store.withdraw_nar(nar_hash(50 + round)).await);
        drop(work(&store, 100 * (round + 1)).await);
        for seed in 0..4 {
            if let Ok(Some(held)) = store.nar(nar_hash(seed)).await
                && let Ok(bytes) = whole(&held).await
            {
                assert!(bytes == stream(seed, 5_000_000));
            }
        }
        disk.well();
        until_state(&store, true).await;
        for seed in 0..4 {
            let held = store.nar(nar_hash(seed)).await.unwrap();
            let held = held.unwrap_or_else(|| panic!("{call:?} {trouble:?} {round}: {seed}"));
            check_whole(&held).await;
        }
    }
    store.close().await;
    let store = house.open_on(disk.clone()).await;
    for seed in 0..4 {
        check_whole(&store.nar(nar_hash(seed)).await.unwrap().unwrap()).await;
    }
    work(&store, 1000).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_disk_that_takes_no_more_costs_nothing_that_is_held() {
    // Together, since each waits for its store to be opened again.
    tokio::join!(
        nothing_held_is_lost(Call::Sync, Trouble::Enospc),
        nothing_held_is_lost(Call::Sync, Trouble::Eio),
        nothing_held_is_lost(Call::SetLen, Trouble::Enospc),
        nothing_held_is_lost(Call::SetLen, Trouble::Eio),
        nothing_held_is_lost(Call::Write, Trouble::Eio),
    );
}

#[tokio::test]
async fn reads_that_fail_degrade_and_withdraw_nothing() {
    let house = House::new(BUDGET);
    let memory = Memory::new(4 << 30);
    let store = house.open_on(memory.clone()).await;
    for seed in 0..3 {
        fill(&store, seed, 1_000_000).await.unwrap();
    }
    store.close().await;
    let disk = Faulty::new(memory);
    let store = house.open_on(disk.clone()).await;
    let held = store.nar(nar_hash(1)).await.unwrap().unwrap();
    disk.fail(Call::Read, Trouble::Eio);
    assert!(whole(&held).await.is_err());
    until_state(&store, false).await;
    check_degraded(&store).await;
    disk.well();
    until_state(&store, true).await;
    for seed in 0..3 {
        check_whole(&store.nar(nar_hash(seed)).await.unwrap().unwrap()).await;
    }
    store.close().await;
}

#[tokio::test]
async fn a_blocked_disk_holds_nobody() {
    for call in [Call::Read, Call::Write, Call::Sync] {
        let house = House::new(BUDGET);
        let memory = Memory::new(4 << 30);
        let store = house.open_on(memory.clone()).await;
        fill(&store, 1, 1_000_000).await.unwrap();
        store.keep_narinfo(narinfo(1, 1)).await.unwrap();
        // More than the index's cache holds: read, they push the narinfo out of it.
        for number in 0..12 {
            let body = stream(number, 1 << 20);
            store.keep_document(&number.to_string(), body, Origin::Ours).await.unwrap();
        }
        store.close().await;
        let disk = Faulty::new(memory);
        let store = house.open_on(disk.clone()).await;
        for number in 0..12 {
            assert!(store.document(&number.to_string()).await.unwrap().is_some());
        }
        disk.shut(call);
        let since = Instant::now();
        let key = narinfo(1, 1).narinfo.store_path.hash();
        let found = store.lookup(key).await;
        assert!(since.elapsed() < Duration::from_millis(1500));
        let slow = matches!(found, Err(Error::Slow(_)));
        assert_eq!(slow, call == Call::Read, "{call:?}: {:?}, {}", found.err(), disk.waiting());
        drop(found);
        let at_once = Instant::now();
        assert_eq!(store.state(), State::Open);
        assert!(store.figures().used_bytes > 0);
        assert!(at_once.elapsed() < Duration::from_millis(100));
        // From here on time is the runtime's: it passes when nothing else can happen.
        tokio::time::pause();
        check_bounded(&store).await;
        tokio::time::resume();
        disk.well();
        let (found, held) = store.lookup(key).await.unwrap().unwrap();
        assert_eq!(found, narinfo(1, 1));
        check_whole(&held.unwrap()).await;
        store.close().await;
    }
}

/// redb ends a transaction under a lock that it also holds while its file grows: whoever drops the
/// last bytes of a row, which is a thread that all clients share, must not wait for that.
#[tokio::test]
async fn dropping_a_row_never_waits_for_the_disk() {
    const ROWS: u64 = 12;
    let house = House::new(BUDGET);
    let disk = Faulty::new(Memory::new(4 << 30));
    let store = house.open_on(disk.clone()).await;
    let held = fill(&store, 1, 4_000_000).await.unwrap();
    store.flush().await.unwrap();
    let mut rows = Vec::new();
    for row in 0..ROWS {
        rows.push(held.read(row * 261_120).await.unwrap());
    }
    disk.only("nars-");
    disk.shut(Call::SetLen);
    let mut tasks = JoinSet::new();
    let filling = store.clone();
    tasks.spawn(async move { fill(&filling, 2, 16_000_000).await.map(drop) });
    while disk.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    // Who begins to read now waits for the file, with the other lock in hand.
    tasks.spawn(async move { held.read(0).await.map(drop) });
    for row in rows {
        let dropping = std::thread::spawn(move || drop(row));
        let dropped = async {
            while !dropping.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(5), dropped).await;
        if waited.is_err() {
            disk.well();
        }
        waited.expect("a row that is dropped while the disk stands still");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    disk.well();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap().unwrap();
    }
    store.close().await;
}

/// Whatever is asked of a blocked disk ends.
async fn check_bounded(store: &Store) {
    let body = Bytes::from_static(b"x");
    let day = Duration::from_hours(24);
    macro_rules! ends {
        ($($call:expr;)+) => {$(
            let ended = tokio::time::timeout(day, $call).await;
            assert!(ended.is_ok(), stringify!($call));
        )+};
    }
    ends! {
        store.keep_document("log/x", body, Origin::Ours);
        store.withdraw_nar(nar_hash(7));
        store.withdraw_narinfo(narinfo(7, 7).narinfo.store_path.hash());
        store.flush();
        store.nar(nar_hash(8));
        store.document("log/y");
        store.paths_of(nar_hash(1), 3);
        store.listing(nar_hash(8));
        store.reserve(BUDGET - 1000);
        fill(store, 3, 40 << 20);
    }
    for number in 1000..1600 {
        ends! { store.keep_narinfo(narinfo(number, 5)); }
    }
}

fn files(house: &House) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(house.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "lock")
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// A store with something in it, closed.
async fn closed_house() -> House {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for seed in 0..3 {
        fill(&store, seed, 100_000).await.unwrap();
        store.keep_narinfo(narinfo(seed, seed)).await.unwrap();
    }
    store.close().await;
    house
}

/// Starts on what is there: degraded for a reason, and no byte is changed.
async fn check_untouched(house: &House, because: &str) {
    let before = files(house);
    let store = house.start(Arc::new(crate::store::disk::Folder { path: house.path() }));
    let state = store.first_opened().await;
    assert!(reason(&state).contains(because), "{}", reason(&state));
    check_degraded(&store).await;
    store.close().await;
    assert!(files(house) == before, "a file was changed");
}

#[tokio::test]
async fn a_missing_index_is_a_missing_disk() {
    let house = closed_house().await;
    let index = house.path().join("index.redb");
    let aside = house.folder.path().join("aside");
    std::fs::rename(&index, &aside).unwrap();
    check_untouched(&house, "plug its disk in").await;
    std::fs::rename(&aside, &index).unwrap();
    let store = house.open().await;
    check_whole(&store.nar(nar_hash(1)).await.unwrap().unwrap()).await;
    store.close().await;
}

#[tokio::test]
async fn a_newer_index_is_left_alone() {
    let house = closed_house().await;
    let database = redb::Database::create(house.path().join("index.redb")).unwrap();
    let txn = write_txn(&database, Durable::Yes).unwrap();
    META.insert(&txn, META_FORMAT, &3_u64.to_be_bytes()).unwrap();
    txn.commit().unwrap();
    drop(database);
    check_untouched(&house, "newer").await;
}

#[tokio::test]
async fn another_store_s_index_is_left_alone() {
    let (house, other) = (closed_house().await, closed_house().await);
    std::fs::copy(other.path().join("index.redb"), house.path().join("index.redb")).unwrap();
    check_untouched(&house, "another store").await;
}

#[tokio::test]
async fn a_damaged_index_is_left_alone() {
    let house = closed_house().await;
    let index = house.path().join("index.redb");
    let good = std::fs::read(&index).unwrap();
    let mut damaged = vec![Vec::new(), vec![0; good.len()], stream(5, good.len()).to_vec()];
    damaged.push(good[..100].to_vec());
    damaged.push(good[..good.len() / 2].to_vec());
    damaged.push([&stream(6, 4096)[..], &good[4096..]].concat());
    for bytes in damaged {
        std::fs::write(&index, bytes).unwrap();
        check_untouched(&house, "").await;
    }
    std::fs::write(&index, good).unwrap();
    house.open().await.close().await;
}
