//! Room for what is to be written: set aside before, given back when it is not used.

use std::sync::Arc;

use super::Error;
use super::command::Act;
use super::layout::stream_takes;
use super::session::Session;
use super::shared::Shared;

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
    let room = shared.ask(session, |reply| Act::Room { bytes, reply }).await?;
    room.taken();
    Ok(())
}

/// Room that the writer set aside for somebody who waits; given back unless it was taken.
pub(super) struct Room {
    session: Arc<Session>,
    bytes: u64,
}

impl Room {
    pub(super) fn new(session: Arc<Session>, bytes: u64) -> Self {
        Self { session, bytes }
    }

    /// Its new owner gives it back.
    fn taken(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.session.space.release(self.bytes);
    }
}
