//! Pins: what they hold stays, counts once, and goes back where it was.

use super::kit::*;
use super::pin_kit::*;
use super::push_kit::*;
use crate::store::Origin;
use crate::store::layout::stream_takes;

const MIB: u64 = 1 << 20;

const BUDGET: u64 = 16 * MIB;

/// Twice the budget passes through.
async fn crowd(store: &crate::store::Store, from: u64) {
    for seed in from..from + 32 {
        drop(fill(store, seed, 1 << 20).await.unwrap());
    }
    store.flush().await.unwrap();
}

#[tokio::test]
async fn what_is_pinned_is_never_evicted_and_goes_when_it_is_not() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for number in 0..4 {
        bring(&store, number, 1 << 20).await;
    }
    assert!(pin(&store, "desktop", &[0, 1, 2]).await.unwrap());
    assert_eq!(store.figures().pinned_bytes, 3 * stream_takes(MIB));
    assert_eq!((store.kept_back_bytes(), store.waiting_bytes()), (3 * stream_takes(MIB), 0));
    crowd(&store, 100).await;
    for number in 0..3 {
        check_whole(&store.lookup(key(number)).await.unwrap().unwrap().1.unwrap()).await;
    }
    assert!(store.nar(nar_hash(3)).await.unwrap().is_none());
    check_pins(&store).await;
    assert!(!store.unpin("laptop").await.unwrap());
    assert!(store.unpin("desktop").await.unwrap());
    check_pins(&store).await;
    assert_eq!(store.figures().pinned_bytes, 0);
    assert_eq!(origin_of(&store, 0), Some(Origin::Upstream));
    crowd(&store, 200).await;
    for number in 0..3 {
        assert!(store.nar(nar_hash(number)).await.unwrap().is_none());
    }
    check_pins(&store).await;
}

#[tokio::test]
async fn narinfos_of_pins_stay_while_others_go() {
    let house = House::new(MIB);
    let store = house.open().await;
    let numbers: Vec<u64> = (0..20).collect();
    for number in &numbers {
        store.keep_narinfo(narinfo(*number, *number)).await.unwrap();
    }
    assert!(pin(&store, "a", &numbers).await.unwrap());
    // A twentieth of the budget holds some 150.
    for number in 100..600 {
        store.keep_narinfo(narinfo(number, number)).await.unwrap();
    }
    store.flush().await.unwrap();
    assert!(store.lookup(key(100)).await.unwrap().is_none());
    for number in &numbers {
        assert!(store.lookup(key(*number)).await.unwrap().is_some(), "{number}");
    }
}

#[tokio::test]
async fn a_nar_that_also_waits_for_a_target_is_told_apart() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    bring(&store, 0, 100_000).await;
    push(&store, 1, 900, &[ONE], 9).await.unwrap();
    assert!(pin(&store, "a", &[0, 1]).await.unwrap());
    let waiting = async || {
        let paths = paths_of(&store, "a").await.unwrap();
        paths.into_iter().filter(|path| path.is_waiting).map(|path| path.key).collect::<Vec<_>>()
    };
    assert_eq!(waiting().await, [key(1)]);
    strike(&store, ONE, path(1)).await;
    assert_eq!(waiting().await, []);
}

#[tokio::test]
async fn what_comes_later_is_kept_from_its_first_moment() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    assert!(pin(&store, "a", &[0, 1]).await.unwrap());
    assert_eq!(paths_of(&store, "a").await.unwrap().len(), 2);
    bring(&store, 0, 1 << 20).await;
    crowd(&store, 100).await;
    check_whole(&store.nar(nar_hash(0)).await.unwrap().unwrap()).await;
    let paths = paths_of(&store, "a").await.unwrap();
    let missing: Vec<_> = paths.iter().filter(|path| path.takes_bytes.is_none()).collect();
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].key, key(1));
    check_pins(&store).await;
}

#[tokio::test]
async fn a_nar_of_two_pins_counts_once_and_goes_with_the_last() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for number in 0..3 {
        bring(&store, number, 100_000).await;
    }
    // Two paths of one NAR.
    store.keep_narinfo(narinfo(10, 1)).await.unwrap();
    assert!(pin(&store, "a", &[0, 1]).await.unwrap());
    assert!(pin(&store, "b", &[10, 2]).await.unwrap());
    assert!(pin(&store, "c", &[1, 10]).await.unwrap());
    assert_eq!(store.figures().pinned_bytes, 3 * stream_takes(100_000));
    let of_c = paths_of(&store, "c").await.unwrap();
    assert_eq!(of_c.iter().filter(|path| path.is_first).count(), 1);
    assert!(of_c.iter().all(|path| !path.is_alone));
    let of_a = paths_of(&store, "a").await.unwrap();
    let alone: Vec<_> = of_a.iter().filter(|path| path.is_alone).map(|path| path.key).collect();
    assert_eq!(alone, [key(0)]);
    assert_eq!(store.pins_of(nar_hash(1)).await.unwrap(), ["a", "b", "c"]);
    for (name, left) in [("a", 2), ("c", 2), ("b", 0)] {
        assert!(store.unpin(name).await.unwrap());
        check_pins(&store).await;
        assert_eq!(store.figures().pinned_bytes, left * stream_takes(100_000), "{name}");
    }
    assert_eq!(origin_of(&store, 1), Some(Origin::Upstream));
}

