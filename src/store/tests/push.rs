//! Uploads, acceptances and the queue: what their doors promise.

use bytes::Bytes;

use super::kit::*;
use super::push_kit::*;
use crate::store::layout::stream_takes;
use crate::store::{Acceptance, Error, Origin, Queued, TargetQueue};

const BUDGET: u64 = 1 << 30;

#[tokio::test]
async fn an_accepted_path_is_there_after_a_restart_with_its_alias_and_its_rows() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let held = upload(&store, 1, 5000, 100).await.unwrap();
    assert_eq!(store.alias(upload_name(1)).await.unwrap(), Some(alias_of(1, 100)));
    assert_eq!(store.unbound_uploads(), (1001, 1));
    assert_eq!(store.kept_back_bytes(), stream_takes(5000));
    accept(&store, (1, 1), held, &[ONE, TWO], 200).await.unwrap();
    assert_eq!(store.unbound_uploads(), (0, 0));
    for life in 0..2 {
        let store = if life == 0 { store.clone() } else { house.open().await };
        let (stored, held) = store.lookup(key(1)).await.unwrap().unwrap();
        assert_eq!(stored, ours(1, 1));
        check_whole(&held.unwrap()).await;
        let alias = store.alias(upload_name(1)).await.unwrap().unwrap();
        assert_eq!(alias, crate::store::Alias { bound: true, ..alias_of(1, 100) });
        for (target, seq) in [(ONE, 1), (TWO, 2)] {
            let row = store.queue_row(target, path(1)).await.unwrap().unwrap();
            assert_eq!(
                (row.seq, row.queued_at_s, row.len_bytes, row.lost),
                (seq, 200, 5000, false)
            );
            assert_eq!(store.queue(target, 0, 9).await.unwrap(), [row]);
            let target = target.to_owned();
            let queue = TargetQueue {
                target,
                waiting: 1,
                waiting_bytes: 5000,
                oldest_at_s: Some(200),
                lost: 0,
            };
            assert_eq!(queue_of(&store, &queue.target), Some(queue));
        }
        check_figures(&store).await;
        store.close().await;
    }
}

#[tokio::test]
async fn an_acknowledged_path_survives_without_a_clean_end() {
    let house = House::new(BUDGET);
    let memory = crate::store::disk::memory::Memory::new(4 << 30);
    let store = house.open_on(memory.clone()).await;
    push(&store, 1, 300_000, &[ONE], 5).await.unwrap();
    // Synced or not: what was acknowledged before is there.
    let found = memory.after_power_cut(7);
    store.close().await;
    let store = house.open_on(found).await;
    let (_, held) = store.lookup(key(1)).await.unwrap().unwrap();
    check_whole(&held.unwrap()).await;
    assert_eq!(seq_of(&store, ONE, path(1)).await, Some(1));
    check_figures(&store).await;
    store.close().await;
}

#[tokio::test]
async fn what_waits_is_never_evicted_and_a_struck_one_is() {
    let house = House::new(16 << 20);
    let store = house.open().await;
    for number in 0..7 {
        push(&store, number, 2 << 20, &[ONE, TWO], 1).await.unwrap();
    }
    assert_eq!(store.kept_back_bytes(), 7 * stream_takes(2 << 20));
    for seed in 100..110 {
        let filled = fill(&store, seed, 4 << 20).await;
        assert!(matches!(filled, Err(Error::NoRoom { .. })), "{filled:?}");
    }
    for number in 0..7 {
        check_whole(&store.nar(nar_hash(number)).await.unwrap().unwrap()).await;
    }
    strike(&store, ONE, path(3)).await;
    assert_eq!(origin_of(&store, 3), Some(Origin::Kept));
    strike(&store, TWO, path(3)).await;
    assert_eq!(origin_of(&store, 3), Some(Origin::Upstream));
    drop(fill(&store, 100, 3 << 20).await.unwrap());
    assert!(store.nar(nar_hash(3)).await.unwrap().is_none());
    for number in [0, 1, 2, 4, 5, 6] {
        check_whole(&store.nar(nar_hash(number)).await.unwrap().unwrap()).await;
    }
    check_figures(&store).await;
    store.close().await;
}

