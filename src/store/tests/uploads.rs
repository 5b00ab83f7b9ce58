//! Uploads that wait for their narinfo, and those that wait in vain.

use super::kit::*;
use super::push_kit::*;
use crate::store::Origin;

const BUDGET: u64 = 1 << 30;

#[tokio::test]
async fn an_upload_is_kept_while_it_waits_for_its_narinfo() {
    let house = House::new(16 << 20);
    let store = house.open().await;
    // One that was fetched before is kept as well.
    drop(fill(&store, 1, 2 << 20).await.unwrap());
    store.flush().await.unwrap();
    for seed in [1, 2] {
        drop(upload(&store, seed, 2 << 20, 10).await.unwrap());
    }
    for seed in 100..110 {
        drop(fill(&store, seed, 3 << 20).await.unwrap());
    }
    for seed in [1, 2] {
        check_whole(&store.nar(nar_hash(seed)).await.unwrap().unwrap()).await;
        assert_eq!(origin_of(&store, seed), Some(Origin::Kept));
    }
    check_figures(&store).await;
    store.close().await;
}

#[tokio::test]
async fn an_upload_outlives_the_last_other_path_of_its_nar() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    // On its way to the index, and there.
    for (seed, flushed) in [(1, false), (2, true)] {
        store.keep_narinfo(narinfo(9, seed)).await.unwrap();
        drop(fill(&store, seed, 900).await.unwrap());
        store.flush().await.unwrap();
        drop(upload(&store, seed, 900, 1).await.unwrap());
        if flushed {
            store.flush().await.unwrap();
        }
        store.withdraw_narinfo(key(9)).await.unwrap();
        let held = store.nar(nar_hash(seed)).await.unwrap().unwrap();
        accept(&store, (seed, seed), held, &[ONE], 1).await.unwrap();
    }
    store.close().await;
}

#[tokio::test]
async fn uploads_that_nobody_bound_go_after_a_day() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for (seed, at_s) in [(1, 100), (2, 200), (3, 100), (4, 100)] {
        drop(upload(&store, seed, 900, at_s).await.unwrap());
    }
    // Another path has this one.
    store.keep_narinfo(narinfo(3, 3)).await.unwrap();
    let held = store.nar(nar_hash(4)).await.unwrap().unwrap();
    accept(&store, (4, 4), held, &[], 100).await.unwrap();
    assert_eq!(store.unbound_uploads().1, 3);
    assert_eq!(store.drop_unbound(101).await.unwrap(), 2);
    assert!(store.nar(nar_hash(1)).await.unwrap().is_none());
    for (seed, origin) in [(2, Origin::Kept), (3, Origin::Ours), (4, Origin::Ours)] {
        assert!(store.nar(nar_hash(seed)).await.unwrap().is_some());
        assert_eq!(origin_of(&store, seed), Some(origin));
    }
    for (seed, is_there) in [(1, false), (2, true), (3, false), (4, true)] {
        let alias = store.alias(upload_name(seed)).await.unwrap();
        assert_eq!(alias.is_some(), is_there, "{seed}");
    }
    assert_eq!(store.unbound_uploads(), (1002, 1));
    check_figures(&store).await;
    // A bound one that comes again and is not bound again keeps its name.
    drop(upload(&store, 4, 900, 300).await.unwrap());
    assert_eq!(store.drop_unbound(400).await.unwrap(), 2);
    assert!(store.alias(upload_name(4)).await.unwrap().unwrap().bound);
    assert_eq!(origin_of(&store, 4), Some(Origin::Ours));
    check_figures(&store).await;
    store.close().await;
}
