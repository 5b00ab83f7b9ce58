//! What the writer is told, and by whom it is answered.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::accepts::PushOp;
use super::fill::Fill;
use super::layout::Row;
use super::nar::{HeldNar, Place};
use super::room::Room;
use super::session::Session;
use super::small::IndexOp;
use super::{Error, Finished, Gone, Outs};
use crate::nix::NarHash;

/// What a command's caller is told.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the writer is told.
pub(super) enum Command {
    /// Something to do in a session; void in the next one.
    In(Arc<Session>, Act),
    /// Somebody met a failure of the index.
    Lost { session: Arc<Session>, reason: Arc<str> },
    /// The end.
    Close,
}

/// What the writer is asked to do.
pub(super) enum Act {
    /// Changes of the index that need no durability of their own.
    Index(IndexOp),
    /// What is made durable together with its NARs.
    Push(PushOp),
    /// More ids for fills: all reserved ones are given.
    Ids(Reply<()>),
    /// Room is wanted that is not there.
    Room { bytes: u64, reply: Reply<Room> },
    /// A row to be landed.
    Row { fill: Arc<Fill>, row: Row, value: Bytes },
    /// A NAR is whole.
    Finish { fill: Arc<Fill>, finished: Finished, reply: Reply<HeldNar> },
    /// A fill was given up.
    Abandon(Arc<Fill>),
    /// A row could not be read, or is not what it should be.
    Damaged { place: Place, nar_hash: NarHash },
    /// A NAR has to go.
    Withdraw { nar_hash: NarHash, reply: Reply<()> },
    /// What goes next has to go, until no more than so much is used.
    EvictTo { to_bytes: u64, reply: Reply<Outs> },
    /// A NAR has to go, unless it is kept.
    EvictNar { nar_hash: NarHash, reply: Reply<Gone> },
    /// The bytes of a held NAR are not its own, though its rows are as they were written.
    Wrong { id: u64, nar_hash: NarHash, reply: Reply<()> },
    /// Whether a NAR is withdrawn, once all that was said before is done.
    IsGone { id: u64, reply: Reply<bool> },
    /// A reader met a damaged row of the index.
    Mend,
    /// The last reader of a doomed NAR left.
    Unread,
    /// What is finished so far is to be durable.
    Flush(Reply<()>),
}

impl Act {
    /// Tells the caller that nothing came of it.
    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::Index(op) => op.refuse(error),
            Self::Push(op) => op.refuse(error),
            Self::Ids(reply)
            | Self::Withdraw { reply, .. }
            | Self::Wrong { reply, .. }
            | Self::Flush(reply) => drop(reply.send(Err(error))),
            Self::IsGone { reply, .. } => drop(reply.send(Err(error))),
            Self::Room { reply, .. } => drop(reply.send(Err(error))),
            Self::EvictTo { reply, .. } => drop(reply.send(Err(error))),
            Self::EvictNar { reply, .. } => drop(reply.send(Err(error))),
            Self::Finish { reply, .. } => drop(reply.send(Err(error))),
            Self::Row { .. }
            | Self::Abandon(_)
            | Self::Damaged { .. }
            | Self::Mend
            | Self::Unread => {}
        }
    }
}
