//! What the writer does about pins: they are begun, added to, made to hold and forgotten; those that
//! are forgotten let their paths go in slices; what is pinned is counted after each opening.

use redb::{ReadTransaction, WriteTransaction};

use super::command::Reply;
use super::evict::held_in;
use super::kept::{NEVER_GOES, nar_of, set_use};
use super::keys::SmallKey;
use super::pin_rows::{Head, PinRecord, by_path_key, by_pin, by_pin_key, pin_keys, pinned_of};
use super::records::{Small, origin_byte};
use super::session::Session;
use super::small::narinfo_row;
use super::tables::{Fault, PIN, PINNED};
use super::writer::{Durable, Writer};
use super::{Error, Origin, lock};
use crate::nix::StorePathHash;

/// Paths of a pin that are looked at in one transaction: the writer has others to serve.
const PATHS_A_SLICE: usize = 256;

/// What is to be done about a pin. All of it is durable when it is answered.
pub(super) enum PinOp {
    /// A pin begins; an earlier one of this name that never held is forgotten.
    Begin { record: PinRecord, reply: Reply<u32> },
    /// Paths are pinned. False: the pin is forgotten.
    Add { id: u32, paths: Vec<StorePathHash>, reply: Reply<bool> },
    /// It holds from now on, and what had its name does not. False: it is forgotten.
    Hold { id: u32, reply: Reply<bool> },
    /// One that was begun is forgotten. False: it is already.
    Drop { id: u32, reply: Reply<bool> },
    /// All of a name is forgotten. False: there is none.
    Unpin { name: String, reply: Reply<bool> },
}

/// What its caller is told.
pub(super) enum PinSaid {
    Begun(Reply<u32>, u32),
    Done(Reply<bool>, bool),
}

