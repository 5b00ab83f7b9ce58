//! The way back: a stored zstd stream in, the same NAR in an uploader's codec out, for clients that
//! remember the name of a file that is not kept.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::decode::{self, FeedReader};
use super::stored_brotli::StoredBrotli;
use super::{Codec, Error, Feed, PIECE_LEN};

/// Bytes that leave together.
const OUT_LEN: usize = 64 * 1024;

/// xz's preset: 9 MiB of memory, and as fast as xz gets.
const XZ_PRESET: u32 = 1;

/// What is made of a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// The NAR itself.
    Raw,
    /// xz
    Xz,
    /// bzip2
    Bzip2,
    /// gzip
    Gzip,
    /// Brotli
    Br,
}

impl Packing {
    /// Memory of its encoder, rounded up.
    pub(crate) const fn encoder_bytes(self) -> u64 {
        match self {
            Self::Raw => 0,
            Self::Xz => 10 << 20,
            Self::Bzip2 => 2 << 20,
            Self::Gzip | Self::Br => 1 << 19,
        }
    }
}

/// Takes the zstd stream to its end on this thread and gives what is made of it to `out`, which
/// says whether it still wants more.
pub(crate) fn pack(
    fed: mpsc::Receiver<Feed>,
    codec: Codec,
    packing: Packing,
    nar_size: u64,
    out: &mut dyn FnMut(Bytes) -> bool,
) -> Result<(), Error> {
    let mut feed = FeedReader::new(fed);
    let mut packer = Packer::new(packing, Out { out, waiting: BytesMut::new() });
    let mut found = 0_u64;
    let decoded = decode::decode(&mut feed, codec, None, PIECE_LEN, &mut |buffer, len| {
        found = found.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        if found > nar_size {
            return Err(Error::TooLong(nar_size));
        }
        packer.write_all(buffer.get(..len).unwrap_or_default()).map_err(|_| Error::SinkGone)
    });
    decoded?;
    if found < nar_size {
        return Err(Error::TooShort { expected: nar_size, found });
    }
    packer.finish().map_err(|_| Error::SinkGone)
}

/// Where packed bytes gather before they leave.
struct Out<'a> {
    out: &'a mut dyn FnMut(Bytes) -> bool,
    waiting: BytesMut,
}

impl Out<'_> {
    fn leave(&mut self) -> io::Result<()> {
        let piece = self.waiting.split().freeze();
        if piece.is_empty() || (self.out)(piece) {
            return Ok(());
        }
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= OUT_LEN {
            self.leave()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Packer<'a> {
    Raw(Out<'a>),
    Xz(liblzma::write::XzEncoder<Out<'a>>),
    Bzip2(bzip2::write::BzEncoder<Out<'a>>),
    Gzip(flate2::write::GzEncoder<Out<'a>>),
    Br(StoredBrotli<Out<'a>>),
}

impl<'a> Packer<'a> {
    fn new(packing: Packing, out: Out<'a>) -> Self {
        match packing {
            Packing::Raw => Self::Raw(out),
            Packing::Xz => Self::Xz(liblzma::write::XzEncoder::new(out, XZ_PRESET)),
            Packing::Bzip2 => {
                Self::Bzip2(bzip2::write::BzEncoder::new(out, bzip2::Compression::fast()))
            }
            Packing::Gzip => {
                Self::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::fast()))
            }
            Packing::Br => Self::Br(StoredBrotli::new(out)),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Raw(out) => out.write_all(bytes),
            Self::Xz(encoder) => encoder.write_all(bytes),
            Self::Bzip2(encoder) => encoder.write_all(bytes),
            Self::Gzip(encoder) => encoder.write_all(bytes),
            Self::Br(encoder) => encoder.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<()> {
        let mut out = match self {
            Self::Raw(out) => out,
            Self::Xz(encoder) => encoder.finish()?,
            Self::Bzip2(encoder) => encoder.finish()?,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Br(encoder) => encoder.finish()?,
        };
        out.leave()
    }
}
