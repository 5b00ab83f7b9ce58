//! One NAR, read from its rows and decoded: is it what its record says?

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::pace::Haste;
use crate::cache::ingest::{self, Feed, Form, Ingested, NarLen, Pipe, Plan, sniff};
use crate::cache::{Inner, permits};
use crate::nix::Compression;
use crate::store::{self, HeldNar};

/// Bytes of the stored stream between two rests: a card gives them in a fraction of a second.
const STEP_LEN: u64 = 4 << 20;

/// How often a NAR is begun again because a client wants the memory: then it is read to its end, or a
/// house that is always busy would never have its large NARs checked.
const GIVEN_UP_MAX: usize = 3;

/// How long to wait when there is no memory now.
const MEMORY_WAIT: Duration = Duration::from_secs(1);

/// How often that is waited for before this NAR is left for the next round.
const MEMORY_TRIES_MAX: usize = 120;

/// What a NAR turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// What its record says.
    Right,
    /// Its rows are not what was written, and it is withdrawn.
    Torn,
    /// Its rows are as they were written, and are another NAR or none.
    Wrong(String),
    /// It could not be looked at.
    Unknown,
}

/// Reads a NAR to its end. What seems wrong is read twice: memory fails too, and a NAR that is right is
/// not thrown away.
pub(super) async fn check(
    inner: &Inner,
    held: &HeldNar,
    haste: Haste,
) -> Result<Verdict, store::Error> {
    let mut given_up = 0;
    let mut suspect = None;
    for _ in 0..MEMORY_TRIES_MAX {
        match once(inner, held, haste, given_up < GIVEN_UP_MAX).await {
            Ok(Seen::Right) => return Ok(Verdict::Right),
            Ok(Seen::Wrong(why)) if suspect.is_none() => suspect = Some(why),
            Ok(Seen::Wrong(why)) => return Ok(Verdict::Wrong(why)),
            Ok(Seen::NoMemory) => sleep(MEMORY_WAIT).await,
            Ok(Seen::GivenUp) => {
                given_up += 1;
                sleep(MEMORY_WAIT).await;
            }
            Err(store::Error::Corrupt(_)) => {
                if inner.store.is_withdrawn(held).await? {
                    return Ok(Verdict::Torn);
                }
                // It could be read at second try, or the disk is in other trouble.
                sleep(MEMORY_WAIT).await;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Verdict::Unknown)
}

/// How one reading ended.
enum Seen {
    Right,
    Wrong(String),
    NoMemory,
    GivenUp,
}

async fn once(
    inner: &Inner,
    held: &HeldNar,
    haste: Haste,
    gives_up: bool,
) -> Result<Seen, store::Error> {
    let first = held.read(0).await?;
    let codec = sniff(Compression::Zstd, &first).filter(|codec| codec.is_keepable());
    let Some(codec) = codec else { return Ok(Seen::Wrong("it is no zstd stream".into())) };
    let cost = permits::cost_bytes(codec, Form::Kept, held.nar_size());
    let Some(permit) = inner.permits.take_spare(cost) else { return Ok(Seen::NoMemory) };
    let nar_len = NarLen::Exactly(held.nar_size());
    let plan = Plan { codec, form: Form::Kept, nar_len, sums_source: false };
    let Pipe { feed, mut out, done } = inner.ingest.start_aside(plan);
    let reading = read(inner, held, haste, gives_up, feed);
    let taking = async { while out.recv().await.is_some() {} };
    let (ended, ()) = tokio::join!(reading, taking);
    let ingested = done.await.unwrap_or(Err(ingest::Error::Thread));
    match ended? {
        Read::GivenUp => Ok(Seen::GivenUp),
        Read::Whole { last_step } => {
            drop(permit);
            rest(inner, haste, last_step).await;
            Ok(judge(held, ingested))
        }
    }
}

/// How far the rows were read.
enum Read {
    /// All of them; the last step is not rested for yet.
    Whole {
        last_step: Instant,
    },
    GivenUp,
}

/// Feeds the rows in steps, with a rest after each.
async fn read(
    inner: &Inner,
    held: &HeldNar,
    haste: Haste,
    gives_up: bool,
    feed: mpsc::Sender<Feed>,
) -> Result<Read, store::Error> {
    let (mut offset, mut step, mut began) = (0, 0, Instant::now());
    loop {
        let row = held.read(offset).await?;
        if row.is_empty() {
            // A pipe that wants no more knows why, and says it at its end.
            feed.send(Feed::End).await.ok();
            return Ok(Read::Whole { last_step: began });
        }
        let len = u64::try_from(row.len()).unwrap_or(u64::MAX);
        (offset, step) = (offset + len, step + len);
        inner.metrics.scrubbed_bytes.inc_by(len);
        if feed.send(Feed::Bytes(row)).await.is_err() {
            return Ok(Read::Whole { last_step: began });
        }
        if step < STEP_LEN {
            continue;
        }
        if gives_up && inner.permits.are_wanted() {
            return Ok(Read::GivenUp);
        }
        rest(inner, haste, began).await;
        (step, began) = (0, Instant::now());
    }
}

/// Rests for a step that began then. A slow one hurries while somebody waits for its turn.
async fn rest(inner: &Inner, haste: Haste, began: Instant) {
    let haste = if inner.scrub.is_asked() { Haste::Asked } else { haste };
    sleep(haste.rest(began.elapsed(), inner.store.quiet_for())).await;
}

fn judge(held: &HeldNar, ingested: Result<Ingested, ingest::Error>) -> Seen {
    match ingested {
        Ok(seen) if seen.nar_hash != held.nar_hash() => {
            Seen::Wrong(format!("its NAR has the hash {}", seen.nar_hash.to_nix32()))
        }
        Ok(seen) if seen.file_hash != held.file_hash() => {
            Seen::Wrong(format!("its file has the hash {}", seen.file_hash.to_nix32()))
        }
        Ok(_) => Seen::Right,
        Err(
            error @ (ingest::Error::Decode(_)
            | ingest::Error::TooLong(_)
            | ingest::Error::TooShort { .. }
            | ingest::Error::NotKeepable(_)),
        ) => Seen::Wrong(error.to_string()),
        // Ours, and nothing about the NAR.
        Err(
            ingest::Error::SourceGone
            | ingest::Error::SinkGone
            | ingest::Error::Encode(_)
            | ingest::Error::Thread,
        ) => Seen::NoMemory,
    }
}
