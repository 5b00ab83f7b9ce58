//! NARs being written: the stream is cut into rows, which wait in memory until the writer has
//! landed them; followers read what landed from the disk and the rest from memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::layout::{CHECKSUM_LEN, ROW_BODY, Row, row_at, row_takes, stream_takes, tail};
use super::nar::{HeldNar, Place, read_row};
use super::records::{Part, add_row, row_key, segment_of};
use super::session::{Pin, Session, Shared};
use super::tables::ROWS;
use super::writer::{Act, Command};
use super::{Error, Finished, lock};

/// Rows of one fill in memory that have not landed: a quarter of all, so that a fast upstream
/// leaves room to others.
const PENDING_ROWS_OF_ONE_MAX: usize = 8;

/// Room that was set aside. What is not used is given back when it is dropped.
pub struct Reservation {
    pub(super) shared: Arc<Shared>,
    pub(super) session: Arc<Session>,
    pub(super) left_bytes: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation").field("left_bytes", &self.left_bytes).finish_non_exhaustive()
    }
}

impl Reservation {
    /// Asks for more while a fill grows beyond its estimate.
    pub async fn grow(&mut self, more_bytes: u64) -> Result<(), Error> {
        let takes = stream_takes(more_bytes);
        set_aside(&self.shared, &self.session, takes).await?;
        self.left_bytes += takes;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.session.space.release(self.left_bytes);
    }
}

/// Sets room aside; when there is none, the writer is asked to evict.
pub(super) async fn set_aside(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    bytes: u64,
) -> Result<(), Error> {
    if session.space.try_reserve(bytes) {
        return Ok(());
    }
    if !session.space.could_ever(bytes) {
        return Err(Error::NoRoom { wanted_bytes: bytes });
    }
    shared.ask(session, |reply| Act::Room { bytes, reply }).await
}

/// What the writer of a NAR, its followers and the store's writer share.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) id: u64,
    state: Mutex<FillState>,
    /// Counts changes: whoever waits for bytes watches it.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct FillState {
    /// Stream bytes before this are on the disk, readable.
    landed: u64,
    /// Complete rows on their way to the disk, oldest first.
    pending: VecDeque<Pending>,
    /// The row in the making, as it came: its pieces and where it begins.
    making: Vec<Bytes>,
    making_start: u64,
    making_len: u64,
    /// Known once the last byte came.
    len: Option<u64>,
    parts: Vec<Part>,
    end: End,
}

#[derive(Debug)]
struct Pending {
    row: Row,
    value: Bytes,
    /// Shared by the rows of a tail, which wait together.
    _permits: Arc<[OwnedSemaphorePermit; 2]>,
}

#[derive(Debug, Clone)]
enum End {
    /// Still growing.
    Open,
    Finished,
    Abandoned,
    /// The store was lost.
    Lost(Arc<str>),
}

/// What a follower meets at an offset.
enum View {
    Bytes(Bytes),
    OnDisk(Place),
    Nothing,
    End,
}

