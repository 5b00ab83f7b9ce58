//! One transfer: an opened source, through the ingest, into the store or straight to a client.
//! Stalls are mended on the way where they can be.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout};
use tracing::{info, warn};

use super::Inner;
use super::ingest::{self, Feed, Form, Ingested, NarLen, Pipe, Plan};
use super::permits::{self, Permit};
use super::sources::{Opened, Source, Sources};
use super::stall::Pace;
use crate::nix::NarName;
use crate::upstream::NarBody;

/// How often a transfer looks whether it is still wanted.
const LOOK: Duration = Duration::from_secs(1);

/// Why a transfer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The bytes stopped coming, and no other source could go on.
    Cut,
    /// The bytes are not those of the NAR.
    Wrong,
    /// The zstd stream cannot be kept as it is; compressed anew it can be had.
    Unkeepable,
    /// There is no room for more of it.
    NoRoom,
    /// Nobody takes it: the disk failed or the client has left.
    Untaken,
    /// Nobody follows, and others wait for the memory.
    GivenUp,
}

/// Where the zstd stream goes.
pub(super) trait Sink: Send {
    /// The next bytes.
    fn put(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Whether somebody still wants it; asked each second.
    fn is_wanted(&self) -> bool;
}

/// Takes an opened source through the ingest into the sink, all but its tail, and checks it.
pub(super) async fn run(
    opened: Opened,
    sources: &mut Sources,
    permit: Permit,
    sink: &mut impl Sink,
) -> Result<Ingested, Failure> {
    let (inner, name) = (Arc::clone(&sources.inner), sources.name);
    let form = form_of(&inner, name, &opened);
    let nar_size = opened.source.narinfo.nar_size;
    let plan =
        Plan { codec: opened.codec, form, nar_len: NarLen::Exactly(nar_size), sums_source: false };
    inner.metrics.fills.inc();
    let Pipe { feed, mut out, done } = inner.ingest.start(plan);
    let mut feeding = Feeding { sources, form, permit, used: vec![opened.source.clone()] };
    let moved = async { tokio::try_join!(feeding.run(opened, feed), pass_on(&mut out, sink)) };
    let moved = moved.await.map(|_| ());
    // What still runs in the ingest after a failure ends now: nobody feeds it, nobody takes of it.
    drop(out);
    let ingested = done.await.map_err(|_| Failure::Cut)?;
    let checked = moved.and_then(|()| check(name, nar_size, ingested));
    if checked.as_ref().err() == Some(&Failure::Wrong) {
        for source in &feeding.used {
            warn!(upstream = %source.upstream.url(), nar = %name, "a NAR has wrong bytes");
            let wrong = (Arc::clone(source.upstream.url()), name.nar_hash);
            inner.memory.wrong.note(wrong, ());
        }
    }
    checked
}

/// How a file is taken: as it is where that may be, else compressed anew.
pub(super) fn form_of(inner: &Inner, name: NarName, opened: &Opened) -> Form {
    if opened.codec.is_keepable() && !inner.memory.unkeepable.holds(&name.nar_hash) {
        Form::Kept
    } else {
        Form::Recompressed { level: inner.config.compression_level }
    }
}

/// The hash is the last word.
fn check(
    name: NarName,
    nar_size: u64,
    ingested: Result<Ingested, ingest::Error>,
) -> Result<Ingested, Failure> {
    match ingested {
        Ok(ingested) if ingested.nar_hash == name.nar_hash && ingested.nar_size == nar_size => {
            Ok(ingested)
        }
        Ok(_) => Err(Failure::Wrong),
        Err(error) => {
            info!(nar = %name, error = &error as &dyn std::error::Error, "ingest failed");
            Err(match error {
                // A file that ends early is one that was cut, whatever its length promised.
                ingest::Error::Decode(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    Failure::Cut
                }
                ingest::Error::TooShort { .. } | ingest::Error::SourceGone => Failure::Cut,
                ingest::Error::Decode(_) | ingest::Error::TooLong(_) => Failure::Wrong,
                ingest::Error::NotKeepable(_) => Failure::Unkeepable,
                ingest::Error::SinkGone | ingest::Error::Encode(_) | ingest::Error::Thread => {
                    Failure::Untaken
                }
            })
        }
    }
}

async fn pass_on(out: &mut mpsc::Receiver<Bytes>, sink: &mut impl Sink) -> Result<(), Failure> {
    let mut looks = interval(LOOK);
    loop {
        tokio::select! {
            bytes = out.recv() => match bytes {
                Some(bytes) => sink.put(bytes).await?,
                None => return Ok(()),
            },
            _ = looks.tick() => if !sink.is_wanted() {
                return Err(Failure::GivenUp);
            },
        }
    }
}

/// The half that brings the file to the ingest.
struct Feeding<'a> {
    sources: &'a mut Sources,
    form: Form,
    permit: Permit,
    /// Every source that bytes came from: with wrong bytes each of them is to blame.
    used: Vec<Source>,
}

