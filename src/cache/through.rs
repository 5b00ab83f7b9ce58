//! A miss that finds no room: straight from the upstream to one client, checked all the same, and
//! kept nowhere.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::sources::Sources;
use super::stream::{NarStream, Piece};
use super::transfer::{self, Failure, Sink};
use super::{Inner, NarAnswer, permits};
use crate::nix::NarName;

/// Misses that stream through at once: each is a fetch and an unpacking for one client alone.
pub(super) const THROUGH_MAX: usize = 4;

/// Pieces between the ingest and the client: it sets the pace.
const PIECES: usize = 2;

/// Sources that are tried.
const ATTEMPTS_MAX: usize = 3;

/// Fetches the NAR for this client alone; absent when too many do so, or when nothing has come by
/// the deadline.
pub(super) async fn fetch(inner: &Arc<Inner>, name: NarName, deadline: Instant) -> NarAnswer {
    let Ok(place) = Arc::clone(&inner.through).try_acquire_owned() else {
        return NarAnswer::Absent;
    };
    let (pieces, mut coming) = mpsc::channel(PIECES);
    let own = Arc::clone(inner);
    inner.spawn(async move {
        let closing = own.closing.clone();
        let done = closing.run_until_cancelled(Box::pin(run(&own, name, pieces))).await;
        if done != Some(Ok(())) {
            own.metrics.fills_failed.inc();
        }
        drop(place);
    });
    // The first piece is waited for: while there is none, "not here" is the cheapest answer.
    match timeout_at(deadline, coming.recv()).await {
        Ok(Some(first)) => NarAnswer::Filling(NarStream::through(first, coming)),
        Ok(None) | Err(_) => NarAnswer::Absent,
    }
}

async fn run(
    inner: &Arc<Inner>,
    name: NarName,
    pieces: mpsc::Sender<Piece>,
) -> Result<(), Failure> {
    let mut sources = Sources::new(Arc::clone(inner), name).await;
    let mut client = Client { pieces, begun: false };
    for _ in 0..ATTEMPTS_MAX {
        let Some(source) = sources.next().await else {
            sources.give_up().await;
            return Err(Failure::Cut);
        };
        let Some(opened) = sources.open(source.clone()).await else { continue };
        let form = transfer::form_of(inner, name, &opened);
        let cost = permits::cost_bytes(opened.codec, form, opened.source.narinfo.nar_size);
        let permit = inner.permits.take(cost).await.ok_or(Failure::Untaken)?;
        let moved = transfer::run(opened, &mut sources, permit, &mut client);
        match Box::pin(moved).await {
            Ok(ingested) => {
                client.put(ingested.tail).await?;
                return client.send(Piece::End).await;
            }
            Err(failure) => {
                debug!(nar = %name, ?failure, "fetch without a place to keep it failed");
                sources.failed();
                if failure == Failure::Unkeepable {
                    inner.memory.unkeepable.note(name.nar_hash, ());
                    sources.again(source);
                }
                if client.begun {
                    return Err(failure);
                }
            }
        }
    }
    Err(Failure::Cut)
}

/// One client as a sink.
struct Client {
    pieces: mpsc::Sender<Piece>,
    begun: bool,
}

impl Client {
    async fn send(&mut self, piece: Piece) -> Result<(), Failure> {
        self.begun = true;
        self.pieces.send(piece).await.map_err(|_| Failure::Untaken)
    }
}

impl Sink for Client {
    async fn put(&mut self, bytes: Bytes) -> Result<(), Failure> {
        self.send(Piece::Bytes(bytes)).await
    }

    fn is_wanted(&self) -> bool {
        !self.pieces.is_closed()
    }
}