impl Fill {
    pub(super) fn new(id: u64) -> Self {
        let state = FillState {
            landed: 0,
            pending: VecDeque::new(),
            making: Vec::new(),
            making_start: 0,
            making_len: 0,
            len: None,
            parts: Vec::new(),
            end: End::Open,
        };
        Self { id, state: Mutex::new(state), changes: watch::Sender::new(0) }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Takes bytes up to the end of the row in the making; says whether it is complete.
    fn add(&self, bytes: &mut Bytes) -> Result<bool, Error> {
        let mut state = lock(&self.state);
        state.end.check()?;
        let room = usize::try_from(ROW_BODY - state.making_len).unwrap_or(usize::MAX);
        let piece = bytes.split_to(room.min(bytes.len()));
        state.making_len += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        state.making.push(piece);
        let complete = state.making_len >= ROW_BODY;
        drop(state);
        self.changed();
        Ok(complete)
    }

    /// The rows that the bytes in the making are cut into: one whole one, or, at the end of the
    /// stream, its tail.
    fn cut(&self, at_end: bool) -> Vec<Row> {
        let mut state = lock(&self.state);
        let end = state.making_start + state.making_len;
        if at_end {
            state.len = Some(end);
            return tail(end).collect();
        }
        row_at(state.making_start, end).into_iter().collect()
    }

    /// A row's value with its seal, copied out of the pieces in the making.
    fn value_of(&self, row: Row) -> Bytes {
        let pieces = lock(&self.state);
        let skip = usize::try_from(row.start - pieces.making_start).unwrap_or(usize::MAX);
        let len = usize::try_from(row.body).unwrap_or(usize::MAX);
        let making = pieces.making.clone();
        drop(pieces);
        let mut value = Vec::with_capacity(CHECKSUM_LEN + len);
        value.resize(CHECKSUM_LEN, 0);
        let mut before = 0;
        for piece in &making {
            let from = skip.saturating_sub(before).min(piece.len());
            let missing = CHECKSUM_LEN + len - value.len();
            let to = (from + missing).min(piece.len());
            value.extend_from_slice(piece.get(from..to).unwrap_or_default());
            before += piece.len();
        }
        ROWS.seal(&row_key(self.id, row.number), &mut value);
        value.into()
    }

    /// The rows leave the making and wait for the disk.
    fn queue(&self, rows: Vec<Pending>) -> Result<(), Error> {
        let mut state = lock(&self.state);
        state.end.check()?;
        for pending in rows {
            state.making_start = pending.row.start + pending.row.body;
            state.pending.push_back(pending);
        }
        state.making.clear();
        state.making_len = 0;
        Ok(())
    }

    /// A row landed in `segment`. It counts even when the fill was given up meanwhile: it has to be
    /// removed then.
    pub(super) fn landed(&self, segment: u32, row: Row) {
        let mut state = lock(&self.state);
        add_row(&mut state.parts, segment, row.number);
        state.landed = row.start + row.body;
        if state.pending.front().is_some_and(|pending| pending.row == row) {
            state.pending.pop_front();
        }
    }

    /// Whether rows still make sense.
    pub(super) fn is_open(&self) -> bool {
        matches!(lock(&self.state).end, End::Open)
    }

    /// Where its rows lie, and bytes of the stream that they hold.
    pub(super) fn rows(&self) -> (Vec<Part>, u64) {
        let state = lock(&self.state);
        (state.parts.clone(), state.len.unwrap_or(state.landed))
    }

    fn ended(&self, end: End) {
        let mut state = lock(&self.state);
        if matches!(state.end, End::Open) {
            if !matches!(end, End::Finished) {
                state.pending.clear();
            }
            state.end = end;
        }
        drop(state);
        self.changed();
    }

    pub(super) fn finished(&self) {
        self.ended(End::Finished);
    }

    pub(super) fn abandoned(&self) {
        self.ended(End::Abandoned);
    }

    pub(super) fn lost(&self, reason: Arc<str>) {
        self.ended(End::Lost(reason));
    }

    fn view(&self, offset: u64) -> Result<View, Error> {
        let state = lock(&self.state);
        if offset < state.landed {
            let row = row_at(offset, state.len.unwrap_or(state.landed));
            let segment = row.and_then(|row| segment_of(&state.parts, row.number));
            return Ok(match (row, segment) {
                (Some(row), Some(segment)) => View::OnDisk(Place { segment, id: self.id, row }),
                (_, _) => View::Nothing,
            });
        }
        for pending in &state.pending {
            let inside = offset.checked_sub(pending.row.start);
            if let Some(inside) = inside.filter(|inside| *inside < pending.row.body) {
                let skip = usize::try_from(inside).unwrap_or(usize::MAX) + CHECKSUM_LEN;
                return Ok(View::Bytes(pending.value.slice(skip..)));
            }
        }
        let mut inside = offset.saturating_sub(state.making_start);
        for piece in &state.making {
            let len = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            if inside < len {
                return Ok(View::Bytes(piece.slice(usize::try_from(inside).unwrap_or(0)..)));
            }
            inside -= len;
        }
        match &state.end {
            End::Open => Ok(View::Nothing),
            End::Finished => Ok(View::End),
            End::Abandoned => Err(Error::Abandoned),
            End::Lost(reason) => Err(Error::Degraded(reason.clone())),
        }
    }
}

impl End {
    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Open => Ok(()),
            Self::Finished | Self::Abandoned => Err(Error::Abandoned),
            Self::Lost(reason) => Err(Error::Degraded(reason.clone())),
        }
    }
}

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
        let own = self.own_rows.clone().acquire_many_owned(count).await;
        let all = self.shared.pending_rows.clone().acquire_many_owned(count).await;
        let (Ok(own), Ok(all)) = (own, all) else { return Err(Error::Closing) };
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
        answer.await.map_err(|_| Error::Closing)?
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
