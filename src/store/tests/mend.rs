//! A damaged row of the index is absent, and all else is served; it is mended behind the answers.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use redb::{ReadableTable, WriteTransaction};

use super::flip::{Of, database, flip};
use super::kit::*;
use crate::store::disk::memory::Memory;
use crate::store::index::META_TOTALS;
use crate::store::load::Totals;
use crate::store::mend::{Known, mend};
use crate::store::records::SegmentRecord;
use crate::store::tables::{
    DOCUMENT, DOOMED, FILE_HASH, Fault, INDEX_TABLES, LISTING, META, NAR, NAR_HASH, NAR_USE,
    NARINFO, PATHS, SEGMENT, SMALL_USE, Table,
};
use crate::store::writer::{Durable, write_txn};
use crate::store::{Origin, State, Store};

const BUDGET: u64 = 1 << 30;
const SEEDS: u64 = 14;

fn len_of(seed: u64) -> usize {
    usize::try_from(300_000 + seed * 400_001).unwrap()
}

fn document(seed: u64) -> Bytes {
    stream(seed, 500)
}

async fn keep_all(store: &Store, seed: u64) {
    if store.nar(nar_hash(seed)).await.unwrap().is_none() {
        fill(store, seed, len_of(seed)).await.unwrap();
    }
    store.keep_narinfo(narinfo(seed, seed)).await.unwrap();
    let name = format!("log/{seed}");
    store.keep_document(&name, document(seed), Origin::Ours).await.unwrap();
}

/// A closed store with something in every table; one NAR more is doomed and not gone yet.
async fn stored(house: &House) -> Memory {
    let memory = Memory::new(8 << 30);
    let store = house.open_on(memory.clone()).await;
    for seed in 0..SEEDS {
        keep_all(&store, seed).await;
    }
    let read = fill(&store, 99, 400_000).await.unwrap();
    store.flush().await.unwrap();
    store.withdraw_nar(nar_hash(99)).await.unwrap();
    store.close().await;
    drop(read);
    memory
}

