//! A NAR file that comes in: through the ingest into the store, under the name it was put.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tracing::{debug, info};

use super::{Push, Refusal, now_s};
use crate::cache::ingest::{self, Feed, Ingested, NarLen, SNIFF_LEN};
use crate::cache::{KEPT_PERCENT, Unpacking};
use crate::nix::nar::NarError;
use crate::nix::{Compression, UploadName};
use crate::store::{Alias, Finished, NarWriter, Origin, Reservation};
use crate::units::ByteSize;

/// Uploads at once: a client sends as many as it has processors, the newest up to 25. Each holds a
/// connection's buffers and some rows; the memory of codecs is bounded apart.
const UPLOADS_MAX: usize = 16;

/// Large documents that are taken at once: each may have 16 MiB, and as many again while it is unwrapped.
const DOCUMENTS_MAX: usize = 2;

/// Below this a document is nothing beside the buffers of its connection.
const DOCUMENT_FROM_LEN: u64 = 64 << 10;

/// How long an upload waits for a place. A refusal ends the whole copy, so long; but with the wait
/// for memory it stays below the 300 s after which Nix gives a silent server up.
const PLACE_WAIT: Duration = Duration::from_secs(200);

/// Uploads that no narinfo binds yet: the newest Nix sends all NARs of a closure before the first
/// narinfo, and a big closure has two thousand.
const UNBOUND_MAX: u64 = 4096;

/// What waits for its targets or its narinfo is never evicted: with more than half of the budget,
/// nothing would be left for what the house reads.
const KEPT_BACK_PART: u64 = 2;

/// A NAR may decode to this much whatever its file has.
const DECODED_FREE_BYTES: u64 = 64 << 20;

/// Past that, at most so many times its file: no real NAR shrinks as far, a bomb does.
const DECODED_FACTOR: u64 = 1000;

/// The uploads under way: bounds of number and bytes.
pub(super) struct Uploads {
    places: Arc<Semaphore>,
    documents: Semaphore,
    under_way_bytes: Arc<AtomicU64>,
}

impl Default for Uploads {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(UPLOADS_MAX)),
            documents: Semaphore::new(DOCUMENTS_MAX),
            under_way_bytes: Arc::default(),
        }
    }
}

/// Bytes that an upload may come to take, counted while it lives.
struct UnderWay {
    all_bytes: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What becomes of an upload before its first byte.
pub enum Begun {
    /// The file is here already: its body needs no reading.
    Known,
    /// Its bytes are wanted.
    Wanted(Box<NarUpload>),
}

/// An upload under way. Dropped, it leaves nothing.
pub struct NarUpload {
    push: Push,
    name: UploadName,
    len_bytes: u64,
    came_bytes: u64,
    /// The first bytes, until there are enough to know the codec.
    head: BytesMut,
    reservation: Option<Reservation>,
    work: Option<Work>,
    _under_way: UnderWay,
    _place: OwnedSemaphorePermit,
}

/// From the file's bytes to the store's rows.
struct Work {
    unpacking: Unpacking,
    writer: NarWriter,
    compression: Compression,
}

impl Push {
    /// Begins an upload of `len_bytes` (Content-Length). What is refused for good is refused here,
    /// before any byte of the body.
    pub async fn begin_nar(&self, name: UploadName, len_bytes: u64) -> Result<Begun, Refusal> {
        self.check_open()?;
        let inner = &self.inner;
        if let Some(alias) = inner.store.alias(name).await?
            && inner.store.nar(alias.nar_hash).await?.is_some()
        {
            return Ok(Begun::Known);
        }
        let max = inner.config.nar_size_max;
        // What does not shrink grows by less than a hundredth in every codec.
        if len_bytes > max.saturating_add(max / 100).saturating_add(1 << 10) {
            let hint = ": raise push.nar-size-max";
            return Err(Refusal::TooLong { max: ByteSize(max), hint });
        }
        let wanted_bytes = stored_estimate(name.ending, len_bytes);
        // Once before the wait, so that what cannot fit does not wait, and once for those ahead.
        self.check_room(wanted_bytes)?;
        let place = Arc::clone(&inner.uploads.places).acquire_owned();
        let place = timeout(PLACE_WAIT, place).await.map_err(|_| Refusal::Busy)?;
        let place = place.map_err(|_| Refusal::Busy)?;
        let under_way = self.count(wanted_bytes)?;
        let reservation = inner.store.reserve(wanted_bytes).await?;
        Ok(Begun::Wanted(Box::new(NarUpload {
            push: self.clone(),
            name,
            len_bytes,
            came_bytes: 0,
            head: BytesMut::new(),
            reservation: Some(reservation),
            work: None,
            _under_way: under_way,
            _place: place,
        })))
    }

