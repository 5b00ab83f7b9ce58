//! From the NAR's bytes to its hash, its listing and its zstd stream; and the way out of that
//! stream, which is hashed as it leaves.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Error, LISTING_LEN_MAX, NarLen};
use crate::nix::nar::{Lister, NarError};
use crate::nix::{FileHash, NarHash};

/// NAR bytes after which the stream is flushed first, so that a follower's first byte comes early.
const FIRST_FLUSH_LEN: usize = 4 * 1024;

/// NAR bytes between flushes from then on: by place and never by time, so that the same NAR gives
/// the same bytes. zstd's own blocks have this length: flushing costs next to nothing.
const FLUSH_LEN: usize = 128 * 1024;

/// Bytes of a kept stream that leave together, after the first [`FIRST_FLUSH_LEN`].
const KEPT_PIECE_LEN: usize = 64 * 1024;

/// The way out of a zstd stream.
pub(super) struct Outlet {
    sha: Sha256,
    waiting: BytesMut,
    left: bool,
    sink: mpsc::Sender<Bytes>,
}

/// Nobody takes the stream any more.
#[derive(Debug)]
pub(super) struct Gone;

impl Outlet {
    pub(super) fn new(sink: mpsc::Sender<Bytes>) -> Self {
        Self { sha: Sha256::new(), waiting: BytesMut::new(), left: false, sink }
    }

    /// Bytes of a stream that is kept: they leave in pieces, the last byte always waits.
    pub(super) fn push_through(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.put(bytes);
        let enough = if self.left { KEPT_PIECE_LEN } else { FIRST_FLUSH_LEN };
        if self.waiting.len() <= enough {
            return Ok(());
        }
        let piece = self.waiting.split_to(self.waiting.len() - 1);
        self.send(piece)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.sha.update(bytes);
        self.waiting.extend_from_slice(bytes);
    }

    /// Sends what waits.
    fn send_waiting(&mut self) -> Result<(), Gone> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let piece = self.waiting.split();
        self.send(piece)
    }

    fn send(&mut self, piece: BytesMut) -> Result<(), Gone> {
        self.left = true;
        self.sink.blocking_send(piece.freeze()).map_err(|_| Gone)
    }

    /// The stream's hash, and what has not left yet.
    pub(super) fn finish(self) -> (FileHash, Bytes) {
        (FileHash::from_bytes(self.sha.finalize().into()), self.waiting.freeze())
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses a NAR at fixed places.
pub(super) struct Encoder {
    /// What has come since the last flush: zstd sees whole segments, so that nothing depends on
    /// how the NAR was cut on its way.
    segment: Vec<u8>,
    segment_len: usize,
    zstd: zstd::stream::write::Encoder<'static, Outlet>,
}

impl Encoder {
    pub(super) fn new(level: i32, nar_len: NarLen, outlet: Outlet) -> Result<Self, Error> {
        let mut zstd = zstd::stream::write::Encoder::new(outlet, level).map_err(Error::Encode)?;
        zstd.include_checksum(true).map_err(Error::Encode)?;
        let pledged = match nar_len {
            NarLen::Exactly(len) => Some(len),
            NarLen::AtMost(_) => None,
        };
        zstd.set_pledged_src_size(pledged).map_err(Error::Encode)?;
        Ok(Self { segment: Vec::new(), segment_len: FIRST_FLUSH_LEN, zstd })
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let room = self.segment_len - self.segment.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            bytes = later;
            self.segment.extend_from_slice(now);
            if self.segment.len() == self.segment_len {
                self.zstd.write_all(&self.segment).map_err(Error::Encode)?;
                self.zstd.flush().map_err(Error::Encode)?;
                self.zstd.get_mut().send_waiting().map_err(|Gone| Error::SinkGone)?;
                self.segment.clear();
                self.segment_len = FLUSH_LEN;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Outlet, Error> {
        self.zstd.write_all(&self.segment).map_err(Error::Encode)?;
        self.zstd.finish().map_err(Error::Encode)
    }
}

/// What the NAR's bytes go through.
pub(super) struct NarSide {
    sha: Sha256,
    lister: Result<Lister, NarError>,
    seen: u64,
    nar_len: NarLen,
    encoder: Option<Encoder>,
}

/// What came out of it.
pub(super) struct NarSeen {
    pub(super) nar_hash: NarHash,
    pub(super) nar_size: u64,
    pub(super) listing: Option<Bytes>,
    pub(super) flaw: Option<NarError>,
    pub(super) outlet: Option<Outlet>,
}

impl NarSide {
    pub(super) fn new(nar_len: NarLen, encoder: Option<Encoder>) -> Self {
        let lister = Ok(Lister::new(LISTING_LEN_MAX));
        Self { sha: Sha256::new(), lister, seen: 0, nar_len, encoder }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.seen += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.seen > self.nar_len.most() {
            return Err(Error::TooLong(self.nar_len.most()));
        }
        self.sha.update(bytes);
        // A NAR that cannot be listed can still be what was signed.
        if let Ok(lister) = &mut self.lister
            && let Err(flaw) = lister.push(bytes)
        {
            self.lister = Err(flaw);
        }
        self.encoder.as_mut().map_or(Ok(()), |encoder| encoder.push(bytes))
    }

    pub(super) fn finish(self) -> Result<NarSeen, Error> {
        match self.nar_len {
            NarLen::Exactly(expected) if expected != self.seen => {
                return Err(Error::TooShort { expected, found: self.seen });
            }
            NarLen::Exactly(_) | NarLen::AtMost(_) => {}
        }
        let (listing, flaw) = match self.lister.and_then(Lister::finish) {
            Ok(listing) => (listing, None),
            Err(flaw) => (None, Some(flaw)),
        };
        Ok(NarSeen {
            nar_hash: NarHash::from_bytes(self.sha.finalize().into()),
            nar_size: self.seen,
            listing: listing.map(Bytes::from),
            flaw,
            outlet: self.encoder.map(Encoder::finish).transpose()?,
        })
    }
}
