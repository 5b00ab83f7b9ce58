//! Figures that others keep: handed out at opening, written with what is written anyway.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::kit::*;
use crate::store::disk::memory::Memory;
use crate::store::tables::FIGURES;
use crate::store::writer::{Durable, write_txn};
use crate::store::{History, Store};

/// Figures of a test: what was found, and what is to be kept.
#[derive(Default)]
struct Notes {
    found: Mutex<Vec<Vec<(String, Bytes)>>>,
    rows: Mutex<Vec<(&'static str, Bytes)>>,
}

impl History for Notes {
    fn found(&self, rows: Vec<(String, Bytes)>) {
        self.found.lock().unwrap().push(rows);
    }

    fn rows(&self) -> Vec<(&'static str, Bytes)> {
        self.rows.lock().unwrap().clone()
    }
}

impl Notes {
    fn set(&self, rows: &[(&'static str, &'static str)]) {
        let rows = rows.iter().map(|(name, row)| (*name, Bytes::from_static(row.as_bytes())));
        *self.rows.lock().unwrap() = rows.collect();
    }
}

fn keep(store: &Store) -> Arc<Notes> {
    let notes = Arc::new(Notes::default());
    store.keep_history(notes.clone());
    notes
}

#[track_caller]
fn check_found(store: &Store, wanted: &[(&str, &str)]) -> Arc<Notes> {
    let notes = keep(store);
    let found = notes.found.lock().unwrap().clone();
    let wanted: Vec<_> = wanted
        .iter()
        .map(|(name, row)| ((*name).to_owned(), Bytes::from((*row).to_owned())))
        .collect();
    assert_eq!(found, [wanted]);
    notes
}

#[tokio::test]
async fn figures_are_written_with_a_commit_that_happens_anyway_and_not_on_their_own() {
    let house = House::new(1 << 30);
    let memory = Memory::new(4 << 30);
    let store = house.open_on(memory.clone()).await;
    let notes = check_found(&store, &[]);
    drop(fill(&store, 1, 300_000).await.unwrap());
    notes.set(&[("hours", "one")]);
    store.flush().await.unwrap();
    until_idle(&store).await;
    let written = store.figures().written_bytes;
    notes.set(&[("hours", "two"), ("days", "one")]);
    store.flush().await.unwrap();
    until_idle(&store).await;
    assert_eq!(store.figures().written_bytes, written);
    // What a power cut costs is what changed since the last commit.
    let cut = memory.after_power_cut(1);
    let after = house.open_on(cut).await;
    check_found(&after, &[("hours", "one")]);
    after.close().await;
    store.close().await;
    let store = house.open_on(memory).await;
    check_found(&store, &[("days", "one"), ("hours", "two")]);
    store.close().await;
}

/// As much as the page has after a year: what it wears a card is a page of the index for a commit.
#[tokio::test]
async fn what_does_not_change_is_not_written_again() {
    let house = House::new(1 << 30);
    let store = house.open_on(Memory::new(4 << 30)).await;
    let notes = keep(&store);
    let row = |byte: u8, len: usize| Bytes::from(vec![byte; len]);
    let days = ("days", row(1, 23 << 10));
    let mut written = [0, 0];
    for round in 0..20_u8 {
        let before = store.figures().written_bytes;
        // Every other commit is without figures that changed.
        let is_changed = usize::from(round % 2);
        let hours = ("hours", row(round / 2 + round % 2, 2900));
        *notes.rows.lock().unwrap() = vec![days.clone(), hours];
        store.keep_narinfo(narinfo(u64::from(round), 1)).await.unwrap();
        store.flush().await.unwrap();
        until_idle(&store).await;
        if round > 1 {
            written[is_changed] += store.figures().written_bytes - before;
        }
    }
    let more = written[1].saturating_sub(written[0]) / 9;
    assert!(more <= 12 << 10, "{more} bytes for a row of 2900: {written:?}");
    store.close().await;
}

#[tokio::test]
async fn the_end_of_a_time_in_which_all_was_only_read_keeps_figures_once() {
    let house = House::new(1 << 30);
    let memory = Memory::new(4 << 30);
    let store = house.open_on(memory.clone()).await;
    drop(fill(&store, 1, 300_000).await.unwrap());
    store.close().await;
    let store = house.open_on(memory.clone()).await;
    keep(&store).set(&[("hours", "one")]);
    store.close().await;
    let store = house.open_on(memory.clone()).await;
    let notes = check_found(&store, &[("hours", "one")]);
    notes.set(&[("hours", "one")]);
    let written = store.figures().written_bytes;
    store.flush().await.unwrap();
    assert_eq!(store.figures().written_bytes, written);
    store.close().await;
}

#[tokio::test]
async fn a_damaged_row_is_left_out_and_written_over() {
    let house = House::new(1 << 30);
    let memory = Memory::new(4 << 30);
    let store = house.open_on(memory.clone()).await;
    keep(&store).set(&[("days", "one"), ("hours", "one")]);
    let session = store.shared.session().unwrap();
    store.flush().await.unwrap();
    store.close().await;
    drop(session);
    let store = house.open_on(memory.clone()).await;
    let session = store.shared.session().unwrap();
    session
        .index
        .with(|database| {
            let txn = write_txn(database, Durable::Yes)?;
            FIGURES.open_in(&txn)?.insert(b"days".as_slice(), b"not sealed".as_slice())?;
            Ok(txn.commit()?)
        })
        .unwrap();
    store.close().await;
    let store = house.open_on(memory.clone()).await;
    let notes = check_found(&store, &[("hours", "one")]);
    notes.set(&[("days", "two"), ("hours", "one")]);
    store.close().await;
    let store = house.open_on(memory).await;
    check_found(&store, &[("days", "two"), ("hours", "one")]);
    store.close().await;
}

#[tokio::test]
async fn nothing_is_written_before_it_is_known_what_was_kept() {
    let house = House::new(1 << 30);
    let memory = Memory::new(4 << 30);
    let store = house.open_on(memory.clone()).await;
    keep(&store).set(&[("hours", "old")]);
    store.close().await;
    // Told as soon as it is open, before the writer writes.
    let store = house.start(Arc::new(memory.clone()));
    let notes = keep(&store);
    notes.set(&[("hours", "new")]);
    store.first_opened().await;
    let found = notes.found.lock().unwrap().clone();
    assert_eq!(found, [vec![("hours".to_owned(), Bytes::from_static(b"old"))]]);
    store.close().await;
}