#[tokio::test]
async fn without_targets_a_path_is_ours_or_an_upstream_s() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    drop(fill(&store, 2, 900).await.unwrap());
    store.flush().await.unwrap();
    for number in [1, 2] {
        push(&store, number, 900, &[], 1).await.unwrap();
        assert_eq!(origin_of(&store, number), Some(Origin::Ours));
    }
    // Another upstream has this one.
    let nar = upload(&store, 3, 900, 1).await.unwrap();
    let (stored, upload) = (narinfo(3, 3), Some(upload_name(3)));
    let acceptance = Acceptance { stored, nar, upload, targets: Vec::new() };
    store.accept(acceptance, 1).await.unwrap();
    assert_eq!(origin_of(&store, 3), Some(Origin::Upstream));
    assert!(store.queues().is_empty());
    assert_eq!(store.kept_back_bytes(), 0);
    check_figures(&store).await;
    store.close().await;
}

#[tokio::test]
async fn a_path_that_is_accepted_again_is_another_row() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for number in 1..=3 {
        push(&store, number, 900, &[ONE], number).await.unwrap();
    }
    push(&store, 1, 900, &[ONE], 9).await.unwrap();
    let order = |rows: Vec<crate::store::QueueRow>| -> Vec<_> {
        rows.into_iter().map(|row| (row.what, row.seq)).collect()
    };
    let all = [(path(2), 2), (path(3), 3), (path(1), 4)];
    assert_eq!(order(store.queue(ONE, 0, 9).await.unwrap()), all);
    assert_eq!(order(store.queue(ONE, 0, 2).await.unwrap()), all[..2]);
    assert_eq!(order(store.queue(ONE, 3, 9).await.unwrap()), all[2..]);
    assert_eq!(queue_of(&store, ONE).unwrap().oldest_at_s, Some(2));
    // The one that was carried meanwhile is another.
    store.strike(ONE, path(1), 1).await.unwrap();
    assert_eq!(seq_of(&store, ONE, path(1)).await, Some(4));
    assert_eq!(origin_of(&store, 1), Some(Origin::Kept));
    store.strike(ONE, path(1), 4).await.unwrap();
    assert_eq!(seq_of(&store, ONE, path(1)).await, None);
    strike(&store, ONE, path(2)).await;
    let queue = queue_of(&store, ONE).unwrap();
    assert_eq!((queue.waiting, queue.waiting_bytes, queue.oldest_at_s), (1, 900, Some(3)));
    check_figures(&store).await;
    store.close().await;
    // Numbers go on where they were.
    let store = house.open().await;
    strike(&store, ONE, path(3)).await;
    push(&store, 4, 900, &[ONE], 1).await.unwrap();
    assert_eq!(seq_of(&store, ONE, path(4)).await, Some(5));
    store.close().await;
}

#[tokio::test]
async fn a_nar_of_two_paths_is_kept_until_both_are_there() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let held = upload(&store, 1, 900, 1).await.unwrap();
    accept(&store, (1, 1), held.clone(), &[ONE], 1).await.unwrap();
    accept(&store, (2, 1), held, &[ONE], 1).await.unwrap();
    strike(&store, ONE, path(1)).await;
    assert_eq!(origin_of(&store, 1), Some(Origin::Kept));
    strike(&store, ONE, path(2)).await;
    assert_eq!(origin_of(&store, 1), Some(Origin::Upstream));
    assert_eq!(store.kept_back_bytes(), 0);
    check_figures(&store).await;
    store.close().await;
}

