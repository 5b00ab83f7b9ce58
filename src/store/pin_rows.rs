//! What is pinned: rows by pin and by path, and what they come to in memory.
//!
//! A pin has a number, which its rows have in their keys. Pinning a name again makes another number
//! beside the one that holds; one transaction lets the new one hold and forgets the old one, whose
//! rows, which count no more from then on, go in slices ([`pin_care`](super::pin_care)).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use super::records::{NarRecord, Reader, origin_byte};
use super::removal::takes_of;
use super::tables::{Fault, PATHS, PIN, PINNED};
use super::writer::Writer;
use super::{Origin, lock};
use crate::nix::{NarHash, StorePath, StorePathHash};

use super::keys::{key_of_path, path_key};

/// What is kept of a pin beside its paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PinRecord {
    pub(super) name: String,
    /// It holds under its name. Before that its paths are being fetched.
    pub(super) is_whole: bool,
    /// When it was given, in seconds since 1970.
    pub(super) since_s: u64,
    /// What was asked to be pinned; its closure is.
    pub(super) roots: Vec<StorePath>,
}

impl PinRecord {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.is_whole)];
        out.extend_from_slice(&self.since_s.to_be_bytes());
        let roots = self.roots.iter().map(StorePath::base_name);
        for text in std::iter::once(self.name.as_str()).chain(roots) {
            // Both are bounded far below: a name by the door, a base name by what a path is.
            let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
            out.push(len);
            out.extend(text.bytes().take(len.into()));
        }
        out
    }

    pub(super) fn from_bytes(body: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(PIN, body);
        let (is_whole, since_s) = (reader.flag()?, reader.u64()?);
        let mut text = || -> Result<Option<String>, Fault> {
            if reader.rest.is_empty() {
                return Ok(None);
            }
            let len = reader.u8()?;
            let bytes = reader.bytes(len.into())?.to_vec();
            String::from_utf8(bytes).map(Some).map_err(|_| reader.damaged())
        };
        let name = text()?.ok_or(Fault::Damaged(PIN.name()))?;
        let mut roots = Vec::new();
        while let Some(root) = text()? {
            let root = StorePath::parse(&root).map_err(|_| Fault::Damaged(PIN.name()))?;
            roots.push(root);
        }
        Ok(Self { name, is_whole, since_s, roots })
    }

    /// All of a pin but its roots, which may be many.
    fn head(&self) -> Head {
        Head { name: self.name.clone(), is_whole: self.is_whole }
    }
}

/// The keys of a pin in `pin-1`, which has each twice: without its record nobody knew what its rows
/// hold.
pub(super) fn pin_keys(id: u32) -> [Vec<u8>; 2] {
    [0, 1].map(|copy: u8| [[copy].as_slice(), &id.to_be_bytes()].concat())
}

/// The pin of a key in `pin-1`.
pub(super) fn pin_of(key: &[u8]) -> Option<u32> {
    key.last_chunk().filter(|_| key.len() == 5).map(|id| u32::from_be_bytes(*id))
}

/// Where rows of a path begin in `pinned-1`.
pub(super) fn by_path(path: StorePathHash) -> Vec<u8> {
    [[0].as_slice(), path.as_bytes()].concat()
}

/// The row of a path in a pin.
pub(super) fn by_path_key(path: StorePathHash, id: u32) -> Vec<u8> {
    [by_path(path).as_slice(), &id.to_be_bytes()].concat()
}

/// Where rows of a pin begin in `pinned-1`.
pub(super) fn by_pin(id: u32) -> Vec<u8> {
    [[1].as_slice(), &id.to_be_bytes()].concat()
}

pub(super) fn by_pin_key(id: u32, path: StorePathHash) -> Vec<u8> {
    [by_pin(id).as_slice(), path.as_bytes()].concat()
}

/// Path and pin of a key in `pinned-1`, whichever of the two it is.
pub(super) fn pinned_of(key: &[u8]) -> Option<(StorePathHash, u32)> {
    let (kind, rest) = key.split_first()?;
    match kind {
        0 => {
            let (path, id) = rest.split_first_chunk::<20>()?;
            Some((StorePathHash::from_bytes(*path), u32::from_be_bytes(id.try_into().ok()?)))
        }
        1 => {
            let (id, path) = rest.split_first_chunk::<4>()?;
            Some((StorePathHash::from_bytes(path.try_into().ok()?), u32::from_be_bytes(*id)))
        }
        _ => None,
    }
}

