//! Budget, eviction, and what is written.

use super::kit::*;
use crate::store::layout::stream_takes;
use crate::store::{Error, Origin};

#[tokio::test]
async fn eviction_makes_room_and_takes_the_least_used_of_upstream_first() {
    let house = House::new(20 << 20);
    let store = house.open().await;
    drop(fill_as(&store, 100, 1 << 20, Origin::Ours).await.unwrap());
    let read = fill(&store, 101, 1 << 20).await.unwrap();
    for seed in 0..60 {
        drop(fill(&store, seed, 1 << 20).await.unwrap());
        assert!(store.figures().used_bytes <= 20 << 20);
    }
    check_whole(&read).await;
    let ours = store.nar(nar_hash(100)).await.unwrap().unwrap();
    check_whole(&ours).await;
    assert!(store.nar(nar_hash(0)).await.unwrap().is_none());
    assert!(store.nar(nar_hash(59)).await.unwrap().is_some());
    assert!(house.metrics.evicted.get() >= 40);
    store.close().await;
}

#[tokio::test]
async fn what_nobody_can_make_room_for_is_refused() {
    let house = House::new(4 << 20);
    let store = house.open().await;
    assert!(matches!(store.reserve(5 << 20).await, Err(Error::NoRoom { .. })));
    let held = fill(&store, 1, 3 << 20).await.unwrap();
    assert!(matches!(store.reserve(2 << 20).await, Err(Error::NoRoom { .. })));
    drop(held);
    let reservation = store.reserve(2 << 20).await.unwrap();
    drop(reservation);
    until(&store, |store| store.figures().used_bytes == 0).await;
    store.close().await;
}

#[tokio::test]
async fn narinfos_stay_within_their_part() {
    let house = House::new(2 << 20);
    let store = house.open().await;
    for number in 0..2000 {
        store.keep_narinfo(narinfo(number, number)).await.unwrap();
    }
    store.flush().await.unwrap();
    let figures = store.figures();
    assert!(figures.narinfos > 50 && figures.narinfos < 1000, "{figures:?}");
    let key = |number| narinfo(number, 0).narinfo.store_path.hash();
    assert!(store.lookup(key(0)).await.unwrap().is_none());
    assert!(store.lookup(key(1999)).await.unwrap().is_some());
    store.close().await;
}

#[tokio::test]
async fn little_more_is_written_than_kept() {
    let house = House::new(1 << 30);
    let store = house.open().await;
    let before = store.figures().written_bytes;
    for seed in 0..8 {
        drop(fill(&store, seed, 16 << 20).await.unwrap());
    }
    store.flush().await.unwrap();
    let written = store.figures().written_bytes - before;
    let kept = 128 << 20;
    assert!(written <= kept + kept / 10, "{written} written for {kept}");
    assert_eq!(store.figures().used_bytes, 8 * stream_takes(16 << 20));

    let before = store.figures().written_bytes;
    drop(fill(&store, 50, 1000).await.unwrap());
    store.keep_narinfo(narinfo(1, 50)).await.unwrap();
    store.flush().await.unwrap();
    let written = store.figures().written_bytes - before;
    assert!(written <= 300 << 10, "{written} written for a small group");

    for _ in 0..10 {
        check_whole(&store.nar(nar_hash(1)).await.unwrap().unwrap()).await;
    }
    let before = store.figures().written_bytes;
    store.flush().await.unwrap();
    assert_eq!(store.figures().written_bytes, before, "serving wrote");
    store.close().await;
}