#[tokio::test]
async fn narinfos_and_documents_that_wait_do_not_go_for_others() {
    let house = House::new(2 << 20);
    let store = house.open().await;
    push(&store, 1, 900, &[ONE], 1).await.unwrap();
    let body = Bytes::from(vec![7; 5000]);
    let name = "log/x.drv";
    store.accept_document(name, body.clone(), vec![ONE.to_owned()], 1).await.unwrap();
    // Kept again by somebody else, it waits all the same.
    store.keep_narinfo(ours(1, 1)).await.unwrap();
    store.keep_document(name, body.clone(), Origin::Upstream).await.unwrap();
    let press = async || {
        for number in 1000..2000 {
            store.keep_narinfo(narinfo(number, number)).await.unwrap();
        }
        store.flush().await.unwrap();
    };
    press().await;
    assert!(store.lookup(key(1000)).await.unwrap().is_none());
    assert!(store.lookup(key(1)).await.unwrap().is_some());
    assert_eq!(store.document(name).await.unwrap(), Some(body));
    let document = Queued::Document(name.to_owned());
    let row = store.queue_row(ONE, document.clone()).await.unwrap().unwrap();
    assert_eq!((row.len_bytes, row.what.clone()), (5000, document.clone()));
    strike(&store, ONE, document).await;
    strike(&store, ONE, path(1)).await;
    check_figures(&store).await;
    press().await;
    press().await;
    assert!(store.lookup(key(1)).await.unwrap().is_none());
    assert!(store.document(name).await.unwrap().is_none());
    store.close().await;
}

#[tokio::test]
async fn a_queued_narinfo_is_not_withdrawn_and_not_turned_into_another() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    push(&store, 1, 900, &[ONE], 1).await.unwrap();
    store.withdraw_narinfo(key(1)).await.unwrap();
    store.keep_narinfo(narinfo(1, 50)).await.unwrap();
    store.flush().await.unwrap();
    let (stored, held) = store.lookup(key(1)).await.unwrap().unwrap();
    assert_eq!(stored, ours(1, 1));
    check_whole(&held.unwrap()).await;
    strike(&store, ONE, path(1)).await;
    store.withdraw_narinfo(key(1)).await.unwrap();
    assert!(store.lookup(key(1)).await.unwrap().is_none());
    until(&store, |store| store.figures().used_bytes == 0).await;
    check_figures(&store).await;
    store.close().await;
}

#[tokio::test]
async fn a_target_is_forgotten_with_its_rows_or_only_its_lost_ones() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for number in 0..5 {
        push(&store, number, 900, &[ONE, TWO], number).await.unwrap();
    }
    store.mark_lost(ONE, path(0)).await.unwrap();
    store.mark_lost(ONE, path(3)).await.unwrap();
    store.mark_lost(ONE, path(3)).await.unwrap();
    let queue = queue_of(&store, ONE).unwrap();
    assert_eq!((queue.waiting, queue.oldest_at_s, queue.lost), (3, Some(1), 2));
    assert!(store.queue_row(ONE, path(3)).await.unwrap().unwrap().lost);
    check_figures(&store).await;
    // Accepted again, it waits again.
    push(&store, 3, 900, &[ONE], 9).await.unwrap();
    assert_eq!(store.forget_target(ONE, true).await.unwrap(), 1);
    assert_eq!(store.queue(ONE, 0, 9).await.unwrap().len(), 4);
    assert_eq!(store.forget_target(ONE, false).await.unwrap(), 4);
    assert_eq!(store.forget_target(ONE, false).await.unwrap(), 0);
    assert!(queue_of(&store, ONE).is_none());
    assert_eq!(origin_of(&store, 2), Some(Origin::Kept));
    assert_eq!(store.forget_target(TWO, false).await.unwrap(), 5);
    for number in 0..5 {
        assert_eq!(origin_of(&store, number), Some(Origin::Ours));
    }
    check_figures(&store).await;
    store.close().await;
    let store = house.open().await;
    assert!(store.queues().is_empty());
    store.close().await;
}

