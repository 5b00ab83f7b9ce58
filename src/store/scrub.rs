//! What the scrub needs of the disk: held NARs one after the other, how far it has come, and what was
//! withdrawn on the way. What is right, and when it looks, is not known here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redb::{ReadTransaction, WriteTransaction};

use super::command::Act;
use super::keys::id_of_key;
use super::layout::stream_takes;
use super::records::{NarRecord, Reader};
use super::session::{Entry, Session};
use super::shared::Shared;
use super::tables::{Fault, INDEX_TABLES, NAR, PUSH_TABLES, SCRUB};
use super::{Error, HeldNar, INDEX_WAIT, Store, lock, within};
use crate::nix::NarHash;

/// The key of the one row.
const MARK: &[u8] = b"mark";

/// Records looked at in one read transaction: most are held, so the first is mostly the one.
const RECORDS_A_LOOK: usize = 16;

/// Rows of the index that are checked in one read transaction: some milliseconds on a card.
const ROWS_A_CHECK: usize = 256;

/// NARs that were withdrawn and are remembered until somebody asks for them: a segment of small ones.
/// What is forgotten is fetched when a client asks for it.
const WITHDRAWN_MAX: usize = 16_384;

/// How often a NAR that may be going is looked at again before it is passed over.
const TRIES_MAX: usize = 8;

/// How far the scrub has come. Kept with the index, with whatever is written to it next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubMark {
    /// The NARs of this round below this id are checked.
    pub next_id: u64,
    /// Bytes that those take.
    pub checked_bytes: u64,
    /// Bytes of those that were checked before their time: the next one waits for it.
    pub ahead_bytes: u64,
    /// Whether somebody wants this round at once.
    pub asked: bool,
    /// When the last round ended, in seconds since 1970 by this machine's clock; 0: none has.
    pub done_at_s: u64,
    /// NARs that were found damaged, in all rounds.
    pub found: u64,
    /// Of what was withdrawn, NARs that were fetched again.
    pub repaired: u64,
}

impl ScrubMark {
    fn to_bytes(self) -> Vec<u8> {
        let Self { next_id, checked_bytes, ahead_bytes, asked, done_at_s, found, repaired } = self;
        let asked = u64::from(asked);
        let numbers = [next_id, checked_bytes, ahead_bytes, asked, done_at_s, found, repaired];
        numbers.into_iter().flat_map(u64::to_be_bytes).collect()
    }

    fn from_bytes(body: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(SCRUB, body);
        let mark = Self {
            next_id: reader.u64()?,
            checked_bytes: reader.u64()?,
            ahead_bytes: reader.u64()?,
            asked: reader.u64()? != 0,
            done_at_s: reader.u64()?,
            found: reader.u64()?,
            repaired: reader.u64()?,
        };
        reader.end()?;
        Ok(mark)
    }

    /// As the index has it. One that is damaged, or was never written, begins anew: nothing is lost
    /// but some reading.
    pub(super) fn load(txn: &ReadTransaction) -> Self {
        let body = SCRUB.get(txn, MARK).ok().flatten();
        body.and_then(|body| Self::from_bytes(&body).ok()).unwrap_or_default()
    }

    pub(super) fn write(self, txn: &WriteTransaction) -> Result<(), Fault> {
        SCRUB.insert(txn, MARK, &self.to_bytes())
    }
}

/// What a session knows of the scrub.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    marks: Mutex<Marks>,
    withdrawn: Mutex<VecDeque<NarHash>>,
}

#[derive(Debug, Default)]
struct Marks {
    now: ScrubMark,
    written: ScrubMark,
}

impl Scrub {
    /// What the index said when it was opened.
    pub(super) fn begin(&self, mark: ScrubMark) {
        *lock(&self.marks) = Marks { now: mark, written: mark };
    }

    /// What the next transaction of the index takes along.
    pub(super) fn unwritten(&self) -> Option<ScrubMark> {
        let marks = lock(&self.marks);
        (marks.now != marks.written).then_some(marks.now)
    }

    pub(super) fn is_written(&self, mark: Option<ScrubMark>) {
        if let Some(mark) = mark {
            lock(&self.marks).written = mark;
        }
    }

    /// These NARs were withdrawn because of what the disk gave for them.
    pub(super) fn was_withdrawn(&self, nars: impl IntoIterator<Item = NarHash>) {
        let mut withdrawn = lock(&self.withdrawn);
        withdrawn.extend(nars);
        let surplus = withdrawn.len().saturating_sub(WITHDRAWN_MAX);
        withdrawn.drain(..surplus);
    }
}

/// Where checking the rows of the index goes on.
#[derive(Debug, Clone)]
pub struct IndexPlace {
    table: usize,
    key: Vec<u8>,
}

impl Store {
    /// The held NAR that comes next from this id on, and its id. Neither this nor reading it counts as
    /// a use or keeps the store from its rest.
    pub async fn next_nar(&self, from_id: u64) -> Result<Option<(u64, HeldNar)>, Error> {
        let session = self.shared.session()?;
        let shared = self.shared.clone();
        let next = self
            .shared
            .on_index_unseen(&session, move |session| next_nar(&shared, session, from_id));
        within(INDEX_WAIT, next).await
    }

    /// Checks some rows of the index, from its start or where it left off; damaged ones are mended
    /// behind. `None`: that was the end.
    pub async fn check_index(&self, from: Option<IndexPlace>) -> Result<Option<IndexPlace>, Error> {
        let session = self.shared.session()?;
        let check = self.shared.on_index_unseen(&session, move |session| check_rows(session, from));
        within(INDEX_WAIT, check).await
    }

