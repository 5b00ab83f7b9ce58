//! The two ends of a NAR that is being written: who brings its bytes, and followers, who read what
//! landed from the disk and the rest from memory.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use super::command::{Act, Command};
use super::fill::{Fill, Pending, View};
use super::layout::{Row, row_takes};
use super::nar::{HeldNar, read_row};
use super::room::{Reservation, set_aside};
use super::session::Pin;
use super::shared::{Shared, WRITER_WAIT};
use super::{Error, Finished, within};

/// Rows of one fill in memory that have not landed: a quarter of all, so that a fast upstream
/// leaves room to others.
const PENDING_ROWS_OF_ONE_MAX: usize = 8;

/// Writes one NAR's zstd stream; dropping it gives the fill up: nothing stays, followers get
/// [`Error::Abandoned`].
pub struct NarWriter {
    shared: Arc<Shared>,
    fill: Arc<Fill>,
    reservation: Reservation,
    own_rows: Arc<Semaphore>,
    /// Its followers' hold on the rows begins with the fill, so that there is one to clone.
    pin: Arc<Pin>,
    /// Handed to the writer: no longer ours to give up.
    handed_over: bool,
}

impl std::fmt::Debug for NarWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NarWriter").field("id", &self.fill.id).finish_non_exhaustive()
    }
}

impl NarWriter {
    pub(super) fn new(
        shared: Arc<Shared>,
        fill: Arc<Fill>,
        reservation: Reservation,
    ) -> Result<Self, Error> {
        let session = reservation.session.clone();
        let pin = Pin::new(&shared, &session, fill.id).ok_or(Error::Abandoned)?;
        if session.is_over() {
            return Err(Error::Degraded("the store was opened again".into()));
        }
        let own_rows = Arc::new(Semaphore::new(PENDING_ROWS_OF_ONE_MAX));
        Ok(Self { shared, fill, reservation, own_rows, pin: Arc::new(pin), handed_over: false })
    }

    /// The next bytes of the zstd stream, of any length. Seen by followers at once; waits while the
    /// disk is behind. Grows the reservation by itself (`Error::NoRoom`).
    pub async fn append(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        while !bytes.is_empty() {
            if self.fill.add(&mut bytes)? {
                self.pass_on(false).await?;
            }
        }
        Ok(())
    }

    /// Passes the bytes in the making on to the writer.
    async fn pass_on(&mut self, at_end: bool) -> Result<(), Error> {
        let rows = self.fill.cut(at_end);
        let takes: u64 = rows.iter().map(|row| row_takes(row.body)).sum();
        let missing = takes.saturating_sub(self.reservation.left_bytes);
        if missing > 0 {
            set_aside(&self.shared, &self.reservation.session, missing).await?;
            self.reservation.left_bytes += missing;
        }
        // All at once: fills that wait for one row while they hold another would wait for ever.
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let permits = async {
            let own = self.own_rows.clone().acquire_many_owned(count).await;
            let all = self.shared.pending_rows.clone().acquire_many_owned(count).await;
            let (Ok(own), Ok(all)) = (own, all) else { return Err(Error::Closing) };
            Ok((own, all))
        };
        let (own, all) = within(WRITER_WAIT, permits).await?;
        let permits = Arc::new([own, all]);
        let pend = |row: &Row| Pending {
            row: *row,
            value: self.fill.value_of(*row),
            _permits: permits.clone(),
        };
        let pending: Vec<_> = rows.iter().map(pend).collect();
        let commands: Vec<_> = pending.iter().map(|pending| self.row_command(pending)).collect();
        self.fill.queue(pending)?;
        self.reservation.left_bytes -= takes;
        self.reservation.session.space.spend(takes);
        for command in commands {
            self.shared.commands.push_now(command);
        }
        Ok(())
    }

    fn row_command(&self, pending: &Pending) -> Command {
        let (fill, value) = (self.fill.clone(), pending.value.clone());
        let act = Act::Row { fill, row: pending.row, value };
        Command::In(self.reservation.session.clone(), act)
    }

    /// A follower that may read from any offset, at its own speed.
    pub fn follow(&self) -> Growing {
        Growing { fill: self.fill.clone(), pin: self.pin.clone() }
    }

    /// The NAR is whole and its hash was checked: held from now on, durable with its group (at
    /// 64 MiB of rows, after 60 s, or when all is quiet). When the same NAR is held already (a race
    /// of fills), that one is adopted, and these rows go when their followers have left.
    pub async fn finish(mut self, finished: Finished) -> Result<HeldNar, Error> {
        self.pass_on(true).await?;
        let (reply, answer) = oneshot::channel();
        let session = self.reservation.session.clone();
        let fill = self.fill.clone();
        self.handed_over = true;
        let act = Act::Finish { fill, finished, reply };
        self.shared.commands.push_now(Command::In(session, act));
        within(WRITER_WAIT, self.shared.hear(answer)).await
    }
}

impl Drop for NarWriter {
    fn drop(&mut self) {
        if !self.handed_over {
            self.fill.abandoned();
            let session = self.reservation.session.clone();
            let act = Act::Abandon(self.fill.clone());
            self.shared.commands.push_now(Command::In(session, act));
        }
    }
}

/// A follower's view of a NAR that is being written.
#[derive(Clone, Debug)]
pub struct Growing {
    fill: Arc<Fill>,
    pin: Arc<Pin>,
}

impl Growing {
    /// Bytes from `offset` on, as soon as there are any: from memory or from a landed row.
    /// `Ok(None)` after the last byte of a finished NAR; `Err(Abandoned)` when it was given up.
    pub async fn read(&self, offset: u64) -> Result<Option<Bytes>, Error> {
        let mut changes = self.fill.changes.subscribe();
        loop {
            changes.mark_unchanged();
            match self.fill.view(offset)? {
                View::Bytes(bytes) => return Ok(Some(bytes)),
                View::End => return Ok(None),
                View::OnDisk(place) => {
                    let (shared, session) = (self.pin.shared(), &self.pin.session);
                    session.touch();
                    let read = read_row(shared, session, place, offset).await;
                    return read.map(Some).map_err(|error| error.unwrap_or(Error::Abandoned));
                }
                View::Nothing => {
                    if changes.changed().await.is_err() {
                        return Err(Error::Abandoned);
                    }
                }
            }
        }
    }
}