    /// The place of a document of this length, which lasts until it is taken; a short one needs none.
    pub async fn document_place(
        &self,
        len_bytes: u64,
    ) -> Result<Option<SemaphorePermit<'_>>, Refusal> {
        if len_bytes < DOCUMENT_FROM_LEN {
            return Ok(None);
        }
        let place = timeout(PLACE_WAIT, self.inner.uploads.documents.acquire()).await;
        place.map_err(|_| Refusal::Busy)?.map(Some).map_err(|_| Refusal::Busy)
    }

    fn check_room(&self, wanted_bytes: u64) -> Result<(), Refusal> {
        let (inner, uploads) = (&self.inner, &self.inner.uploads);
        let (_, unbound) = inner.store.unbound_uploads();
        if unbound >= UNBOUND_MAX {
            return Err(Refusal::Unbound(unbound));
        }
        let kept_back = inner.store.waiting_bytes();
        let under_way = uploads.under_way_bytes.load(Ordering::Relaxed);
        let budget = inner.store.figures().budget_bytes;
        let all = kept_back.saturating_add(under_way).saturating_add(wanted_bytes);
        if all > budget / KEPT_BACK_PART {
            return Err(Refusal::Full {
                kept_back: ByteSize(kept_back),
                under_way: ByteSize(under_way),
                wanted: ByteSize(wanted_bytes),
                budget: ByteSize(budget),
            });
        }
        let pinned_too = inner.store.kept_back_bytes();
        let all = pinned_too.saturating_add(under_way).saturating_add(wanted_bytes);
        if all > budget / 100 * KEPT_PERCENT {
            return Err(Refusal::FullOfPins {
                pinned: ByteSize(inner.store.figures().pinned_bytes),
                wanted: ByteSize(wanted_bytes),
                budget: ByteSize(budget),
            });
        }
        Ok(())
    }

    /// Counts an upload's bytes when there is room for them.
    fn count(&self, wanted_bytes: u64) -> Result<UnderWay, Refusal> {
        self.check_room(wanted_bytes)?;
        let all_bytes = Arc::clone(&self.inner.uploads.under_way_bytes);
        all_bytes.fetch_add(wanted_bytes, Ordering::Relaxed);
        Ok(UnderWay { all_bytes, bytes: wanted_bytes })
    }
}

/// What an upload may come to take on the disk: a zstd stream is kept as it is, a raw NAR shrinks,
/// other codecs pack up to twice as tight.
const fn stored_estimate(ending: Compression, len_bytes: u64) -> u64 {
    match ending {
        Compression::Zstd | Compression::None => len_bytes,
        Compression::Xz | Compression::Bzip2 | Compression::Gzip | Compression::Br => {
            len_bytes.saturating_mul(2)
        }
    }
}

impl NarUpload {
    /// The next bytes of the file.
    pub async fn feed(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        self.came_bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if let Some(work) = &mut self.work {
            return work.feed(bytes, self.push.inner.config.nar_size_max).await;
        }
        self.head.extend_from_slice(&bytes);
        if self.head.len() < SNIFF_LEN && self.came_bytes < self.len_bytes {
            return Ok(());
        }
        let head = self.head.split().freeze();
        let mut work = self.begin(&head).await?;
        work.feed(head, self.push.inner.config.nar_size_max).await?;
        self.work = Some(work);
        Ok(())
    }

    async fn begin(&mut self, head: &[u8]) -> Result<Work, Refusal> {
        let inner = &self.push.inner;
        let start = head.get(..head.len().min(SNIFF_LEN)).unwrap_or_default();
        let codec = ingest::sniff(self.name.ending, start)
            .ok_or_else(|| Refusal::NotANar("its first bytes are none's".to_owned()))?;
        let max = inner.config.nar_size_max;
        let nar_len = if codec.compression == Compression::None {
            if self.len_bytes > max {
                return Err(too_long(max, max));
            }
            NarLen::Exactly(self.len_bytes)
        } else {
            let bound = self.len_bytes.saturating_mul(DECODED_FACTOR).max(DECODED_FREE_BYTES);
            NarLen::AtMost(bound.min(max))
        };
        let unpacking = inner.cache.unpack(codec, nar_len).await.ok_or(Refusal::Busy)?;
        let reservation = match self.reservation.take() {
            Some(reservation) => reservation,
            None => inner.store.reserve(self.len_bytes).await?,
        };
        let writer = inner.store.begin(reservation).await?;
        Ok(Work { unpacking, writer, compression: codec.compression })
    }