#[tokio::test]
async fn a_name_that_is_pinned_again_holds_what_it_held_until_the_new_one_is_whole() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for number in 0..3 {
        bring(&store, number, 100_000).await;
    }
    assert!(pin(&store, "a", &[0, 1]).await.unwrap());
    let id = store.begin_pin("a", Vec::new(), 8).await.unwrap();
    assert!(store.pin_paths(id, vec![key(1), key(2)]).await.unwrap());
    assert_eq!(paths_of(&store, "a").await.unwrap().len(), 2);
    assert_eq!(store.figures().pinned_bytes, 3 * stream_takes(100_000));
    // It ends in the middle: both are there, and giving it again begins anew.
    store.close().await;
    let store = house.open().await;
    check_pins(&store).await;
    assert_eq!(store.figures().pinned_bytes, 3 * stream_takes(100_000));
    let again = store.begin_pin("a", Vec::new(), 9).await.unwrap();
    assert!(!store.pin_paths(id, vec![key(0)]).await.unwrap(), "the first attempt is forgotten");
    assert!(!store.hold_pin(id).await.unwrap());
    check_pins(&store).await;
    assert_eq!(store.figures().pinned_bytes, 2 * stream_takes(100_000));
    assert!(store.pin_paths(again, vec![key(2)]).await.unwrap());
    assert!(store.hold_pin(again).await.unwrap());
    let held: Vec<_> = paths_of(&store, "a").await.unwrap().iter().map(|path| path.key).collect();
    assert_eq!(held, [key(2)]);
    check_pins(&store).await;
    assert_eq!(store.figures().pinned_bytes, stream_takes(100_000));
    let pins = store.pins().await.unwrap();
    assert_eq!((pins.len(), store.pin_count(), pins[0].since_s), (1, 1, 9));
    assert!(store.drop_pin(again).await.unwrap() && !store.drop_pin(again).await.unwrap());
    assert!(store.pins().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_queue_and_pins_do_not_take_each_others_hold_away() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for number in 0..3 {
        push(&store, number, 100_000, &[ONE], 1).await.unwrap();
    }
    push(&store, 3, 100_000, &[], 1).await.unwrap();
    assert!(pin(&store, "a", &[0, 1, 3]).await.unwrap());
    let takes = stream_takes(100_000);
    assert_eq!((store.kept_back_bytes(), store.waiting_bytes()), (4 * takes, 3 * takes));
    // A target has one of them: only the pin keeps it now.
    strike(&store, ONE, path(0)).await;
    check_pins(&store).await;
    assert_eq!(store.waiting_bytes(), 2 * takes);
    assert_eq!(origin_of(&store, 0), Some(Origin::Kept));
    assert!(store.unpin("a").await.unwrap());
    check_pins(&store).await;
    assert_eq!(store.waiting_bytes(), store.kept_back_bytes());
    let origins = [0, 1, 2, 3].map(|number| origin_of(&store, number).unwrap());
    assert_eq!(origins, [Origin::Upstream, Origin::Kept, Origin::Kept, Origin::Ours]);
}

#[tokio::test]
async fn a_pinned_nar_that_is_withdrawn_is_missing_and_kept_when_it_comes_again() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    bring(&store, 0, 100_000).await;
    assert!(pin(&store, "a", &[0]).await.unwrap());
    let hurt = store.pins_hurt();
    store.withdraw_nar(nar_hash(0)).await.unwrap();
    assert!(hurt.has_changed().unwrap());
    assert_eq!(paths_of(&store, "a").await.unwrap()[0].takes_bytes, None);
    assert_eq!(store.figures().pinned_bytes, 0);
    store.close().await;
    // Told again after a start, for whoever fetches it.
    let store = house.open().await;
    let hurt = store.pins_hurt();
    until_idle(&store).await;
    assert!(hurt.has_changed().unwrap() || *hurt.borrow() > 0);
    drop(fill(&store, 0, 100_000).await.unwrap());
    check_pins(&store).await;
    assert_eq!(store.figures().pinned_bytes, stream_takes(100_000));
    // Held and pinned, its narinfo neither goes nor names another NAR.
    store.withdraw_narinfo(key(0)).await.unwrap();
    store.keep_narinfo(narinfo(0, 55)).await.unwrap();
    store.flush().await.unwrap();
    let (stored, _) = store.lookup(key(0)).await.unwrap().unwrap();
    assert_eq!(stored.narinfo.nar_hash, nar_hash(0));
}

#[tokio::test]
async fn many_paths_go_in_slices_and_a_start_in_the_middle_goes_on() {
    let house = House::new(64 * MIB);
    let store = house.open().await;
    let numbers: Vec<u64> = (0..1000).collect();
    for number in &numbers {
        bring(&store, *number, 500).await;
    }
    assert!(pin(&store, "a", &numbers).await.unwrap());
    check_pins(&store).await;
    assert!(store.unpin("a").await.unwrap());
    store.close().await;
    let store = house.open().await;
    check_pins(&store).await;
    assert_eq!(store.figures().pinned_bytes, 0);
    assert_eq!(store.kept_back_bytes(), 0);
    assert!(records(&store).iter().all(|(_, record)| record.origin == Origin::Upstream));
}
