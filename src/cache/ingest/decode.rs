//! From the file's bytes to the NAR's, whatever the codec; and again from the start when the
//! source was changed in the middle.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, IGNORE_CHECK, Stream};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::encode::Outlet;
use super::zstd_frames::ZstdReader;
use super::{Codec, Error, Feed, PIECE_LEN};
use crate::nix::{Compression, FileHash};

/// How liblzma is to read. The file's own checksum of its content is left alone: the NAR's SHA-256,
/// which is compared before a NAR counts as whole, says more, and a CRC64 in portable C costs a
/// twelfth of the decoding.
const XZ_FLAGS: u32 = CONCATENATED | IGNORE_CHECK;

/// What liblzma takes beside the dictionary.
const XZ_SLACK_BYTES: u64 = 2 << 20;

/// Bytes that brotli's reader buffers.
const BROTLI_BUFFER_LEN: usize = 16 * 1024;

/// Takes a decoded piece, the first so many bytes of the buffer; may leave another buffer of the
/// same length in its place.
pub(super) type Taker<'a> = &'a mut dyn FnMut(&mut Vec<u8>, usize) -> Result<(), Error>;

/// The feed as a reader.
pub(super) struct FeedReader {
    fed: mpsc::Receiver<Feed>,
    current: Bytes,
    ended: bool,
    again: Option<Codec>,
    gone: bool,
    /// Sums the file as it came, where somebody wants to know.
    sum: Option<Sha256>,
}

impl FeedReader {
    pub(super) fn new(fed: mpsc::Receiver<Feed>) -> Self {
        Self { fed, current: Bytes::new(), ended: false, again: None, gone: false, sum: None }
    }

    /// From here on, sums what comes.
    pub(super) fn begin_sum(&mut self) {
        self.sum = Some(Sha256::new());
    }

    /// The sum of the whole file, what follows its last stream included.
    pub(super) fn finish_sum(&mut self) -> Result<Option<FileHash>, Error> {
        if self.sum.is_none() {
            return Ok(None);
        }
        loop {
            let len = self.fill_buf().map_err(|_| Error::SourceGone)?.len();
            if len == 0 {
                return Ok(self.sum.take().map(|sum| FileHash::from_bytes(sum.finalize().into())));
            }
            self.consume(len);
        }
    }

    /// At most `len` of the next bytes, without copying; empty at the end.
    pub(super) fn take(&mut self, len: usize) -> io::Result<Bytes> {
        let ready = self.fill_buf()?.len();
        Ok(self.current.split_to(len.min(ready)))
    }
}

impl BufRead for FeedReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.fed.blocking_recv() {
                Some(Feed::Bytes(bytes)) => {
                    if let Some(sum) = &mut self.sum {
                        sum.update(&bytes);
                    }
                    self.current = bytes;
                }
                Some(Feed::End) => self.ended = true,
                Some(Feed::Again(codec)) => {
                    self.again = Some(codec);
                    return Err(io::Error::other("the source begins again"));
                }
                None => {
                    self.gone = true;
                    return Err(io::Error::other("the source is gone"));
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for FeedReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(out)?;
        self.consume(len);
        Ok(len)
    }
}

/// Decodes all of the feed. With `copy` the feed must be zstd, and is copied there byte for byte.
pub(super) fn decode(
    feed: &mut FeedReader,
    first: Codec,
    mut copy: Option<&mut Outlet>,
    buffer_len: usize,
    take: Taker<'_>,
) -> Result<(), Error> {
    let mut codec = first;
    let mut buffer = vec![0; buffer_len.min(PIECE_LEN)];
    let mut taken = 0;
    loop {
        let mut drop_left = taken;
        let mut sink = |buffer: &mut Vec<u8>, len: usize| {
            let dropped = drop_left.min(len);
            drop_left -= dropped;
            if dropped > 0 {
                buffer.copy_within(dropped..len, 0);
            }
            if dropped == len {
                return Ok(());
            }
            taken += len - dropped;
            take(buffer, len - dropped)
        };
        match decode_once(feed, codec, copy.as_deref_mut(), &mut buffer, &mut sink) {
            Ok(()) => return Ok(()),
            Err(error) => match feed.again.take() {
                Some(next) => {
                    codec = next;
                    feed.current.clear();
                }
                None if feed.gone => return Err(Error::SourceGone),
                None => return Err(error),
            },
        }
    }
}

fn decode_once(
    feed: &mut FeedReader,
    codec: Codec,
    copy: Option<&mut Outlet>,
    buffer: &mut Vec<u8>,
    take: Taker<'_>,
) -> Result<(), Error> {
    match codec.compression {
        Compression::None => drain(feed, buffer, take),
        Compression::Zstd => {
            let mut reader = ZstdReader::new(feed, copy).map_err(Error::Decode)?;
            let drained = drain(&mut reader, buffer, take);
            match reader.error.take() {
                Some(error) => Err(error),
                None => drained,
            }
        }
        Compression::Xz => {
            // The dictionary is malloc'ed whole and touched only as far as the NAR goes.
            let memory_max = codec.window_bytes.saturating_add(XZ_SLACK_BYTES);
            let stream = Stream::new_stream_decoder(memory_max, XZ_FLAGS)
                .map_err(|error| Error::Decode(error.into()))?;
            drain(&mut XzDecoder::new_stream(feed, stream), buffer, take)
        }
        Compression::Bzip2 => drain(&mut MultiBzDecoder::new(feed), buffer, take),
        Compression::Gzip => drain(&mut MultiGzDecoder::new(feed), buffer, take),
        Compression::Br => drain(
            &mut brotli_decompressor::Decompressor::new(feed, BROTLI_BUFFER_LEN),
            buffer,
            take,
        ),
    }
}

fn drain(reader: &mut dyn Read, buffer: &mut Vec<u8>, take: Taker<'_>) -> Result<(), Error> {
    loop {
        let len = reader.read(buffer).map_err(Error::Decode)?;
        if len == 0 {
            return Ok(());
        }
        take(buffer, len)?;
    }
}