#[tokio::test]
async fn a_target_of_many_rows_is_forgotten_in_slices() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let mut accepted = tokio::task::JoinSet::new();
    for number in 0..2500 {
        let store = store.clone();
        accepted.spawn(async move {
            let body = Bytes::from_static(b"x");
            let name = format!("log/{number}");
            store.accept_document(&name, body, vec![ONE.to_owned()], 1).await
        });
    }
    while let Some(accepted) = accepted.join_next().await {
        accepted.unwrap().unwrap();
    }
    assert_eq!(queue_of(&store, ONE).unwrap().waiting, 2500);
    assert_eq!(store.forget_target(ONE, false).await.unwrap(), 2500);
    check_figures(&store).await;
    store.close().await;
}

#[tokio::test]
async fn a_queued_nar_that_is_withdrawn_leaves_its_row() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    push(&store, 1, 900, &[ONE], 1).await.unwrap();
    let held = store.nar(nar_hash(1)).await.unwrap().unwrap();
    store.withdraw_nar(nar_hash(1)).await.unwrap();
    let again = accept(&store, (2, 1), held, &[ONE], 1).await;
    assert!(matches!(again, Err(Error::Corrupt(hash)) if hash == nar_hash(1)), "{again:?}");
    assert_eq!(queue_of(&store, ONE).unwrap().waiting, 1);
    assert_eq!(store.kept_back_bytes(), 0);
    // It came again from elsewhere while it waits: kept like the one before.
    drop(fill(&store, 1, 900).await.unwrap());
    store.flush().await.unwrap();
    assert_eq!(origin_of(&store, 1), Some(Origin::Kept));
    check_figures(&store).await;
    store.close().await;
}

#[tokio::test]
async fn uploaders_at_once_share_commits() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let before = store.figures().written_bytes;
    push(&store, 0, 900, &[ONE], 1).await.unwrap();
    let alone = store.figures().written_bytes - before;
    let mut nars = Vec::new();
    for number in 1..=64 {
        nars.push((number, upload(&store, number, 900, 1).await.unwrap()));
    }
    let before = store.figures().written_bytes;
    let mut uploaders = tokio::task::JoinSet::new();
    for (number, nar) in nars {
        let store = store.clone();
        uploaders.spawn(async move { accept(&store, (number, number), nar, &[ONE], 1).await });
    }
    while let Some(accepted) = uploaders.join_next().await {
        accepted.unwrap().unwrap();
    }
    let all = store.figures().written_bytes - before;
    assert!(alone <= 300 << 10, "{alone} written for one");
    assert!(all < 16 * alone, "{all} written for 64, {alone} for one");
    check_figures(&store).await;
    store.close().await;
}

#[tokio::test]
async fn a_resting_store_wakes_for_a_push() {
    let mut house = House::new(BUDGET);
    house.config.rest_after = Some(std::time::Duration::from_millis(20));
    let store = house.open().await;
    for number in 0..3 {
        push(&store, number, 900, &[ONE], 1).await.unwrap();
        let session = store.shared.session().unwrap();
        let rested = async {
            while !session.index.is_resting() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), rested).await.unwrap();
        strike(&store, ONE, path(number)).await;
        assert!(store.queues().is_empty());
    }
    check_figures(&store).await;
    store.close().await;
}

#[tokio::test]
async fn a_degraded_store_says_what_waited() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    push(&store, 1, 900, &[ONE], 1).await.unwrap();
    let (queues, kept) = (store.queues(), store.kept_back_bytes());
    store.close().await;
    assert_eq!((store.queues(), store.kept_back_bytes()), (queues, kept));
    assert!(matches!(store.queue(ONE, 0, 9).await, Err(Error::Closing)));
    let fresh = House::new(BUDGET);
    std::fs::remove_dir(fresh.path()).unwrap();
    let folder = crate::store::disk::Folder { path: fresh.path().join("no/where") };
    let store = fresh.start(std::sync::Arc::new(folder));
    store.first_opened().await;
    assert!(store.queues().is_empty());
    store.close().await;
}