impl Feeding<'_> {
    async fn run(&mut self, opened: Opened, feed: mpsc::Sender<Feed>) -> Result<(), Failure> {
        let mut current = opened;
        loop {
            let Some(from_start) = self.one_source(current, &feed).await else {
                // A pipe that wants no more knows why, and says it at its end.
                feed.send(Feed::End).await.ok();
                return Ok(());
            };
            // Dropping `feed` by the error makes the ingest end, and with it the followers.
            current = from_start.ok_or(Failure::Cut)?;
            self.used.push(current.source.clone());
            if feed.send(Feed::Again(current.codec)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Feeds one source to its end (`None`), or gives the next one, to begin from its start.
    async fn one_source(
        &mut self,
        opened: Opened,
        feed: &mpsc::Sender<Feed>,
    ) -> Option<Option<Opened>> {
        let Opened { mut source, head, body, mut etag, .. } = opened;
        let mut offset = u64::try_from(head.len()).unwrap_or(u64::MAX);
        if let Some(throttle) = &self.sources.throttle {
            throttle.pass(head.len()).await;
        }
        if !head.is_empty() && feed.send(Feed::Bytes(head)).await.is_err() {
            return None;
        }
        let mut body = body?;
        let silence = self.sources.inner.patience.silence;
        let mut pace = Pace::default();
        let mut resumed = false;
        loop {
            let began = Instant::now();
            let chunk = tokio::select! {
                chunk = timeout(silence, body.chunk()) => chunk,
                () = feed.closed() => return None,
            };
            match chunk {
                Ok(Ok(None)) => return None,
                Ok(Ok(Some(bytes))) => {
                    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    offset = offset.saturating_add(len);
                    if let Some(throttle) = &self.sources.throttle {
                        throttle.pass(bytes.len()).await;
                    }
                    let fast_enough = pace.came(len, began.elapsed());
                    if feed.send(Feed::Bytes(bytes)).await.is_err() {
                        return None;
                    }
                    if fast_enough {
                        continue;
                    }
                }
                Ok(Err(_)) | Err(_) => {}
            }
            info!(upstream = %source.upstream.url(), offset, resumed, "the transfer of a NAR stalled");
            drop(body);
            let again = if resumed {
                None
            } else {
                resumed = true;
                self.sources.resume(&source, offset, etag.clone()).await
            };
            body = match (again, self.form) {
                (Some(again), _) => again,
                (None, Form::Recompressed { .. }) => return Some(self.next_from_start().await),
                (None, Form::Kept) => {
                    let Some((other, again)) = self.same_file(&source, offset).await else {
                        return Some(None);
                    };
                    self.used.push(other.clone());
                    (source, etag) = (other, again.etag().map(ToOwned::to_owned));
                    again
                }
            };
            pace = Pace::default();
        }
    }

    /// Another source of the NAR, from its start; what was decoded already will be dropped.
    async fn next_from_start(&mut self) -> Option<Opened> {
        loop {
            let source = self.sources.next().await?;
            let Some(opened) = self.sources.open(source).await else { continue };
            let cost = permits::cost_bytes(opened.codec, self.form, opened.source.narinfo.nar_size);
            if self.sources.inner.permits.enlarge(&mut self.permit, cost) {
                return Some(opened);
            }
        }
    }

    /// Another source of the same file, from `offset` on.
    async fn same_file(&mut self, broken: &Source, offset: u64) -> Option<(Source, NarBody)> {
        let file_hash = broken.narinfo.file_hash?;
        loop {
            let source = self.sources.next().await?;
            if source.narinfo.file_hash == Some(file_hash)
                && let Some(body) = self.sources.resume(&source, offset, None).await
            {
                return Some((source, body));
            }
        }
    }
}