type Dump = BTreeMap<(&'static str, Vec<u8>), Vec<u8>>;

fn dump(txn: &WriteTransaction) -> Dump {
    let mut dump = Dump::new();
    for table in INDEX_TABLES {
        for row in table.open_in(txn).unwrap().iter().unwrap() {
            let (key, value) = row.unwrap();
            let body = table.unseal(key.value(), value.value());
            let body = body.unwrap_or_else(|fault| panic!("{:?}: {fault}", key.value()));
            dump.insert((table.name(), key.value().to_vec()), body.to_vec());
        }
    }
    dump
}

/// All rows of a closed index are sound, and mending has nothing to put right.
fn check_sound(house: &House, memory: &Memory) {
    let database = database(house, memory);
    let txn = write_txn(&database, Durable::No).unwrap();
    let before = dump(&txn);
    let known = Known { store_id: [0; 16], budget: 0, next_id: None };
    let segment = |((table, key), body): (&(&str, Vec<u8>), &Vec<u8>)| {
        let number = u32::from_be_bytes(key.as_slice().try_into().ok()?);
        (*table == SEGMENT.name())
            .then(|| (number, SegmentRecord::from_bytes(SEGMENT, body).unwrap()))
    };
    let mut segments = before.iter().filter_map(segment).collect();
    let found = mend(&txn, &known, &mut segments, &[]).unwrap();
    assert_eq!(found.rows, 0);
    let after = dump(&txn);
    for key in before.keys().chain(after.keys()) {
        let (before, after) = (before.get(key), after.get(key));
        assert_eq!(before, after, "{} {}", key.0, key.1.escape_ascii());
    }
    let totals = &before[&(META.name(), META_TOTALS.to_vec())];
    assert_eq!(Totals::from_bytes(totals).unwrap(), found.totals);
    txn.abort().unwrap();
}

/// Asks for everything; says what is absent. No wrong byte is given, and the store stays open.
async fn ask_for_all(store: &Store) -> BTreeSet<String> {
    let mut absent = BTreeSet::new();
    for seed in 0..SEEDS {
        let key = narinfo(seed, seed).narinfo.store_path.hash();
        match store.lookup(key).await.unwrap() {
            Some((found, _)) => assert_eq!(found, narinfo(seed, seed)),
            None => drop(absent.insert(format!("narinfo {seed}"))),
        }
        match store.nar(nar_hash(seed)).await.unwrap() {
            Some(held) => {
                assert!(whole(&held).await.unwrap() == stream(seed, len_of(seed)), "{seed}");
            }
            None => drop(absent.insert(format!("nar {seed}"))),
        }
        if store.paths_of(nar_hash(seed), 3).await.unwrap() != [key] {
            absent.insert(format!("paths {seed}"));
        }
        match store.listing(nar_hash(seed)).await.unwrap() {
            Some(listing) => assert_eq!(listing, format!("listing of {seed}")),
            None => drop(absent.insert(format!("listing {seed}"))),
        }
        match store.document(&format!("log/{seed}")).await.unwrap() {
            Some(found) => assert_eq!(found, document(seed)),
            None => drop(absent.insert(format!("document {seed}"))),
        }
        assert_eq!(store.state(), State::Open);
    }
    absent
}

/// Opens a damaged store: only `names` may be absent; kept again, all is there, and clean.
async fn check_mended(house: &House, memory: &Memory, names: &[&str], context: &str) {
    let store = house.open_on(memory.clone()).await;
    let absent = ask_for_all(&store).await;
    let kinds: BTreeSet<_> = absent.iter().map(|name| name.split(' ').next().unwrap()).collect();
    assert!(kinds.iter().all(|kind| names.contains(kind)), "{context}: {absent:?}");
    let things: BTreeSet<_> = absent.iter().map(|name| name.split(' ').nth(1).unwrap()).collect();
    assert!(things.len() <= 1, "{context}: {absent:?}");
    until_idle(&store).await;
    for seed in 0..SEEDS {
        keep_all(&store, seed).await;
    }
    check_books(&store).await;
    let absent = ask_for_all(&store).await;
    assert!(absent.iter().all(|name| name.starts_with("listing")), "{context}: {absent:?}");
    assert_eq!(store.figures().nars, SEEDS, "{context}");
    assert_eq!(store.figures().narinfos, SEEDS, "{context}");
    store.close().await;
    check_sound(house, memory);
    let store = house.open_on(memory.clone()).await;
    assert_eq!(ask_for_all(&store).await, absent, "{context}");
    check_books(&store).await;
    store.close().await;
}

#[tokio::test]
async fn a_sound_store_is_not_mended() {
    let house = House::new(BUDGET);
    let memory = stored(&house).await;
    let store = house.open_on(memory.clone()).await;
    check_books(&store).await;
    assert_eq!(ask_for_all(&store).await, BTreeSet::new());
    store.close().await;
    check_sound(&house, &memory);
    assert_eq!(house.metrics.corrupt.get(), 0);
}

/// Tables whose rows are met by questions or at the opening, and what may be absent with one.
const MET: [(Table, &[&str]); 8] = [
    (NARINFO, &["narinfo", "paths"]),
    (NAR, &["nar", "listing"]),
    (NAR_HASH, &["nar", "listing"]),
    (PATHS, &["paths"]),
    (LISTING, &["listing"]),
    (DOCUMENT, &["document"]),
    (SEGMENT, &[]),
    (DOOMED, &[]),
];

#[tokio::test]
async fn a_damaged_value_is_absent_and_can_be_had_again() {
    let house = House::new(BUDGET);
    let whole = stored(&house).await;
    for (table, names) in MET {
        for row in [0, 5] {
            let memory = whole.after_power_cut(0);
            let before = house.metrics.corrupt.get();
            flip(&house, &memory, table, row, Of::Value);
            let context = format!("{} {row}", table.name());
            check_mended(&house, &memory, names, &context).await;
            assert!(house.metrics.corrupt.get() > before, "{context} is not noticed");
        }
    }
}

/// Rows of `meta-1` in their order: budget, format, next-id, store-id, totals.
#[tokio::test]
async fn what_the_store_says_of_itself_is_found_again() {
    let house = House::new(BUDGET);
    let whole = stored(&house).await;
    for row in [0, 2, 3, 4] {
        let memory = whole.after_power_cut(0);
        let key = flip(&house, &memory, META, row, Of::Value);
        let store = house.open_on(memory.clone()).await;
        let ids: Vec<_> = records(&store).into_iter().map(|(id, _)| id).collect();
        let held = fill(&store, 1000, 5000).await.unwrap();
        assert!(ids.iter().all(|id| *id < held.id()), "{}", key.escape_ascii());
        assert_eq!(store.figures().budget_bytes, BUDGET);
        store.withdraw_nar(nar_hash(1000)).await.unwrap();
        drop(held);
        store.close().await;
        check_mended(&house, &memory, &[], &key.escape_ascii().to_string()).await;
    }
    let memory = whole.after_power_cut(0);
    assert_eq!(flip(&house, &memory, META, 1, Of::Value), b"format");
    for _ in 0..2 {
        let store = house.start(std::sync::Arc::new(memory.clone()));
        let state = store.first_opened().await;
        let State::Degraded { reason, .. } = state else { panic!("opened without a format") };
        assert!(reason.contains("format"), "{reason}");
        store.close().await;
    }
}

#[tokio::test]
async fn a_damaged_file_hash_is_taken_for_another() {
    for is_mended_before in [false, true] {
        let house = House::new(BUDGET);
        let memory = stored(&house).await;
        let store = house.open_on(memory.clone()).await;
        for seed in 0..SEEDS {
            store.withdraw_nar(nar_hash(seed)).await.unwrap();
        }
        store.close().await;
        let key = flip(&house, &memory, FILE_HASH, 3, Of::Value);
        let seed = (0..SEEDS).find(|seed| nar_hash(*seed).as_bytes() == key.as_slice());
        let store = house.open_on(memory.clone()).await;
        if is_mended_before {
            store.shared.session().unwrap().sound::<()>(Err(Fault::Damaged("any"))).unwrap();
            until(&store, |_| house.metrics.corrupt.get() > 0).await;
        }
        // The NAR of a seed that was not kept: its row is the doomed one's.
        let seed = seed.unwrap_or(99);
        for other in 0..SEEDS {
            let held = fill(&store, other, 10_000).await.unwrap();
            drop(fill(&store, other, len_of(other)).await.unwrap());
            assert!(held.changed_lately(), "{other}");
        }
        assert!(fill(&store, seed, len_of(seed)).await.unwrap().file_size() > 0);
        check_books(&store).await;
        store.close().await;
        check_sound(&house, &memory);
    }
}

#[tokio::test]
async fn damaged_orders_of_use_keep_nothing_from_going() {
    let mut house = House::new(BUDGET);
    let whole = stored(&house).await;
    for row in [0, 3] {
        let memory = whole.after_power_cut(0);
        flip(&house, &memory, NAR_USE, row, Of::Value);
        let store = house.open_on(memory.clone()).await;
        let before = house.metrics.corrupt.get();
        drop(store.reserve(BUDGET - (8 << 20)).await.unwrap());
        until_idle(&store).await;
        assert!(house.metrics.corrupt.get() > before);
        assert!(store.figures().nars < SEEDS);
        check_books(&store).await;
        store.close().await;
        check_sound(&house, &memory);
    }
    // A twentieth of it is less than all narinfos and documents take.
    house.config.budget = Some(crate::units::ByteSize(200_000));
    let memory = whole.after_power_cut(0);
    flip(&house, &memory, SMALL_USE, 0, Of::Value);
    let store = house.open_on(memory.clone()).await;
    let before = house.metrics.corrupt.get();
    store.keep_document("log/x", document(1), Origin::Ours).await.unwrap();
    until_idle(&store).await;
    assert!(house.metrics.corrupt.get() > before);
    assert!(store.figures().narinfos < SEEDS);
    store.close().await;
    check_sound(&house, &memory);
}

#[tokio::test]
async fn rows_and_keys_that_flip_in_all_tables_cost_no_more_than_they_hold() {
    let house = House::new(BUDGET);
    let whole = stored(&house).await;
    for seed in 0..rounds() {
        let memory = whole.after_power_cut(0);
        let mut chance = Chance(seed);
        for table in INDEX_TABLES {
            let of = if chance.below(2) == 0 { Of::Key } else { Of::Value };
            let row = usize::try_from(chance.below(1000)).unwrap();
            // Without its format an index is left alone.
            if table != META && chance.below(3) != 0 {
                flip(&house, &memory, table, row, of);
            }
        }
        let store = house.open_on(memory.clone()).await;
        ask_for_all(&store).await;
        until_idle(&store).await;
        for seed in 0..SEEDS {
            keep_all(&store, seed).await;
        }
        ask_for_all(&store).await;
        until_idle(&store).await;
        store.close().await;
        // What was met only now was met too soon after the first time.
        let store = house.open_on(memory.clone()).await;
        store.shared.session().unwrap().sound::<()>(Err(Fault::Damaged("any"))).unwrap();
        until_idle(&store).await;
        for seed in 0..SEEDS {
            keep_all(&store, seed).await;
        }
        check_books(&store).await;
        let absent = ask_for_all(&store).await;
        assert!(absent.iter().all(|name| name.starts_with("listing")), "{seed}: {absent:?}");
        store.close().await;
        check_sound(&house, &memory);
    }
}

#[tokio::test]
async fn what_is_being_written_is_not_disturbed_by_mending() {
    for row in [0, 7, 14] {
        let house = House::new(BUDGET);
        let memory = stored(&house).await;
        flip(&house, &memory, NAR, row, Of::Value);
        let store = house.open_on(memory.clone()).await;
        let waiting = fill(&store, 500, 900_000).await.unwrap();
        let bytes = stream(501, 1_500_000);
        let mut growing = begin(&store, bytes.len()).await.unwrap();
        growing.append(bytes.slice(..700_000)).await.unwrap();
        let doomed = fill(&store, 502, 600_000).await.unwrap();
        store.withdraw_nar(nar_hash(502)).await.unwrap();
        let before = house.metrics.corrupt.get();
        ask_for_all(&store).await;
        until(&store, |_| house.metrics.corrupt.get() > before || row == 14).await;
        check_whole(&waiting).await;
        check_whole(&doomed).await;
        growing.append(bytes.slice(700_000..)).await.unwrap();
        let grown = growing.finish(finished(501, &bytes, Origin::Upstream)).await.unwrap();
        check_whole(&grown).await;
        drop(doomed);
        for seed in 0..SEEDS {
            keep_all(&store, seed).await;
        }
        check_books(&store).await;
        for seed in [500, 501] {
            check_whole(&store.nar(nar_hash(seed)).await.unwrap().unwrap()).await;
        }
        drop((waiting, grown));
        store.close().await;
        check_sound(&house, &memory);
    }
}