    /// Withdraws a NAR whose rows are as they were written and are not the NAR. Whoever reads it is
    /// cut.
    pub async fn withdraw_wrong(&self, nar: &HeldNar) -> Result<(), Error> {
        let session = self.shared.session()?;
        let (id, nar_hash) = (nar.id(), nar.nar_hash());
        self.shared.ask(&session, |reply| Act::Wrong { id, nar_hash, reply }).await
    }

    /// Whether a NAR that could not be read is withdrawn, or can be read after all.
    pub async fn is_withdrawn(&self, nar: &HeldNar) -> Result<bool, Error> {
        let session = self.shared.session()?;
        let id = nar.id();
        self.shared.ask(&session, |reply| Act::IsGone { id, reply }).await
    }

    /// Takes what was withdrawn because of its bytes since this was asked last, at most `count_max`.
    pub fn take_withdrawn(&self, count_max: usize) -> Vec<NarHash> {
        let Ok(session) = self.shared.session() else { return Vec::new() };
        let mut withdrawn = lock(&session.scrub.withdrawn);
        let count = withdrawn.len().min(count_max);
        withdrawn.drain(..count).collect()
    }

    /// How far the scrub has come; `None` while the store is not open.
    pub fn scrub_mark(&self) -> Option<ScrubMark> {
        let session = self.shared.session().ok()?;
        Some(lock(&session.scrub.marks).now)
    }

    /// Changes that. Written with what is written to the index next, and when the store is closed.
    pub fn change_scrub_mark(&self, change: impl FnOnce(&mut ScrubMark)) {
        if let Ok(session) = self.shared.session() {
            change(&mut lock(&session.scrub.marks).now);
        }
    }

    /// For how long no client has read or written; nothing while the store is not open.
    pub fn quiet_for(&self) -> Duration {
        match self.shared.session() {
            Ok(session) if lock(&session.fills).is_empty() => session.unread_for(),
            Ok(_) | Err(_) => Duration::ZERO,
        }
    }
}

impl HeldNar {
    /// Bytes that its rows take on the disk, as the budget counts them.
    pub fn takes_bytes(&self) -> u64 {
        stream_takes(self.file_size())
    }
}

fn next_nar(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    from_id: u64,
) -> Result<Option<(u64, HeldNar)>, Fault> {
    let (mut from, mut tries) = (from_id, 0);
    'look: loop {
        let forgotten = lock(&session.pins).forgotten();
        let start = from.to_be_bytes();
        let rows =
            session.index.read(|txn| NAR.scan_sound(txn, &start, RECORDS_A_LOOK, |_| true))?;
        let rows = session.sound_scan(NAR, rows);
        if rows.is_empty() {
            return Ok(None);
        }
        for (key, body) in rows {
            let Some(id) = id_of_key(&key) else { continue };
            from = id + 1;
            let record = NarRecord::from_bytes(NAR, &body).map(Some);
            let Some(record) = session.sound(record)?.filter(|record| !record.doomed) else {
                continue;
            };
            let entry = Arc::new(Entry { id, record, since: session.opened, listing: None });
            let Some(held) = HeldNar::checked(shared, session, entry) else { continue };
            if lock(&session.pins).forgotten() == forgotten {
                return Ok(Some((id, held)));
            }
            // Something was removed since the records were read: maybe this one.
            if tries < TRIES_MAX {
                (from, tries) = (id, tries + 1);
                continue 'look;
            }
        }
    }
}

fn check_rows(session: &Session, from: Option<IndexPlace>) -> Result<Option<IndexPlace>, Fault> {
    let IndexPlace { table, key } = from.unwrap_or(IndexPlace { table: 0, key: Vec::new() });
    let all = INDEX_TABLES.into_iter().chain(PUSH_TABLES);
    let Some(checked) = all.clone().nth(table) else { return Ok(None) };
    let rows = session.index.read(|txn| checked.scan_sound(txn, &key, ROWS_A_CHECK, |_| true))?;
    let rows = session.sound_scan(checked, rows);
    let next = match rows.last() {
        Some((last, _)) if rows.len() >= ROWS_A_CHECK => {
            // The least key above it.
            let mut key = last.clone();
            key.push(0);
            IndexPlace { table, key }
        }
        Some(_) | None => IndexPlace { table: table + 1, key: Vec::new() },
    };
    Ok((next.table < all.count()).then_some(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back() {
        let mark = ScrubMark {
            next_id: 1,
            checked_bytes: 2,
            ahead_bytes: 3,
            asked: true,
            done_at_s: 4,
            found: 5,
            repaired: 6,
        };
        assert_eq!(ScrubMark::from_bytes(&mark.to_bytes()).unwrap(), mark);
        assert!(ScrubMark::from_bytes(&[0; 55]).is_err());
    }

    #[test]
    fn of_what_was_withdrawn_the_latest_is_remembered() {
        let scrub = Scrub::default();
        let nar = |n: usize| NarHash::from_bytes([u8::try_from(n % 251).unwrap(); 32]);
        scrub.was_withdrawn((0..WITHDRAWN_MAX + 3).map(nar));
        assert_eq!(lock(&scrub.withdrawn).len(), WITHDRAWN_MAX);
        assert_eq!(lock(&scrub.withdrawn).front(), Some(&nar(3)));
    }
}
