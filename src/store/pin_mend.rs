//! Rows of pins that were damaged: each is there twice, and what is sound says what is not.

use std::collections::{BTreeMap, BTreeSet};

use redb::{ReadableTable, WriteTransaction};

use super::Origin;
use super::pin_rows::{PinRecord, by_path_key, by_pin_key, pin_keys, pin_of, pinned_of};
use super::records::origin_byte;
use super::tables::{Fault, PIN, PINNED};

/// The tables of pins are written anew from what is sound in them. A pin of which only paths are
/// left gets a name: what was pinned is not let go over a bit. Says how many rows were damaged.
pub(super) fn mend_pins(txn: &WriteTransaction) -> Result<u64, Fault> {
    let mut damaged = 0;
    let mut pins = BTreeMap::new();
    let (mut lost, mut copies) = (false, 0);
    for entry in PIN.open_in(txn)?.range::<&[u8]>(..)? {
        let (key, value) = entry?;
        let record = PIN.unseal(key.value(), value.value()).and_then(PinRecord::from_bytes);
        if let (Some(id), Ok(record)) = (pin_of(key.value()), record) {
            pins.insert(id, record);
            copies += 1;
        } else {
            damaged += 1;
            lost = true;
        }
    }
    // By pin and path: what the NAR becomes without, and how many rows said so.
    let mut rows = BTreeMap::<_, (Origin, u8)>::new();
    for entry in PINNED.open_in(txn)?.range::<&[u8]>(..)? {
        let (key, value) = entry?;
        let (Ok(body), Some((path, id))) =
            (PINNED.unseal(key.value(), value.value()), pinned_of(key.value()))
        else {
            damaged += 1;
            continue;
        };
        let (becomes, count) = rows.entry((id, path)).or_insert((Origin::Ours, 0));
        if body == [origin_byte(Origin::Upstream)] {
            *becomes = Origin::Upstream;
        }
        *count += 1;
    }
    let ids: BTreeSet<u32> = rows.keys().map(|(id, _)| *id).collect();
    for id in ids {
        if !lost || pins.contains_key(&id) {
            continue;
        }
        let name = format!("recovered-{id}");
        let record = PinRecord { name, is_whole: true, since_s: 0, roots: Vec::new() };
        pins.insert(id, record);
    }
    let are_twice = copies == 2 * pins.len() && rows.values().all(|(_, count)| *count == 2);
    if damaged == 0 && are_twice {
        return Ok(0);
    }
    PIN.retain(txn, |_, _| false)?;
    PINNED.retain(txn, |_, _| false)?;
    for (id, record) in &pins {
        for key in pin_keys(*id) {
            PIN.insert(txn, &key, &record.to_bytes())?;
        }
    }
    for ((id, path), (becomes, _)) in rows {
        PINNED.insert(txn, &by_path_key(path, id), &[origin_byte(becomes)])?;
        PINNED.insert(txn, &by_pin_key(id, path), &[])?;
    }
    Ok(damaged)
}
