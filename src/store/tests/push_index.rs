//! The tables of the push side: an index from before them, and damaged rows.

use redb::{ReadableTable, TableHandle};

use super::kit::*;
use super::push_kit::*;
use crate::store::disk::Folder;
use crate::store::index::{META_FORMAT, META_TOTALS};
use crate::store::tables::{META, PUSH_TABLES, QUEUE, QUEUE_SEQ, TARGET, Table};
use crate::store::writer::{Durable, write_txn};
use crate::store::{Origin, QueueRow, State};

const BUDGET: u64 = 1 << 30;

pub(super) fn in_index(house: &House, act: impl FnOnce(&redb::WriteTransaction)) {
    let database = redb::Database::create(house.path().join("index.redb")).unwrap();
    let txn = write_txn(&database, Durable::Yes).unwrap();
    act(&txn);
    txn.commit().unwrap();
}

/// What a snowberry from before pushing would have left.
fn to_first_format(house: &House) {
    in_index(house, |txn| {
        for table in txn.list_tables().unwrap().collect::<Vec<_>>() {
            if PUSH_TABLES.iter().any(|push| push.name() == table.name()) {
                txn.delete_table(table).unwrap();
            }
        }
        META.insert(txn, META_FORMAT, &1_u64.to_be_bytes()).unwrap();
        let totals = META.get_in(txn, META_TOTALS).unwrap().unwrap();
        META.insert(txn, META_TOTALS, &totals[..32]).unwrap();
    });
}

#[tokio::test]
async fn an_older_index_keeps_every_byte_while_its_format_is_held() {
    let mut house = House::new(BUDGET);
    let store = house.open().await;
    drop(fill_as(&store, 0, 9000, Origin::Ours).await.unwrap());
    store.keep_narinfo(narinfo(0, 0)).await.unwrap();
    store.close().await;
    // One of the same format is opened as ever.
    house.config.holds_format = true;
    house.open().await.close().await;
    to_first_format(&house);
    let index = || std::fs::read(house.path().join("index.redb")).unwrap();
    let before = index();
    let store = house.start(std::sync::Arc::new(Folder { path: house.path() }));
    let State::Degraded { reason, .. } = store.first_opened().await else { panic!("opened") };
    assert!(reason.contains("on trial"), "{reason}");
    store.close().await;
    assert!(index() == before, "the index was changed");
    house.config.holds_format = false;
    house.open().await.close().await;
}

#[tokio::test]
async fn an_index_of_the_first_format_is_taken_over() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for seed in 0..3 {
        drop(fill_as(&store, seed, 9000, Origin::Ours).await.unwrap());
        store.keep_narinfo(narinfo(seed, seed)).await.unwrap();
    }
    store.close().await;
    to_first_format(&house);
    for number in 10..12 {
        let store = house.open().await;
        assert_eq!(store.figures().narinfos, 3 + number - 10);
        for seed in 0..3 {
            let (stored, held) = store.lookup(key(seed)).await.unwrap().unwrap();
            assert_eq!(stored, narinfo(seed, seed));
            check_whole(&held.unwrap()).await;
        }
        push(&store, number, 900, &[ONE], 1).await.unwrap();
        assert_eq!(seq_of(&store, ONE, path(number)).await, Some(number - 9));
        check_figures(&store).await;
        store.close().await;
    }
    in_index(&house, |txn| {
        let format = META.get_in(txn, META_FORMAT).unwrap().unwrap();
        assert_eq!(format, 2_u64.to_be_bytes());
    });
}

/// Flips a bit of the values that are chosen by their place.
pub(super) fn flip(txn: &redb::WriteTransaction, table: Table, chosen: impl Fn(usize) -> bool) {
    let mut table = table.open_in(txn).unwrap();
    let rows: Vec<_> = table
        .range::<&[u8]>(..)
        .unwrap()
        .map(|row| row.map(|(key, it)| (key.value().to_vec(), it.value().to_vec())).unwrap())
        .collect();
    for (_, (key, mut value)) in rows.into_iter().enumerate().filter(|(at, _)| chosen(*at)) {
        let last = value.len() - 1;
        value[last] ^= 1;
        table.insert(key.as_slice(), value.as_slice()).unwrap();
    }
}

fn names(rows: &[QueueRow]) -> Vec<String> {
    let mut names: Vec<_> = rows.iter().map(|row| format!("{:?}", row.what)).collect();
    names.sort();
    names
}

#[tokio::test]
async fn damaged_rows_of_the_queue_wait_again() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for number in 0..9 {
        push(&store, number, 900, &[ONE, TWO], number).await.unwrap();
    }
    strike(&store, ONE, path(8)).await;
    let before = [ONE, TWO].map(|target| (target, store.clone()));
    let mut expected = Vec::new();
    for (target, store) in &before {
        expected.push(names(&store.queue(target, 0, 99).await.unwrap()));
    }
    store.close().await;
    let tables = [QUEUE, QUEUE_SEQ, QUEUE, QUEUE_SEQ, TARGET, QUEUE, QUEUE_SEQ];
    for (life, table) in tables.into_iter().enumerate() {
        in_index(&house, |txn| match life {
            // Some, all, a few in both, and rows that are gone.
            0 | 1 => flip(txn, table, |at| at % 3 == 0),
            2 | 3 => flip(txn, table, |_| true),
            4 => {
                // The first copy of each.
                flip(txn, table, |at| at < 2);
                flip(txn, QUEUE, |at| at == 3);
                flip(txn, QUEUE_SEQ, |at| at == 3);
            }
            _ => {
                let mut table = table.open_in(txn).unwrap();
                let first = table.first().unwrap().unwrap().0.value().to_vec();
                table.remove(first.as_slice()).unwrap();
            }
        });
        let store = house.open().await;
        store.flush().await.unwrap();
        for (target, expected) in [ONE, TWO].iter().zip(&expected) {
            let rows = store.queue(target, 0, 99).await.unwrap();
            assert_eq!(&names(&rows), expected);
            assert!(rows.is_sorted_by_key(|row| row.seq));
            assert!(rows.iter().all(|row| row.queued_at_s < 9));
        }
        check_figures(&store).await;
        store.close().await;
    }
    let store = house.open().await;
    for (target, expected) in [ONE, TWO].iter().zip(&expected) {
        for row in store.queue(target, 0, 99).await.unwrap() {
            store.strike(target, row.what, row.seq).await.unwrap();
        }
        assert!(!expected.is_empty());
    }
    assert!(store.queues().is_empty());
    assert_eq!(store.kept_back_bytes(), 0);
    check_figures(&store).await;
    store.close().await;
}
