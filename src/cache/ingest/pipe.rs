//! The stages of one ingest and the threads they run on: one thread, or decoding on one and the
//! rest on a second.

use std::sync::mpsc::sync_channel;
use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::decode::{self, FeedReader, Taker};
use super::encode::{Encoder, NarSeen, NarSide, Outlet};
use super::{Error, Feed, Form, Ingested, PIECE_LEN, Plan, STAGE_PIECES};
use crate::nix::{Compression, FileHash};

/// Runs to the end of the feed, on the calling thread and, with `threads` above 1, on a second one.
pub(super) fn run(
    plan: Plan,
    fed: mpsc::Receiver<Feed>,
    sink: mpsc::Sender<Bytes>,
    threads: usize,
) -> Result<Ingested, Error> {
    let mut feed = FeedReader::new(fed);
    // A file that is kept, and a raw one, are summed on their way already.
    let is_raw = plan.codec.compression == Compression::None;
    if plan.sums_source && plan.form != Form::Kept && !is_raw {
        feed.begin_sum();
    }
    // `out` ends with the ingest: brotli's last block comes before the end of the file is told, and
    // whoever saw `out` end would wait for a result that waits for them.
    let outlet = Outlet::new(sink.clone());
    let (mut copy, encoder) = match plan.form {
        Form::Kept => (Some(outlet), None),
        Form::Recompressed { level } => (None, Some(Encoder::new(level, plan.nar_len, outlet)?)),
    };
    let side = NarSide::new(plan.nar_len, encoder);
    // One byte more than the NAR should have, so that a longer one is noticed.
    let nar_len = usize::try_from(plan.nar_len.most()).unwrap_or(usize::MAX);
    let buffer_len = nar_len.saturating_add(1).min(PIECE_LEN);
    let mut decode =
        |take: Taker<'_>| decode::decode(&mut feed, plan.codec, copy.as_mut(), buffer_len, take);
    let seen = if threads > 1 {
        on_two_threads(side, buffer_len, decode)?
    } else {
        let mut side = side;
        decode(&mut |buffer, len| side.push(buffer.get(..len).unwrap_or_default()))?;
        side.finish()?
    };
    let outlet = seen.outlet.or(copy).ok_or(Error::Thread)?;
    let (file_hash, tail) = outlet.finish();
    let source_hash = match feed.finish_sum()? {
        None if !plan.sums_source => None,
        None if is_raw => Some(FileHash::from_bytes(*seen.nar_hash.as_bytes())),
        None => Some(file_hash),
        summed @ Some(_) => summed,
    };
    drop(sink);
    Ok(Ingested {
        source_hash,
        nar_hash: seen.nar_hash,
        nar_size: seen.nar_size,
        file_hash,
        listing: seen.listing,
        flaw: seen.flaw,
        tail,
    })
}

/// Decodes here, hashes and compresses on a thread of its own; buffers go round.
fn on_two_threads(
    mut side: NarSide,
    buffer_len: usize,
    mut decode: impl FnMut(Taker<'_>) -> Result<(), Error>,
) -> Result<NarSeen, Error> {
    let (pieces, to_hash) = sync_channel::<(Vec<u8>, usize)>(STAGE_PIECES);
    let (used, again) = sync_channel::<Vec<u8>>(STAGE_PIECES + 2);
    thread::scope(|scope| {
        let hashing = thread::Builder::new().name("ingest-hash".into()).spawn_scoped(
            scope,
            move || -> Result<NarSeen, Error> {
                for (buffer, len) in to_hash {
                    side.push(buffer.get(..len).unwrap_or_default())?;
                    // There is room for all buffers; a reader that is gone needs none.
                    used.try_send(buffer).ok();
                }
                side.finish()
            },
        );
        let hashing = hashing.map_err(|_| Error::Thread)?;
        let decoded = decode(&mut |buffer, len| {
            let next = again.try_recv().unwrap_or_else(|_| vec![0; buffer_len]);
            let full = std::mem::replace(buffer, next);
            pieces.send((full, len)).map_err(|_| Error::SinkGone)
        });
        drop(pieces);
        let seen = hashing.join().map_err(|_| Error::Thread)?;
        match decoded {
            Ok(()) => seen,
            // The other side stopped first: its reason is the reason.
            Err(Error::SinkGone) => Err(seen.err().unwrap_or(Error::SinkGone)),
            Err(error) => Err(error),
        }
    })
}
