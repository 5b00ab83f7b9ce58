//! A NAR on its way to one client: it ends cleanly only when the whole NAR was what was signed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::fill::Phase;
use crate::store::Growing;

/// A NAR's zstd stream as it comes. An error means: cut the response, never end it cleanly.
#[derive(Debug)]
pub struct NarStream {
    from: From,
}

/// The NAR went wrong in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the NAR could not be completed")]
pub struct Cut;

/// What comes from a fetch that is kept nowhere.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Bytes),
    /// All of it came, and its hash was right. A channel that ends without it was cut.
    End,
}

#[derive(Debug)]
enum From {
    Rows { growing: Growing, offset: u64, phase: watch::Receiver<Phase>, _follower: Follower },
    Fetch { first: Option<Piece>, coming: mpsc::Receiver<Piece> },
    Ended,
    Broken,
}

impl NarStream {
    /// Follows the rows of a fill, which says by its phase when it is over.
    pub(super) const fn follow(
        growing: Growing,
        phase: watch::Receiver<Phase>,
        follower: Follower,
    ) -> Self {
        Self { from: From::Rows { growing, offset: 0, phase, _follower: follower } }
    }

    pub(super) const fn through(first: Piece, coming: mpsc::Receiver<Piece>) -> Self {
        Self { from: From::Fetch { first: Some(first), coming } }
    }

    /// The next bytes; `None` after the last, when the NAR's hash was right. After either end it
    /// says the same again. Cancelling it loses nothing.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Cut> {
        let next = match &mut self.from {
            From::Rows { growing, offset, phase, .. } => match growing.read(*offset).await {
                Ok(Some(bytes)) => {
                    *offset += u64::try_from(bytes.len()).map_err(|_| Cut)?;
                    return Ok(Some(bytes));
                }
                // Who has the last byte finds the NAR held, and its file hash in the narinfo.
                Ok(None) => match phase.wait_for(|phase| !phase.is_under_way()).await.as_deref() {
                    Ok(Phase::Held(_)) => From::Ended,
                    Ok(
                        Phase::Starting
                        | Phase::Growing(_)
                        | Phase::NoRoom
                        | Phase::Failed
                        | Phase::Unable
                        | Phase::GivenUp,
                    )
                    | Err(_) => From::Broken,
                },
                Err(_) => From::Broken,
            },
            From::Fetch { first, coming } => {
                let piece = match first.take() {
                    Some(piece) => Some(piece),
                    None => coming.recv().await,
                };
                match piece {
                    Some(Piece::Bytes(bytes)) => return Ok(Some(bytes)),
                    Some(Piece::End) => From::Ended,
                    None => From::Broken,
                }
            }
            From::Ended => return Ok(None),
            From::Broken => return Err(Cut),
        };
        // What was read from is let go at once: a follower that has all of it holds nothing.
        let ended = matches!(next, From::Ended);
        self.from = next;
        if ended { Ok(None) } else { Err(Cut) }
    }
}

/// Counts one who follows a fill.
#[derive(Debug)]
pub(super) struct Follower(Arc<AtomicUsize>);

impl Follower {
    pub(super) fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
