//! Who has to go for the sake of others: the least recently used, when room is wanted. And one slice
//! of whatever else can wait. How rows go is in [`removal`](super::removal).

use std::time::{Duration, Instant};

use redb::WriteTransaction;

use super::command::Reply;
use super::index::Index;
use super::kept::KEPT_FROM;
use super::keys::{id_of_key, nar_use_key};
use super::outs::out;
use super::records::{NarRecord, number, record, record_in};
use super::removal::{Removal, takes_of};
use super::room::Room;
use super::session::{Session, Used};
use super::tables::{DOOMED, Fault, NAR, NAR_HASH, NAR_USE};
use super::writer::{Durable, Writer};
use super::{Error, Gone, Origin, Out, Outs, lock};
use crate::nix::NarHash;

/// NARs doomed in one transaction.
const NARS_A_SLICE: usize = 128;

/// When nothing could be evicted, it is tried again after this: readers may have left.
const STUCK: Duration = Duration::from_secs(2);

/// Somebody waits for room.
pub(super) struct Waiting {
    pub(super) bytes: u64,
    pub(super) reply: Reply<Room>,
}

impl Writer {
    pub(super) fn has_background_work(&self) -> bool {
        !self.room.is_empty()
            || !self.searches.is_empty()
            || !self.sweeps.is_empty()
            || self.is_mend_due()
            || self.ready_segment().is_some()
            || self.has_pin_work()
            || (self.session.space.excess() > 0 && !self.is_stuck())
    }

    fn is_stuck(&self) -> bool {
        self.stuck_since.is_some_and(|since| since.elapsed() < STUCK)
    }

    /// One slice of what can wait.
    pub(super) fn in_the_background(&mut self) -> Result<(), Fault> {
        self.give_room();
        if self.is_mend_due() {
            return self.mend_if_due();
        }
        if let Some(segment) = self.ready_segment() {
            self.remove_slice(segment)?;
            self.give_room();
        } else if !self.room.is_empty() || (self.session.space.excess() > 0 && !self.is_stuck()) {
            self.evict_slice()?;
        } else if self.has_pin_work() {
            self.pin_slice()?;
        } else if let Some((segment, from)) = self.sweeps.pop_front() {
            self.sweep_slice(segment, from)?;
        } else if let Some((segment, from, end)) = self.searches.pop_front() {
            self.search_slice(segment, from, end)?;
        }
        Ok(())
    }

    /// Those who wait for room get it in the order in which they came.
    fn give_room(&mut self) {
        self.room.retain(|waiting| !waiting.reply.is_closed());
        while let Some(waiting) = self.room.front() {
            if !self.session.space.try_reserve(waiting.bytes) {
                return;
            }
            let room = Room::new(self.session.clone(), waiting.bytes);
            if let Some(waiting) = self.room.pop_front() {
                // What nobody takes gives itself back.
                drop(waiting.reply.send(Ok(room)));
            }
        }
    }

    /// Dooms the least recently used NARs that nobody reads.
    fn evict_slice(&mut self) -> Result<(), Fault> {
        let wanted = self.room.front().map_or(0, |waiting| waiting.bytes);
        let wanted = wanted.max(self.session.space.excess());
        let (chosen, renewed) = self.choose(wanted)?;
        if renewed && chosen.is_empty() {
            return Ok(());
        }
        if !chosen.is_empty() {
            self.stuck_since = None;
            self.shared.metrics.evicted.inc_by(u64::try_from(chosen.len()).unwrap_or(0));
            return self.doom(&chosen);
        }
        if !self.group.is_empty() {
            return self.commit_group();
        }
        self.stuck_since = Some(Instant::now());
        if let Some(waiting) = self.room.pop_front() {
            let wanted_bytes = waiting.bytes;
            drop(waiting.reply.send(Err(Error::NoRoom { wanted_bytes })));
        }
        Ok(())
    }

    /// What goes next; and whether some turned out to be used lately, which is written down.
    fn choose(&mut self, wanted: u64) -> Result<(Vec<(u64, NarRecord)>, bool), Fault> {
        let session = self.session.clone();
        let mut chosen = Vec::new();
        let mut renewed = Vec::new();
        session.index.read(|txn| {
            let mut bytes = 0;
            for entry in NAR_USE.open_for_read(txn)?.range::<&[u8]>(..KEPT_FROM.as_slice())? {
                let (key, value) = entry?;
                if bytes >= wanted || chosen.len() + renewed.len() >= NARS_A_SLICE {
                    break;
                }
                let sealed = NAR_USE.unseal(key.value(), value.value());
                session.sound(sealed.map(|_| ()))?;
                let Some(id) = id_of_key(key.value()) else { continue };
                if session.unwritten_use(&Used::Nar(id)).is_some() {
                    renewed.push(id);
                    continue;
                }
                let Some(record) = session.sound(record(txn, id))? else { continue };
                // What only we have goes after all that upstream has, the group's NARs too.
                if record.origin == Origin::Ours && !self.group.is_empty() {
                    break;
                }
                if lock(&session.pins).doom_unread(id) {
                    bytes += takes_of(&record.parts, record.file_size).values().sum::<u64>();
                    chosen.push((id, record));
                }
            }
            Ok(())
        })?;
        if !renewed.is_empty() {
            self.commit_index(Durable::No, Self::write_uses)?;
        }
        Ok((chosen, !renewed.is_empty()))
    }