/// A pin as it is known in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) name: String,
    pub(super) is_whole: bool,
}

/// What is pinned, in figures.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    pub(super) alive: BTreeMap<u32, Head>,
    /// Forgotten pins, whose rows go in the background.
    pub(super) going: BTreeSet<u32>,
    /// Ids of pinned NARs, and whether they are kept for something else as well.
    nars: HashMap<u64, bool>,
    /// Bytes that those take.
    pub(super) bytes: u64,
    /// Bytes of those that nothing else keeps.
    pub(super) only_bytes: u64,
    /// Not all rows have been looked at since the store was opened.
    pub(super) is_counting: bool,
    /// A row is damaged.
    pub(super) is_damaged: bool,
}

impl Pinned {
    /// Which pins there are. What they hold is counted behind.
    pub(super) fn load(txn: &ReadTransaction) -> Result<Self, Fault> {
        let mut pinned = Self::default();
        let (rows, damaged) = PIN.scan_sound(txn, &[], usize::MAX, |_| true)?;
        pinned.is_damaged |= damaged;
        let mut copies = 0;
        for (key, body) in rows {
            match (pin_of(&key), PinRecord::from_bytes(&body)) {
                (Some(id), Ok(record)) => {
                    copies += 1;
                    pinned.alive.insert(id, record.head());
                }
                (_, _) => pinned.is_damaged = true,
            }
        }
        pinned.is_damaged |= copies != 2 * pinned.alive.len();
        let mut from = by_pin(0);
        loop {
            let (row, damaged) = PINNED.scan_sound(txn, &from, 1, |_| true)?;
            pinned.is_damaged |= damaged;
            let Some((key, _)) = row.into_iter().next() else { break };
            let Some((_, id)) = pinned_of(&key) else {
                pinned.is_damaged = true;
                break;
            };
            if !pinned.alive.contains_key(&id) {
                pinned.going.insert(id);
            }
            let Some(next) = id.checked_add(1) else { break };
            from = by_pin(next);
        }
        pinned.is_counting = !pinned.alive.is_empty();
        Ok(pinned)
    }

    /// Nothing is pinned, and nothing was that is still to be let go.
    pub(super) fn is_nothing(&self) -> bool {
        self.alive.is_empty() && self.going.is_empty()
    }

    /// A number that no row has.
    pub(super) fn next_id(&self) -> u32 {
        let last = |ids: Option<&u32>| ids.map_or(0, |id| id.saturating_add(1));
        last(self.alive.keys().next_back()).max(last(self.going.iter().next_back()))
    }

    pub(super) fn ids_of(&self, name: &str) -> Vec<u32> {
        self.alive.iter().filter(|(_, head)| head.name == name).map(|(id, _)| *id).collect()
    }

    /// Whether a NAR is known to be pinned.
    pub(super) fn has_nar(&self, id: u64) -> bool {
        self.nars.contains_key(&id)
    }

    /// A NAR is pinned, kept for something else as well, both or neither.
    pub(super) fn count(&mut self, id: u64, takes: u64, (pinned, waits): (bool, bool)) {
        let before = self.nars.get(&id).copied();
        if before.is_some() {
            self.bytes = self.bytes.saturating_sub(takes);
        }
        if before == Some(false) {
            self.only_bytes = self.only_bytes.saturating_sub(takes);
        }
        if !pinned {
            self.nars.remove(&id);
            return;
        }
        self.nars.insert(id, waits);
        self.bytes += takes;
        self.only_bytes += if waits { 0 } else { takes };
    }
}

impl Writer {
    /// Whether a pin has this path.
    pub(super) fn is_pinned(
        &self,
        txn: &WriteTransaction,
        path: StorePathHash,
    ) -> Result<bool, Fault> {
        Ok(!self.pins_of(txn, path)?.is_empty())
    }

