//! Keys: what they stand for to bytes whose order is its order, and back.

use super::Origin;
use super::records::{Reader, origin_byte};
use super::tables::{Fault, Table};
use crate::nix::{NarHash, StorePathHash};

/// The key of `paths-1`.
pub(super) fn path_key(nar_hash: NarHash, key: StorePathHash) -> [u8; 52] {
    let mut out = [0; 52];
    if let Some((hash, rest)) = out.split_first_chunk_mut::<32>() {
        *hash = *nar_hash.as_bytes();
        rest.copy_from_slice(key.as_bytes());
    }
    out
}

/// The store path hash in a key of `paths-1`.
pub(super) fn key_of_path(path_key: &[u8]) -> Option<StorePathHash> {
    path_key.last_chunk::<20>().map(|key| StorePathHash::from_bytes(*key))
}

/// The key of `nar-use-1`.
pub(super) fn nar_use_key(origin: Origin, last_use: u64, id: u64) -> [u8; 17] {
    let mut out = [0; 17];
    if let Some((first, rest)) = out.split_first_mut() {
        *first = origin_byte(origin);
        let numbers = last_use.to_be_bytes().into_iter().chain(id.to_be_bytes());
        for (to, from) in rest.iter_mut().zip(numbers) {
            *to = from;
        }
    }
    out
}

/// The number that ends a key: the id in keys of `nar-use-1`, `nar-1`, `doomed-1`.
pub(super) fn id_of_key(key: &[u8]) -> Option<u64> {
    key.last_chunk::<8>().map(|id| u64::from_be_bytes(*id))
}

/// The key of a row.
pub(super) fn row_key(id: u64, row: u32) -> [u8; 12] {
    let mut out = [0; 12];
    for (to, from) in out.iter_mut().zip(id.to_be_bytes().into_iter().chain(row.to_be_bytes())) {
        *to = from;
    }
    out
}

/// The NAR id in a row's key.
pub(super) fn id_of_row(key: &[u8]) -> Option<u64> {
    key.first_chunk::<8>().map(|id| u64::from_be_bytes(*id))
}

/// What lies in `small-use-1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum SmallKey {
    Narinfo(StorePathHash),
    Document(String),
    Alias(AliasKey),
}

/// The key of `alias-1`: SHA-256 of the uploader's file, and the byte of its name's ending.
pub(super) type AliasKey = [u8; 33];

impl SmallKey {
    /// What a row of `narinfo-1`, `document-1` or `alias-1` is called.
    pub(super) fn of(table: Table, key: &[u8]) -> Option<Self> {
        if table == super::tables::NARINFO {
            return key.try_into().ok().map(|key| Self::Narinfo(StorePathHash::from_bytes(key)));
        }
        if table == super::tables::ALIAS {
            return key.try_into().ok().map(Self::Alias);
        }
        String::from_utf8(key.to_vec()).ok().map(Self::Document)
    }

    pub(super) fn table(&self) -> Table {
        match self {
            Self::Narinfo(_) => super::tables::NARINFO,
            Self::Document(_) => super::tables::DOCUMENT,
            Self::Alias(_) => super::tables::ALIAS,
        }
    }

    pub(super) fn key(&self) -> &[u8] {
        match self {
            Self::Narinfo(key) => key.as_bytes(),
            Self::Document(name) => name.as_bytes(),
            Self::Alias(key) => key,
        }
    }

    pub(super) fn use_key(&self, last_use: u64) -> Vec<u8> {
        let mut out = last_use.to_be_bytes().to_vec();
        out.push(match self {
            Self::Narinfo(_) => 0,
            Self::Document(_) => 1,
            Self::Alias(_) => 2,
        });
        out.extend_from_slice(self.key());
        out
    }

    pub(super) fn from_use_key(table: Table, use_key: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(table, use_key);
        let (_, kind) = (reader.u64()?, reader.u8()?);
        match kind {
            0 => Ok(Self::Narinfo(StorePathHash::from_bytes(reader.array()?))),
            1 => String::from_utf8(reader.rest.to_vec())
                .map(Self::Document)
                .map_err(|_| reader.damaged()),
            2 => Ok(Self::Alias(reader.array()?)),
            _ => Err(reader.damaged()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tables::SMALL_USE;

    #[test]
    fn keys_order_as_what_they_stand_for() {
        let key = |origin, last_use, id| nar_use_key(origin, last_use, id);
        assert!(key(Origin::Upstream, 900, 1) < key(Origin::Ours, 1, 1));
        assert!(key(Origin::Ours, u64::MAX, u64::MAX) < key(Origin::Kept, 0, 0));
        assert!(key(Origin::Upstream, 255, 9) < key(Origin::Upstream, 256, 1));
        assert!(row_key(1, 255) < row_key(1, 256));
        assert_eq!(id_of_key(&key(Origin::Ours, 1, 77)), Some(77));
        assert_eq!(id_of_row(&row_key(12, 3)), Some(12));
        for small in [
            SmallKey::Narinfo(StorePathHash::from_bytes([9; 20])),
            SmallKey::Document("log/x.drv".to_owned()),
            SmallKey::Alias([7; 33]),
        ] {
            let found = SmallKey::from_use_key(SMALL_USE, &small.use_key(8)).unwrap();
            assert_eq!(found, small);
        }
    }
}
