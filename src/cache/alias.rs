//! NARs by the names that uploaders gave their files: clients remember those for a month. Served so
//! that they decode to the same NAR: from what is stored, or packed on the way out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use super::ingest::{self, Feed, Packing, SNIFF_LEN};
use super::stream::{Cut, NarStream, Piece};
use super::{Inner, NarAnswer, NarWant, fill};
use crate::nix::{Compression, NarName, UploadName};
use crate::store::{Alias, HeldNar};

/// NARs that are packed on their way out at once: each takes a core for as long as it lasts.
pub(super) const PACKED_MAX: usize = 4;

/// Pieces between the packing and the client, which sets the pace.
const PIECES: usize = 2;

/// How long the first packed bytes may take.
const START_WAIT: Duration = Duration::from_secs(20);

/// A NAR under an uploader's name.
#[derive(Debug)]
pub enum AliasAnswer {
    /// As it is stored, or on its way here in that form.
    Stored(NarAnswer),
    /// Packed on the way out; so many bytes where that is known.
    Packed(NarStream, Option<u64>),
    /// It is whole here and would be packed on the way out: so many bytes where that is known.
    Whole(Option<u64>),
}

/// Answers a question for an uploader's file; `may_fetch`: also when its NAR was evicted.
pub(super) async fn answer(
    inner: &Arc<Inner>,
    name: UploadName,
    want: NarWant,
    may_fetch: bool,
) -> AliasAnswer {
    const ABSENT: AliasAnswer = AliasAnswer::Stored(NarAnswer::Absent);
    if inner.is_degraded() {
        return ABSENT;
    }
    let Ok(Some(alias)) = inner.store.alias(name).await else { return ABSENT };
    let Ok(held) = inner.store.nar(alias.nar_hash).await else { return ABSENT };
    let packing = match alias.compression {
        Compression::Zstd => None,
        Compression::None => Some(Packing::Raw),
        Compression::Xz => Some(Packing::Xz),
        Compression::Bzip2 => Some(Packing::Bzip2),
        Compression::Gzip => Some(Packing::Gzip),
        Compression::Br => Some(Packing::Br),
    };
    match (held, packing, want) {
        (Some(held), None, _) => AliasAnswer::Stored(NarAnswer::Held(held)),
        (Some(_), Some(packing), NarWant::Head) => AliasAnswer::Whole(len_of(packing, &alias)),
        (Some(held), Some(packing), NarWant::Whole) => {
            packed(inner, &alias, packing, Stored::Held(held, 0)).await.unwrap_or(ABSENT)
        }
        (None, _, NarWant::Whole) if may_fetch => {
            fetched(inner, &alias, packing).await.unwrap_or(ABSENT)
        }
        // A part of what has no fixed bytes cannot be given.
        (Some(_), Some(_), NarWant::Part) | (None, ..) => ABSENT,
    }
}

/// The NAR was evicted: any path that has it tells the upstreams which one is wanted.
async fn fetched(
    inner: &Arc<Inner>,
    alias: &Alias,
    packing: Option<Packing>,
) -> Option<AliasAnswer> {
    let key = *inner.store.paths_of(alias.nar_hash, 1).await.ok()?.first()?;
    let filled = Box::pin(fill::follow(inner, NarName { nar_hash: alias.nar_hash, key })).await;
    let Some(packing) = packing else { return Some(AliasAnswer::Stored(filled)) };
    let stored = match filled {
        NarAnswer::Held(held) | NarAnswer::Filled(held) => Stored::Held(held, 0),
        NarAnswer::Filling(stream) => Stored::Coming(stream),
        NarAnswer::Absent => return None,
    };
    packed(inner, alias, packing, stored).await
}

/// Only the raw NAR has a length that is known beforehand.
fn len_of(packing: Packing, alias: &Alias) -> Option<u64> {
    (packing == Packing::Raw).then_some(alias.nar_size)
}

/// The stored zstd stream, piece by piece.
enum Stored {
    Held(HeldNar, u64),
    Coming(NarStream),
}

impl Stored {
    async fn chunk(&mut self) -> Result<Option<Bytes>, Cut> {
        match self {
            Self::Held(nar, offset) => {
                let bytes = nar.read(*offset).await.map_err(|_| Cut)?;
                *offset += u64::try_from(bytes.len()).map_err(|_| Cut)?;
                if bytes.is_empty() && *offset < nar.file_size() {
                    return Err(Cut);
                }
                Ok((!bytes.is_empty()).then_some(bytes))
            }
            Self::Coming(stream) => stream.chunk().await,
        }
    }
}

/// Packs the NAR on a thread of its own, under a permit; `None` when too many are being packed, or
/// it does not begin in time.
async fn packed(
    inner: &Arc<Inner>,
    alias: &Alias,
    packing: Packing,
    mut stored: Stored,
) -> Option<AliasAnswer> {
    let place = Arc::clone(&inner.packed).try_acquire_owned().ok()?;
    let first = stored.chunk().await.ok()??;
    let head = first.get(..first.len().min(SNIFF_LEN)).unwrap_or_default();
    let codec = ingest::sniff(Compression::Zstd, head)?;
    let decoder_bytes = codec.window_bytes.min(alias.nar_size);
    let permit = inner.permits.take(decoder_bytes + packing.encoder_bytes()).await?;
    let (feed, fed) = mpsc::channel(PIECES);
    let (pieces, mut coming) = mpsc::channel(PIECES);
    let nar_size = alias.nar_size;
    let nar_hash = alias.nar_hash;
    let done = inner.tasks.spawn_blocking(move || {
        let mut out = |bytes: Bytes| pieces.blocking_send(Piece::Bytes(bytes)).is_ok();
        match ingest::pack(fed, codec, packing, nar_size, &mut out) {
            Ok(()) => drop(pieces.blocking_send(Piece::End)),
            Err(error) => {
                debug!(%nar_hash, error = &error as &dyn std::error::Error, "packing ended early");
            }
        }
    });
    let closing = inner.closing.clone();
    inner.spawn(async move {
        // Leaving without the end makes the packing fail, and with it the answer.
        let feeding = feed_all(first, stored, feed);
        closing.run_until_cancelled(Box::pin(feeding)).await;
        drop(done.await);
        drop((place, permit));
    });
    let first = timeout(START_WAIT, coming.recv()).await.ok()??;
    Some(AliasAnswer::Packed(NarStream::through(first, coming), len_of(packing, alias)))
}

async fn feed_all(first: Bytes, mut stored: Stored, feed: mpsc::Sender<Feed>) {
    let mut next = Ok(Some(first));
    while let Ok(Some(bytes)) = next {
        if feed.send(Feed::Bytes(bytes)).await.is_err() {
            return;
        }
        next = stored.chunk().await;
    }
    if next == Ok(None) {
        feed.send(Feed::End).await.ok();
    }
}
