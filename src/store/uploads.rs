//! Uploads: the names under which NARs came, kept as aliases, and those of them that wait for their
//! narinfo.

use redb::{ReadableTable, WriteTransaction};

use super::kept::{NEVER_GOES, set_use};
use super::keys::{AliasKey, SmallKey};
use super::records::Reader;
use super::session::Session;
use super::small::has_path;
use super::tables::{ALIAS, Fault, UNBOUND};
use super::writer::Writer;
use super::{Alias, Origin, lock};
use crate::nix::{Compression, NarHash, UploadName};

/// The byte that stands for a codec, in keys too.
const fn compression_byte(compression: Compression) -> u8 {
    match compression {
        Compression::None => 0,
        Compression::Xz => 1,
        Compression::Zstd => 2,
        Compression::Bzip2 => 3,
        Compression::Gzip => 4,
        Compression::Br => 5,
    }
}

/// The key of a name in `alias-1`.
pub(super) fn alias_key(name: UploadName) -> AliasKey {
    let mut out = [0; 33];
    if let Some((last, hash)) = out.split_last_mut() {
        *last = compression_byte(name.ending);
        hash.copy_from_slice(name.file_hash.as_bytes());
    }
    out
}

fn alias_to_bytes(alias: &Alias, last_use: u64) -> Vec<u8> {
    let mut out = last_use.to_be_bytes().to_vec();
    out.extend_from_slice(alias.nar_hash.as_bytes());
    out.extend_from_slice(&alias.nar_size.to_be_bytes());
    out.push(compression_byte(alias.compression));
    out.extend_from_slice(&alias.file_size.to_be_bytes());
    out.extend_from_slice(&alias.put_at_s.to_be_bytes());
    out.push(alias.bound.into());
    out
}

pub(super) fn alias_from_bytes(body: &[u8]) -> Result<Alias, Fault> {
    let mut reader = Reader::new(ALIAS, body);
    let _last_use = reader.u64()?;
    let (nar_hash, nar_size) = (NarHash::from_bytes(reader.array()?), reader.u64()?);
    let byte = reader.u8()?;
    let mut all = Compression::ALL.into_iter();
    let compression = all.find(|codec| compression_byte(*codec) == byte);
    let compression = compression.ok_or_else(|| reader.damaged())?;
    let (file_size, put_at_s, bound) = (reader.u64()?, reader.u64()?, reader.flag()?);
    reader.end()?;
    Ok(Alias { nar_hash, nar_size, compression, file_size, put_at_s, bound })
}

/// A row of `unbound-1`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unbound {
    nar_hash: NarHash,
    pub(super) key: AliasKey,
    put_at_s: u64,
    pub(super) file_size: u64,
}

impl Unbound {
    fn row_key(nar_hash: NarHash, key: &AliasKey) -> Vec<u8> {
        [nar_hash.as_bytes().as_slice(), key].concat()
    }

    pub(super) fn from_row(row_key: &[u8], body: &[u8]) -> Result<Self, Fault> {
        let mut key = Reader::new(UNBOUND, row_key);
        let mut body = Reader::new(UNBOUND, body);
        let nar_hash = NarHash::from_bytes(key.array()?);
        let unbound =
            Self { nar_hash, key: key.array()?, put_at_s: body.u64()?, file_size: body.u64()? };
        key.end()?;
        body.end()?;
        Ok(unbound)
    }

    fn insert(self, txn: &WriteTransaction) -> Result<(), Fault> {
        let body = [self.put_at_s.to_be_bytes(), self.file_size.to_be_bytes()].concat();
        UNBOUND.insert(txn, &Self::row_key(self.nar_hash, &self.key), &body)
    }

    /// Whether an upload of this NAR waits for its narinfo.
    pub(super) fn is_any_of(txn: &WriteTransaction, nar_hash: NarHash) -> Result<bool, Fault> {
        let table = UNBOUND.open_in(txn)?;
        let first = table.range::<&[u8]>(nar_hash.as_bytes().as_slice()..)?.next().transpose()?;
        Ok(first.is_some_and(|(key, _)| key.value().starts_with(nar_hash.as_bytes())))
    }
}

/// The alias of a name: memory is asked first, because one leaves it only after it is in the index.
pub(super) fn alias(session: &Session, key: &AliasKey) -> Result<Option<Alias>, Fault> {
    if let Some(alias) = lock(&session.overlay).aliases.get(key) {
        return Ok(Some(*alias));
    }
    let body = session.index.read(|txn| ALIAS.get(txn, key))?;
    body.map(|body| alias_from_bytes(&body)).transpose()
}

