//! A NAR that is being written: the stream is cut into rows, which wait in memory until the writer
//! has landed them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::keys::row_key;
use super::layout::{CHECKSUM_LEN, ROW_BODY, Row, row_at, tail};
use super::nar::Place;
use super::records::{Part, add_row, segment_of};
use super::tables::ROWS;
use super::{Error, lock};

/// What the writer of a NAR, its followers and the store's writer share.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) id: u64,
    state: Mutex<FillState>,
    /// Counts changes: whoever waits for bytes watches it.
    pub(super) changes: watch::Sender<u64>,
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
pub(super) struct Pending {
    pub(super) row: Row,
    pub(super) value: Bytes,
    /// Shared by the rows of a tail, which wait together.
    pub(super) _permits: Arc<[OwnedSemaphorePermit; 2]>,
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
pub(super) enum View {
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
    pub(super) fn add(&self, bytes: &mut Bytes) -> Result<bool, Error> {
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
    pub(super) fn cut(&self, at_end: bool) -> Vec<Row> {
        let mut state = lock(&self.state);
        let end = state.making_start + state.making_len;
        if at_end {
            state.len = Some(end);
            return tail(end).collect();
        }
        row_at(state.making_start, end).into_iter().collect()
    }

    /// A row's value with its seal, copied out of the pieces in the making.
    pub(super) fn value_of(&self, row: Row) -> Bytes {
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
    pub(super) fn queue(&self, rows: Vec<Pending>) -> Result<(), Error> {
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

    pub(super) fn view(&self, offset: u64) -> Result<View, Error> {
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