impl PinOp {
    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::Begin { reply, .. } => drop(reply.send(Err(error))),
            Self::Add { reply, .. }
            | Self::Hold { reply, .. }
            | Self::Drop { reply, .. }
            | Self::Unpin { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

impl PinSaid {
    pub(super) fn tell(self) {
        match self {
            Self::Begun(reply, id) => drop(reply.send(Ok(id))),
            Self::Done(reply, done) => drop(reply.send(Ok(done))),
        }
    }
}

impl Writer {
    pub(super) fn pin_in(&mut self, txn: &WriteTransaction, op: PinOp) -> Result<PinSaid, Fault> {
        match op {
            PinOp::Begin { record, reply } => {
                let id = self.begin_pin_in(txn, &record)?;
                Ok(PinSaid::Begun(reply, id))
            }
            PinOp::Add { id, paths, reply } => {
                let alive = self.has_pin(id);
                for path in paths.into_iter().filter(|_| alive) {
                    self.pin_path_in(txn, id, path)?;
                }
                Ok(PinSaid::Done(reply, alive))
            }
            PinOp::Hold { id, reply } => {
                let held = self.hold_in(txn, id)?;
                Ok(PinSaid::Done(reply, held))
            }
            PinOp::Drop { id, reply } => {
                let alive = self.has_pin(id);
                if alive {
                    self.forget_pins_in(txn, &[id])?;
                }
                Ok(PinSaid::Done(reply, alive))
            }
            PinOp::Unpin { name, reply } => {
                let ids = lock(&self.session.kept).pinned.ids_of(&name);
                self.forget_pins_in(txn, &ids)?;
                Ok(PinSaid::Done(reply, !ids.is_empty()))
            }
        }
    }

    fn has_pin(&self, id: u32) -> bool {
        lock(&self.session.kept).pinned.alive.contains_key(&id)
    }

    fn begin_pin_in(&mut self, txn: &WriteTransaction, record: &PinRecord) -> Result<u32, Fault> {
        let (id, unfinished) = {
            let kept = lock(&self.session.kept);
            let coming = |id: &u32| kept.pinned.alive.get(id).is_some_and(|head| !head.is_whole);
            let unfinished = kept.pinned.ids_of(&record.name).into_iter().filter(coming);
            (kept.pinned.next_id(), unfinished.collect::<Vec<_>>())
        };
        self.forget_pins_in(txn, &unfinished)?;
        self.write_pin(txn, id, record)?;
        Ok(id)
    }

    fn write_pin(&self, txn: &WriteTransaction, id: u32, record: &PinRecord) -> Result<(), Fault> {
        for key in pin_keys(id) {
            PIN.insert(txn, &key, &record.to_bytes())?;
        }
        let head = Head { name: record.name.clone(), is_whole: record.is_whole };
        lock(&self.session.kept).pinned.alive.insert(id, head);
        Ok(())
    }

    fn pin_path_in(
        &mut self,
        txn: &WriteTransaction,
        id: u32,
        path: StorePathHash,
    ) -> Result<(), Fault> {
        // Of a NAR that another pin keeps, that one knows what it becomes.
        let others = self.pins_of(txn, path)?;
        let theirs = others.iter().any(|(_, becomes)| *becomes == Origin::Upstream);
        let becomes = if theirs { Origin::Upstream } else { Origin::Ours };
        PINNED.insert(txn, &by_path_key(path, id), &[origin_byte(becomes)])?;
        PINNED.insert(txn, &by_pin_key(id, path), &[])?;
        self.settle_path(txn, path, Origin::Ours)
    }

    /// Puts a path's NAR and narinfo where they belong after its pins have changed.
    fn settle_path(
        &mut self,
        txn: &WriteTransaction,
        path: StorePathHash,
        no_longer: Origin,
    ) -> Result<(), Fault> {
        if let Some(nar_hash) = nar_of(txn, path)? {
            self.settle(txn, nar_hash, no_longer)?;
        }
        let key = SmallKey::Narinfo(path);
        let last_use = self.use_now(txn, &key)?;
        self.session.sound(set_use(txn, &key, last_use))
    }

    fn hold_in(&mut self, txn: &WriteTransaction, id: u32) -> Result<bool, Fault> {
        let record = self.pin_record(txn, id)?;
        let Some(record) = record.filter(|_| self.has_pin(id)) else { return Ok(false) };
        let mut others = lock(&self.session.kept).pinned.ids_of(&record.name);
        others.retain(|other| *other != id);
        self.write_pin(txn, id, &PinRecord { is_whole: true, ..record })?;
        self.forget_pins_in(txn, &others)?;
        Ok(true)
    }

    /// Either copy of a pin's record will do.
    fn pin_record(&self, txn: &WriteTransaction, id: u32) -> Result<Option<PinRecord>, Fault> {
        for key in pin_keys(id) {
            let record = PIN.get_in(txn, &key);
            let record = record.and_then(|it| it.map(|it| PinRecord::from_bytes(&it)).transpose());
            if let Some(record) = self.session.sound(record)? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// They hold nothing from now on; what they held goes in the background.
    fn forget_pins_in(&self, txn: &WriteTransaction, ids: &[u32]) -> Result<(), Fault> {
        for id in ids {
            for key in pin_keys(*id) {
                PIN.remove(txn, &key)?;
            }
            let mut kept = lock(&self.session.kept);
            kept.pinned.alive.remove(id);
            kept.pinned.going.insert(*id);
        }
        Ok(())
    }

    /// Whether pins have something for the background.
    pub(super) fn has_pin_work(&self) -> bool {
        let kept = lock(&self.session.kept);
        kept.pinned.is_counting || !kept.pinned.going.is_empty()
    }

    /// One slice of it.
    pub(super) fn pin_slice(&mut self) -> Result<(), Fault> {
        if lock(&self.session.kept).pinned.is_counting {
            return self.count_slice();
        }
        let Some(id) = lock(&self.session.kept).pinned.going.first().copied() else {
            return Ok(());
        };
        let rows = self.session.index.read(|txn| paths_of_pin(txn, id, &by_pin(id)))?;
        let (paths, damaged) = rows;
        if paths.is_empty() && damaged {
            // What cannot be read cannot be let go by name: mending removes it.
            self.session.sound::<()>(Err(Fault::Damaged(PINNED.name())))?;
        }
        self.commit_index(Durable::No, |writer, txn| {
            for path in &paths {
                writer.let_go_in(txn, id, *path)?;
            }
            if paths.is_empty() {
                lock(&writer.session.kept).pinned.going.remove(&id);
                writer.release_strays(txn)?;
            }
            Ok(())
        })
    }

    /// A path is not of this pin any more, which is forgotten.
    fn let_go_in(
        &mut self,
        txn: &WriteTransaction,
        id: u32,
        path: StorePathHash,
    ) -> Result<(), Fault> {
        let body = PINNED.get_in(txn, &by_path_key(path, id));
        let body = self.session.sound(body)?;
        let theirs = body.is_some_and(|body| body == [origin_byte(Origin::Upstream)]);
        PINNED.remove(txn, &by_path_key(path, id))?;
        PINNED.remove(txn, &by_pin_key(id, path))?;
        self.settle_path(txn, path, if theirs { Origin::Upstream } else { Origin::Ours })
    }

    /// All of what is pinned is known from now on: whoever asks for more room is told the truth.
    pub(super) fn count_pins(&mut self) -> Result<(), Fault> {
        while lock(&self.session.kept).pinned.is_counting {
            self.count_slice()?;
        }
        Ok(())
    }

    /// Counts some rows, and puts right what an older snowberry, which does not know pins, changed.
    fn count_slice(&mut self) -> Result<(), Fault> {
        let from = self.pins_counted.take().unwrap_or_else(|| vec![0]);
        let session = self.session.clone();
        let is_calm = lock(&session.kept).has_nothing_waiting();
        let (rows, damaged) = session.index.read(|txn| {
            PINNED.scan_sound(txn, &from, PATHS_A_SLICE, |key| key.first() == Some(&0))
        })?;
        let rows = session.sound_scan(PINNED, (rows, damaged));
        let mut next = rows.last().map(|(key, _)| key.clone());
        let mut wrong = Vec::new();
        for (path, id) in rows.iter().filter_map(|(key, _)| pinned_of(key)) {
            let head = lock(&session.kept).pinned.alive.get(&id).cloned();
            let Some(head) = head else { continue };
            match look(&session, path)? {
                Looked::Right(nar, record) if is_calm => {
                    self.count_pinned(nar, &record, (true, false));
                }
                Looked::Right(..) | Looked::Wrong => wrong.push(path),
                Looked::Missing => {
                    wrong.push(path);
                    if head.is_whole {
                        self.shared.pins_hurt.send_modify(|count| *count = count.wrapping_add(1));
                    }
                }
            }
        }
        if !wrong.is_empty() {
            self.commit_index(Durable::No, |writer, txn| {
                wrong.iter().try_for_each(|path| writer.settle_path(txn, *path, Origin::Ours))
            })?;
        }
        match &mut next {
            Some(key) => {
                // Behind the last: no key is a longer one's beginning.
                key.push(0);
                self.pins_counted = next;
            }
            None => lock(&session.kept).pinned.is_counting = false,
        }
        Ok(())
    }
}

/// How a pinned path is found.
enum Looked {
    /// Its NAR is held and kept, and its narinfo stays.
    Right(u64, super::records::NarRecord),
    /// Eviction could come to it.
    Wrong,
    /// Its NAR is not here.
    Missing,
}

fn look(session: &Session, path: StorePathHash) -> Result<Looked, Fault> {
    let narinfo: Option<Small<super::StoredNarInfo>> = narinfo_row(session, path)?;
    let Some(narinfo) = narinfo else { return Ok(Looked::Missing) };
    let held = session.sound(held_in(&session.index, narinfo.value.narinfo.nar_hash))?;
    let Some((id, record)) = held.filter(|(_, record)| !record.doomed) else {
        return Ok(Looked::Missing);
    };
    if record.origin == Origin::Kept && narinfo.last_use == NEVER_GOES {
        return Ok(Looked::Right(id, record));
    }
    Ok(Looked::Wrong)
}

/// Some paths of a pin, and whether damaged rows were left out.
pub(super) fn paths_of_pin(
    txn: &ReadTransaction,
    id: u32,
    from: &[u8],
) -> Result<(Vec<StorePathHash>, bool), Fault> {
    let prefix = by_pin(id);
    let (rows, damaged) =
        PINNED.scan_sound(txn, from, PATHS_A_SLICE, |key| key.starts_with(&prefix))?;
    let paths = rows.iter().filter_map(|(key, _)| pinned_of(key)).map(|(path, _)| path);
    Ok((paths.collect(), damaged))
}
