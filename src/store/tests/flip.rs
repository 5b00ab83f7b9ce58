//! Flips a bit in a row of a closed index, where redb has it in the file.

use redb::{Database, ReadableDatabase, ReadableTable};

use super::kit::House;
use crate::store::backend::{Metered, Meters};
use crate::store::disk::memory::Memory;
use crate::store::disk::{Disk, Mode};
use crate::store::tables::Table;

/// A closed index, opened past the store.
pub(super) fn database(house: &House, memory: &Memory) -> Database {
    let file = memory.open("index.redb", Mode::Write).unwrap();
    let meters = Meters::new(house.metrics.clone());
    Database::builder().create_with_backend(Metered { file, meters }).unwrap()
}

/// What is flipped of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Key,
    Value,
}

/// Where redb has a row: the ranges of its key and its value in the file.
fn find(bytes: &[u8], value: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for at in 0..bytes.len() - value.len() {
        if bytes[at..].starts_with(value) {
            found.extend(key_of_value(bytes, at, value.len()).map(|key| (key, at)));
        }
    }
    found
}

/// A leaf begins with 1, 0 and the number of pairs; then ends of keys, ends of values, keys, values.
fn key_of_value(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    let number = |at: usize| -> Option<usize> {
        let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    (0..64).filter_map(|back| (at / 4096).checked_sub(back)).find_map(|page| {
        let page = page * 4096;
        let pairs = usize::from(u16::from_le_bytes(bytes[page + 2..page + 4].try_into().unwrap()));
        if bytes[page] != 1 || pairs == 0 || pairs > 400 {
            return None;
        }
        (0..pairs).find_map(|pair| {
            let (key_ends, value_ends) = (page + 4, page + 4 + 4 * pairs);
            let end = number(value_ends + 4 * pair)?;
            if page + end != at + len {
                return None;
            }
            let first_key = 4 + 8 * pairs;
            let before = |pair: usize| number(key_ends + 4 * pair);
            Some(page + if pair == 0 { first_key } else { before(pair - 1)? })
        })
    })
}

/// A bit of one row of a table flips. Says which row.
pub(super) fn flip(house: &House, memory: &Memory, table: Table, row: usize, of: Of) -> Vec<u8> {
    let database = database(house, memory);
    let (key, value) = {
        let txn = database.begin_read().unwrap();
        let rows = table.open_for_read(&txn).unwrap();
        let count = rows.iter().unwrap().count();
        let (key, value) = rows.iter().unwrap().nth(row % count).unwrap().unwrap();
        (key.value().to_vec(), value.value().to_vec())
    };
    drop(database);
    let file = memory.open("index.redb", Mode::Write).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len_bytes().unwrap()).unwrap()];
    file.read(0, &mut bytes).unwrap();
    let found = find(&bytes, &value);
    assert!(!found.is_empty(), "a row of {} is not found", table.name());
    for (key_at, value_at) in found {
        assert_eq!(&bytes[key_at..key_at + key.len()], key);
        let at = match of {
            Of::Key => key_at + row % key.len(),
            Of::Value => value_at + row % value.len(),
        };
        file.write(u64::try_from(at).unwrap(), &[bytes[at] ^ (1 << (row % 8))]).unwrap();
    }
    key
}
