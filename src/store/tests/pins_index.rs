//! The tables of pins: an index from before them, one that an older snowberry wrote to, and damage.

use redb::TableHandle;

use super::kit::*;
use super::pin_kit::*;
use super::push_index::{flip, in_index};
use super::push_kit::*;
use crate::store::Origin;
use crate::store::keys::nar_use_key;
use crate::store::layout::stream_takes;
use crate::store::records::NarRecord;
use crate::store::tables::{NAR, NAR_USE, PIN, PINNED};

const BUDGET: u64 = 1 << 30;

#[tokio::test]
async fn an_index_from_before_pins_is_read_as_one_without_any_and_not_written_to() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    bring(&store, 0, 9000).await;
    store.close().await;
    in_index(&house, |txn| {
        for table in txn.list_tables().unwrap().collect::<Vec<_>>() {
            if [PIN, PINNED].iter().any(|pins| pins.name() == table.name()) {
                txn.delete_table(table).unwrap();
            }
        }
    });
    let store = house.open().await;
    assert!(store.pins().await.unwrap().is_empty());
    assert!(store.pinned_paths(0, None).await.unwrap().is_empty());
    assert!(store.pins_of(nar_hash(0)).await.unwrap().is_empty());
    store.close().await;
    in_index(&house, |txn| {
        let tables: Vec<_> = txn.list_tables().unwrap().collect();
        assert!(tables.iter().all(|table| table.name() != PIN.name()));
    });
    let store = house.open().await;
    assert!(pin(&store, "a", &[0]).await.unwrap());
    check_pins(&store).await;
    assert_eq!(store.figures().pinned_bytes, stream_takes(9000));
}

/// An older snowberry, to which an update that failed falls back, thinks that nothing keeps these.
#[tokio::test]
async fn what_an_older_snowberry_let_go_is_kept_again() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    for number in 0..3 {
        bring(&store, number, 9000).await;
    }
    assert!(pin(&store, "a", &[0, 1]).await.unwrap());
    check_pins(&store).await;
    let kept: Vec<(u64, NarRecord)> = records(&store);
    store.close().await;
    in_index(&house, |txn| {
        for (id, record) in kept.into_iter().filter(|(_, record)| record.origin == Origin::Kept) {
            NAR_USE.remove(txn, &nar_use_key(Origin::Kept, record.last_use, id)).unwrap();
            NAR_USE.insert(txn, &nar_use_key(Origin::Ours, record.last_use, id), &[]).unwrap();
            let ours = NarRecord { origin: Origin::Ours, ..record };
            NAR.insert(txn, &id.to_be_bytes(), &ours.to_bytes()).unwrap();
        }
    });
    let store = house.open().await;
    until_idle(&store).await;
    assert_eq!([0, 1].map(|number| origin_of(&store, number)), [Some(Origin::Kept); 2]);
    assert_eq!(store.figures().pinned_bytes, 2 * stream_takes(9000));
}

#[tokio::test]
async fn damaged_rows_of_pins_are_written_again_from_their_others() {
    for case in 0..4 {
        let house = House::new(BUDGET);
        let store = house.open().await;
        for number in 0..4 {
            bring(&store, number, 9000).await;
        }
        assert!(pin(&store, "desktop", &[0, 1]).await.unwrap());
        assert!(pin(&store, "laptop", &[1, 2]).await.unwrap());
        check_pins(&store).await;
        store.close().await;
        in_index(&house, |txn| match case {
            0 => flip(txn, PIN, |at| at < 2),
            1 => flip(txn, PINNED, |at| at % 2 == 0 && at < 4),
            2 => flip(txn, PINNED, |at| at >= 4),
            _ => flip(txn, PIN, |at| at % 2 == 0),
        });
        let store = house.open().await;
        check_pins(&store).await;
        assert_eq!(store.figures().pinned_bytes, 3 * stream_takes(9000), "case {case}");
        let names: Vec<_> = store.pins().await.unwrap().into_iter().map(|pin| pin.name).collect();
        match case {
            // Both copies of a record are gone: its paths stay pinned under another name.
            3 => assert_eq!(names, ["recovered-0", "laptop"]),
            _ => assert_eq!(names, ["desktop", "laptop"]),
        }
        assert!(store.unpin(&names[0]).await.unwrap());
        check_pins(&store).await;
        assert_eq!(store.figures().pinned_bytes, 2 * stream_takes(9000), "case {case}");
    }
}