    /// The file is complete: it is what its name says, and its NAR waits for its narinfo.
    pub async fn finish(self) -> Result<(), Refusal> {
        let Self { push, name, len_bytes, came_bytes, work, .. } = self;
        if came_bytes != len_bytes {
            return Err(Refusal::Short { came: came_bytes, promised: len_bytes });
        }
        let inner = &push.inner;
        let mut work = work.ok_or_else(|| Refusal::NotANar("it is empty".to_owned()))?;
        let ingested = work.end(inner.config.nar_size_max).await?;
        let Ingested { nar_hash, nar_size, file_hash, source_hash, listing, flaw, tail } = ingested;
        // Old Nix packs and unpacks directories of any depth.
        if let Some(flaw) = flaw.filter(|flaw| !matches!(flaw, NarError::Depth(_))) {
            return Err(Refusal::NotANar(flaw.to_string()));
        }
        if source_hash != Some(name.file_hash) {
            info!(%name, "an upload is not what its name says");
            return Err(Refusal::WrongFile);
        }
        work.writer.append(tail).await?;
        let origin = Origin::Ours;
        let finished = Finished { nar_hash, nar_size, file_hash, origin, listing };
        let held = work.writer.finish(finished).await?;
        let alias = Alias {
            nar_hash,
            nar_size,
            compression: work.compression,
            file_size: len_bytes,
            put_at_s: now_s(),
            bound: false,
        };
        inner.store.keep_upload(name, alias, held).await?;
        inner.cache.nar_came(nar_hash).await;
        debug!(%name, %nar_hash, "upload kept");
        Ok(())
    }
}

impl Work {
    /// Gives the ingest these bytes, and takes what comes out meanwhile.
    async fn feed(&mut self, bytes: Bytes, nar_size_max: u64) -> Result<(), Refusal> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.send(Feed::Bytes(bytes)).await? {
            return Ok(());
        }
        Err(self.failed(nar_size_max).await)
    }

    /// Whether the ingest took it; if not, it has ended.
    async fn send(&mut self, feed: Feed) -> Result<bool, Refusal> {
        loop {
            let pipe = &mut self.unpacking.pipe;
            tokio::select! {
                place = pipe.feed.reserve() => {
                    let Ok(place) = place else { return Ok(false) };
                    place.send(feed);
                    return Ok(true);
                }
                out = pipe.out.recv() => match out {
                    Some(bytes) => self.writer.append(bytes).await?,
                    None => return Ok(false),
                },
            }
        }
    }

    /// Why the ingest has ended before the file.
    async fn failed(&mut self, nar_size_max: u64) -> Refusal {
        self.unpacking.pipe.out.close();
        match (&mut self.unpacking.pipe.done).await {
            Ok(Err(error)) => refusal_of(error, nar_size_max),
            Ok(Ok(_)) | Err(_) => Refusal::Busy,
        }
    }

    /// The file is complete.
    async fn end(&mut self, nar_size_max: u64) -> Result<Ingested, Refusal> {
        if !self.send(Feed::End).await? {
            return Err(self.failed(nar_size_max).await);
        }
        while let Some(bytes) = self.unpacking.pipe.out.recv().await {
            self.writer.append(bytes).await?;
        }
        match (&mut self.unpacking.pipe.done).await {
            Ok(ingested) => ingested.map_err(|error| refusal_of(error, nar_size_max)),
            Err(_) => Err(Refusal::Busy),
        }
    }
}

fn refusal_of(error: ingest::Error, nar_size_max: u64) -> Refusal {
    match error {
        ingest::Error::TooLong(max) => too_long(max, nar_size_max),
        ingest::Error::Decode(source) => Refusal::NotANar(source.to_string()),
        ingest::Error::TooShort { .. } | ingest::Error::NotKeepable(_) => {
            Refusal::NotANar(error.to_string())
        }
        ingest::Error::SourceGone
        | ingest::Error::SinkGone
        | ingest::Error::Encode(_)
        | ingest::Error::Thread => Refusal::Busy,
    }
}

fn too_long(max: u64, nar_size_max: u64) -> Refusal {
    let hint = if max >= nar_size_max {
        ": raise push.nar-size-max"
    } else {
        ": no NAR packs as tight; if this is one, copy it with ?compression=none"
    };
    Refusal::TooLong { max: ByteSize(max), hint }
}