    /// The pins that have this path, and what each says that its NAR becomes without.
    pub(super) fn pins_of(
        &self,
        txn: &WriteTransaction,
        path: StorePathHash,
    ) -> Result<Vec<(u32, Origin)>, Fault> {
        let nobody = lock(&self.session.kept).pinned.alive.is_empty();
        if nobody {
            return Ok(Vec::new());
        }
        let prefix = by_path(path);
        let mut found = Vec::new();
        for entry in PINNED.open_in(txn)?.range::<&[u8]>(prefix.as_slice()..)? {
            let (key, value) = entry?;
            if !key.value().starts_with(&prefix) {
                break;
            }
            // A damaged row says by its key that it is pinned.
            let body = PINNED.unseal(key.value(), value.value()).map(<[u8]>::to_vec);
            let becomes = self.session.sound(body.map(Some))?.map_or(Origin::Ours, |body| {
                if body == [origin_byte(Origin::Upstream)] {
                    Origin::Upstream
                } else {
                    Origin::Ours
                }
            });
            found.extend(pinned_of(key.value()).map(|(_, id)| (id, becomes)));
        }
        let kept = lock(&self.session.kept);
        found.retain(|(id, _)| kept.pinned.alive.contains_key(id));
        Ok(found)
    }

    /// The pinned paths of a NAR.
    pub(super) fn pinned_paths(
        &self,
        txn: &WriteTransaction,
        nar_hash: NarHash,
    ) -> Result<Vec<StorePathHash>, Fault> {
        let nobody = lock(&self.session.kept).pinned.alive.is_empty();
        if nobody {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for path in paths_in(txn, nar_hash)? {
            if self.is_pinned(txn, path)? {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// What the NAR of pinned paths becomes when nothing keeps it any more.
    pub(super) fn note_becomes(
        &self,
        txn: &WriteTransaction,
        paths: &[StorePathHash],
        becomes: Origin,
    ) -> Result<(), Fault> {
        for path in paths {
            for (id, before) in self.pins_of(txn, *path)? {
                if before != becomes {
                    PINNED.insert(txn, &by_path_key(*path, id), &[origin_byte(becomes)])?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn count_pinned(&self, id: u64, record: &NarRecord, state: (bool, bool)) {
        let takes = takes_of(&record.parts, record.file_size).values().sum();
        let mut kept = lock(&self.session.kept);
        kept.pinned.count(id, takes, state);
        let bytes = i64::try_from(kept.pinned.bytes).unwrap_or(i64::MAX);
        self.shared.metrics.pinned_bytes.set(bytes);
    }
}

/// The paths of a NAR as a write transaction sees them.
fn paths_in(txn: &WriteTransaction, nar_hash: NarHash) -> Result<Vec<StorePathHash>, Fault> {
    let from = path_key(nar_hash, StorePathHash::from_bytes([0; 20]));
    let mut found = Vec::new();
    for entry in PATHS.open_in(txn)?.range::<&[u8]>(from.as_slice()..)? {
        let (key, _) = entry?;
        if !key.value().starts_with(nar_hash.as_bytes()) {
            break;
        }
        found.extend(key_of_path(key.value()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_a_torn_one_does_not() {
        let root = "9d82wl65gr2phigksgzzimbdf176rx4c-wire-a-1.0";
        for roots in [Vec::new(), vec![StorePath::parse(root).unwrap(); 3]] {
            let record = PinRecord { name: "desktop".into(), is_whole: true, since_s: 7, roots };
            let bytes = record.to_bytes();
            assert_eq!(PinRecord::from_bytes(&bytes).unwrap(), record);
            assert!(PinRecord::from_bytes(&bytes[..bytes.len() - 1]).is_err());
        }
    }

    #[test]
    fn both_keys_of_a_row_say_the_same() {
        let path = StorePathHash::from_bytes([7; 20]);
        assert_eq!(pinned_of(&by_path_key(path, 9)), Some((path, 9)));
        assert_eq!(pinned_of(&by_pin_key(9, path)), Some((path, 9)));
        assert_eq!(pinned_of(&by_pin_key(9, path)[..20]), None);
        assert_eq!(pinned_of(&[]), None);
    }

    #[test]
    fn a_nar_counts_once_whoever_pins_it() {
        let mut pinned = Pinned::default();
        pinned.count(1, 100, (true, false));
        pinned.count(1, 100, (true, false));
        assert_eq!((pinned.bytes, pinned.only_bytes), (100, 100));
        pinned.count(1, 100, (true, true));
        assert_eq!((pinned.bytes, pinned.only_bytes), (100, 0));
        pinned.count(1, 100, (false, true));
        assert_eq!((pinned.bytes, pinned.only_bytes), (0, 0));
        pinned.count(1, 100, (false, false));
        assert_eq!((pinned.bytes, pinned.only_bytes), (0, 0));
    }
}
