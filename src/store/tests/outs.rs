//! What goes by hand: in the order that is listed, and nothing that is kept.

use super::kit::*;
use super::pin_kit::*;
use super::push_index::in_index;
use crate::nix::NarHash;
use crate::store::layout::stream_takes;
use crate::store::tables::USE_TIME;
use crate::store::{Gone, Origin, Out, Outs, Store};

const LEN: usize = 100_000;

fn hashes(outs: &[Out]) -> Vec<NarHash> {
    outs.iter().map(|out| out.nar_hash).collect()
}

async fn evicted(store: &Store, to_bytes: u64) -> Vec<Out> {
    let mut all = Vec::new();
    loop {
        let some = store.evict_to(to_bytes).await.unwrap().nars;
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

#[tokio::test]
async fn what_is_listed_goes_in_its_order_and_uses_that_are_not_written_count() {
    let house = House::new(1 << 30);
    let store = house.open().await;
    drop(fill_as(&store, 9, LEN, Origin::Ours).await.unwrap());
    for number in 0..4 {
        bring(&store, number, LEN).await;
    }
    store.flush().await.unwrap();
    // One that is in memory only, and one that is used again.
    bring(&store, 4, LEN).await;
    drop(store.nar(nar_hash(1)).await.unwrap());
    let listed = store.next_out(u64::MAX, 100).await.unwrap();
    assert_eq!(hashes(&listed), [0, 2, 3, 4, 1, 9].map(nar_hash));
    assert_eq!(
        listed.iter().map(|out| out.is_only_here).collect::<Vec<_>>(),
        [false, false, false, false, false, true]
    );
    assert_eq!(listed[0].paths, [narinfo(0, 0).narinfo.store_path.hash()]);
    assert_eq!(store.next_out(u64::MAX, 2).await.unwrap(), listed[..2]);
    assert_eq!(store.next_out(1, 100).await.unwrap(), listed[..1]);
    assert!(store.next_out(0, 100).await.unwrap().is_empty());
    let takes = stream_takes(LEN as u64);
    let gone = evicted(&store, 2 * takes).await;
    assert_eq!(hashes(&gone), hashes(&listed[..4]));
    check_pins(&store).await;
    assert_eq!(store.figures().used_bytes, 2 * takes);
    assert!(evicted(&store, 2 * takes).await.is_empty());
    assert_eq!(hashes(&evicted(&store, 0).await), [1, 9].map(nar_hash));
    check_pins(&store).await;
}

#[tokio::test]
async fn what_is_kept_or_read_stays_and_what_is_named_goes_all_the_same() {
    let house = House::new(1 << 30);
    let store = house.open().await;
    for number in 0..3 {
        bring(&store, number, LEN).await;
    }
    assert!(pin(&store, "a", &[0]).await.unwrap());
    let reader = store.nar(nar_hash(1)).await.unwrap().unwrap();
    assert_eq!(hashes(&store.next_out(u64::MAX, 100).await.unwrap()), [nar_hash(2)]);
    assert_eq!(hashes(&evicted(&store, 0).await), [nar_hash(2)]);
    assert_eq!(store.evict_nar(nar_hash(0)).await.unwrap(), Gone::Kept);
    assert_eq!(store.evict_nar(nar_hash(2)).await.unwrap(), Gone::NotHere);
    let Gone::Out(out) = store.evict_nar(nar_hash(1)).await.unwrap() else { panic!("it stays") };
    assert_eq!(out.takes_bytes, stream_takes(LEN as u64));
    assert!(store.nar(nar_hash(1)).await.unwrap().is_none());
    // What went and is still read is there, and does not count as left.
    let takes = stream_takes(LEN as u64);
    assert!(store.figures().used_bytes >= 2 * takes);
    let more = store.evict_to(takes).await.unwrap();
    assert_eq!(more, Outs { nars: Vec::new(), left_bytes: takes });
    check_whole(&reader).await;
    drop(reader);
    check_pins(&store).await;
    assert_eq!(store.figures().used_bytes, stream_takes(LEN as u64));
    // The narinfo of what went stays.
    assert!(store.peek_narinfo(narinfo(1, 1).narinfo.store_path.hash()).await.unwrap().is_some());
}

#[tokio::test]
async fn since_when_something_was_not_used_is_known_to_the_hour() {
    let house = House::new(1 << 30);
    let store = house.open().await;
    for number in 0..3 {
        bring(&store, number, LEN).await;
        store.flush().await.unwrap();
    }
    let unused = async |store: &Store| store.next_out(1, 1).await.unwrap()[0].unused_since_s;
    // The one note is from before their first use, and the next comes in an hour.
    assert_eq!(unused(&store).await, None);
    let session = store.shared.session().unwrap();
    let notes = session.index.read(|txn| USE_TIME.scan(txn, &[], usize::MAX, |_| true)).unwrap();
    assert_eq!(notes.len(), 1);
    drop(session);
    store.close().await;
    in_index(&house, |txn| {
        USE_TIME
            .insert(txn, &(1_u64 << 40).to_be_bytes(), &1_800_000_000_u64.to_be_bytes())
            .unwrap();
    });
    let store = house.open().await;
    assert_eq!(unused(&store).await, Some(1_800_000_000));
}