fn alias_in(txn: &WriteTransaction, key: &AliasKey) -> Result<Option<Alias>, Fault> {
    match ALIAS.get_in(txn, key) {
        Ok(body) => Ok(body.and_then(|body| alias_from_bytes(&body).ok())),
        Err(Fault::Damaged(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

impl Writer {
    /// An upload came: its name is an alias, its NAR is kept. Nothing, when the NAR is gone already:
    /// it has to come again.
    pub(super) fn upload_in(
        &mut self,
        txn: &WriteTransaction,
        key: AliasKey,
        alias: Alias,
    ) -> Result<(), Fault> {
        let Alias { nar_hash, put_at_s, file_size, .. } = alias;
        if self.held_in(txn, nar_hash)?.is_none() {
            lock(&self.session.kept).unbound.remove(&key);
            return Ok(());
        }
        let before = alias_in(txn, &key)?;
        // One that a narinfo names stays, should nobody send another narinfo.
        let bound = before.is_some_and(|before| before.bound && before.nar_hash == nar_hash);
        if let Some(before) = before.filter(|before| before.nar_hash != nar_hash) {
            UNBOUND.remove(txn, &Unbound::row_key(before.nar_hash, &key))?;
            self.settle(txn, before.nar_hash, Origin::Ours)?;
        }
        Unbound { nar_hash, key, put_at_s, file_size }.insert(txn)?;
        lock(&self.session.kept).unbound.insert(key, file_size);
        let body = alias_to_bytes(&Alias { bound, ..alias }, NEVER_GOES);
        self.small_in(txn, &SmallKey::Alias(key), Some((NEVER_GOES, body)))?;
        self.settle(txn, nar_hash, Origin::Ours)
    }

    /// A narinfo names an upload. One that is not known any more costs a client only its old URL.
    pub(super) fn bind_in(
        &mut self,
        txn: &WriteTransaction,
        key: AliasKey,
        nar_hash: NarHash,
    ) -> Result<(), Fault> {
        let alias = alias_in(txn, &key)?;
        let Some(alias) = alias.filter(|alias| alias.nar_hash == nar_hash) else { return Ok(()) };
        UNBOUND.remove(txn, &Unbound::row_key(nar_hash, &key))?;
        lock(&self.session.kept).unbound.remove(&key);
        let last_use = self.session.tick();
        let body = alias_to_bytes(&Alias { bound: true, ..alias }, last_use);
        self.small_in(txn, &SmallKey::Alias(key), Some((last_use, body)))
    }

    /// Uploads that came before and that nobody bound are forgotten. Says which NARs they were, and
    /// that no path has.
    pub(super) fn sweep_in(
        &mut self,
        txn: &WriteTransaction,
        before_s: u64,
    ) -> Result<(u64, Vec<NarHash>), Fault> {
        let old: Vec<(Vec<u8>, Option<Unbound>)> = {
            let table = UNBOUND.open_in(txn)?;
            let mut old = Vec::new();
            for entry in table.range::<&[u8]>(..)? {
                let (key, value) = entry?;
                let body = UNBOUND.unseal(key.value(), value.value());
                let unbound = body.and_then(|body| Unbound::from_row(key.value(), body)).ok();
                // A damaged row does not say when it came.
                if unbound.is_none_or(|unbound| unbound.put_at_s < before_s) {
                    old.push((key.value().to_vec(), unbound));
                }
            }
            old
        };
        let mut pathless = Vec::new();
        let mut count = 0;
        for (row_key, unbound) in old {
            UNBOUND.remove(txn, &row_key)?;
            let mut reader = Reader::new(UNBOUND, &row_key);
            let nar_hash = NarHash::from_bytes(reader.array()?);
            if let Some(Unbound { key, .. }) = unbound {
                lock(&self.session.kept).unbound.remove(&key);
                let small = SmallKey::Alias(key);
                if alias_in(txn, &key)?.is_some_and(|alias| alias.bound) {
                    self.session.sound(set_use(txn, &small, self.session.tick()))?;
                } else {
                    self.small_in(txn, &small, None)?;
                }
                count += 1;
            }
            self.settle(txn, nar_hash, Origin::Ours)?;
            if !has_path(txn, nar_hash)? && !self.keeps(txn, nar_hash)? {
                pathless.push(nar_hash);
            }
        }
        self.release_strays(txn)?;
        Ok((count, pathless))
    }
}