    /// Lets a slice of what goes next go for somebody who says so.
    pub(super) fn evict_to(&mut self, to_bytes: u64) -> Result<Outs, Fault> {
        // All of it has to stand in the one order.
        self.commit_group()?;
        if self.session.has_uses() {
            self.commit_index(Durable::No, Self::write_uses)?;
        }
        let going: u64 = self
            .removals
            .iter()
            .flat_map(|it| takes_of(&it.left, it.file_size))
            .map(|it| it.1)
            .sum();
        let used = self.session.space.kept_bytes().saturating_sub(going);
        if used <= to_bytes {
            return Ok(Outs { nars: Vec::new(), left_bytes: used });
        }
        let (chosen, _) = self.choose(used - to_bytes)?;
        let nars = self.metered_doom(&chosen)?;
        let goes: u64 = nars.iter().map(|out| out.takes_bytes).sum();
        Ok(Outs { nars, left_bytes: used.saturating_sub(goes) })
    }

    /// Lets a NAR go for somebody who says so.
    pub(super) fn evict_nar(&mut self, nar_hash: NarHash) -> Result<Gone, Fault> {
        self.commit_group()?;
        let found = self.session.sound(held_in(&self.session.index, nar_hash))?;
        let Some((id, record)) = found.filter(|(_, record)| !record.doomed) else {
            return Ok(Gone::NotHere);
        };
        if record.origin == Origin::Kept {
            return Ok(Gone::Kept);
        }
        lock(&self.session.pins).doom(id);
        let outs = self.metered_doom(&[(id, record)])?;
        Ok(outs.into_iter().next().map_or(Gone::NotHere, Gone::Out))
    }

    fn metered_doom(&mut self, chosen: &[(u64, NarRecord)]) -> Result<Vec<Out>, Fault> {
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let said = |(_, record): &(u64, NarRecord)| out(&self.session, record, record.last_use);
        let outs = chosen.iter().map(said).collect::<Result<Vec<_>, _>>()?;
        self.shared.metrics.evicted.inc_by(u64::try_from(chosen.len()).unwrap_or(0));
        self.doom(chosen)?;
        Ok(outs)
    }

    /// Nobody is given these NARs any more, not even after a crash; their rows go next.
    pub(super) fn doom(&mut self, chosen: &[(u64, NarRecord)]) -> Result<(), Fault> {
        self.commit_index(Durable::Yes, |writer, txn| {
            for (id, record) in chosen {
                let gone = doom_in(&writer.session, txn, *id, record)?;
                if lock(&writer.session.kept).pinned.has_nar(*id) {
                    writer.shared.pins_hurt.send_modify(|count| *count = count.wrapping_add(1));
                }
                writer.uncount_kept(*id, &gone);
            }
            writer.totals.nars -= u64::try_from(chosen.len()).unwrap_or(0).min(writer.totals.nars);
            Ok(())
        })?;
        let removals = chosen.iter().map(|(id, record)| Removal::known(*id, record));
        self.removals.extend(removals);
        Ok(())
    }

    /// A NAR has to go, whoever reads it; they are not disturbed.
    pub(super) fn withdraw(&mut self, nar_hash: NarHash) -> Result<(), Fault> {
        self.land()?;
        self.leave_group(|nar| nar.record.nar_hash == nar_hash);
        let found = self.session.sound(held_in(&self.session.index, nar_hash))?;
        if let Some((id, record)) = found {
            lock(&self.session.pins).doom(id);
            self.doom(&[(id, record)])?;
        }
        Ok(())
    }
}

/// Says what it was when it went.
fn doom_in(
    session: &Session,
    txn: &WriteTransaction,
    id: u64,
    record: &NarRecord,
) -> Result<NarRecord, Fault> {
    let key = id.to_be_bytes();
    // The use may have been written since the record was read.
    let current = session.sound(record_in(txn, id))?.unwrap_or_else(|| record.clone());
    NAR_USE.remove(txn, &nar_use_key(current.origin, current.last_use, id))?;
    let doomed = NarRecord { doomed: true, ..current };
    NAR.insert(txn, &key, &doomed.to_bytes())?;
    DOOMED.insert(txn, &key, &[])?;
    let held = session.sound(NAR_HASH.get_in(txn, record.nar_hash.as_bytes()))?;
    if held.is_some_and(|held| held == key) {
        NAR_HASH.remove(txn, record.nar_hash.as_bytes())?;
    }
    Ok(doomed)
}

pub(super) fn held_in(index: &Index, nar_hash: NarHash) -> Result<Option<(u64, NarRecord)>, Fault> {
    index.read(|txn| {
        let Some(id) = NAR_HASH.get(txn, nar_hash.as_bytes())? else { return Ok(None) };
        let id = number(NAR_HASH, &id)?;
        Ok(record(txn, id)?.map(|record| (id, record)))
    })
}
