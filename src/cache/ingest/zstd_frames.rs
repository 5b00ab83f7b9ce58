//! Decodes a zstd stream frame by frame: concatenated frames, skippable ones, and, when the stream
//! is kept as it is, a copy of each byte on its way out.

use std::io::{self, BufRead, Read};

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use super::decode::FeedReader;
use super::encode::Outlet;
use super::frames::{self, Header};
use super::{Error, WINDOW_KEPT_MAX};

/// The biggest window that is decoded at all, 128 MiB: what clients accept, and less than what a
/// permit may cost.
const WINDOW_LOG_MAX: u32 = 27;

/// Where the stream stands.
enum At {
    /// Between two frames.
    Border,
    /// In a frame without meaning, so many bytes before its end.
    Skipped(u64),
    /// In a frame. `full`: the decoder filled the last buffer and may have more to give.
    Frame { full: bool },
}

/// A zstd stream as its decoded bytes.
pub(super) struct ZstdReader<'a> {
    feed: &'a mut FeedReader,
    copy: Option<&'a mut Outlet>,
    decoder: DCtx<'static>,
    /// Bytes of the frame's header that were taken from the feed and not yet given to the decoder.
    head: Vec<u8>,
    at: At,
    /// Set beside an error, which must pass as an `io::Error`.
    pub(super) error: Option<Error>,
}

impl<'a> ZstdReader<'a> {
    pub(super) fn new(feed: &'a mut FeedReader, copy: Option<&'a mut Outlet>) -> io::Result<Self> {
        let mut decoder = DCtx::create();
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(zstd_error)?;
        Ok(Self { feed, copy, decoder, head: Vec::new(), at: At::Border, error: None })
    }

    /// Reads the header of the next frame; `false` at the end of the stream.
    fn enter_frame(&mut self) -> io::Result<bool> {
        loop {
            let header = frames::parse(&self.head);
            match header {
                Ok(Header::More { len }) => {
                    if !self.take_head(len)? {
                        return if self.head.is_empty() { Ok(false) } else { self.trailing() };
                    }
                }
                Ok(Header::Skippable { len_bytes }) => {
                    let taken = u64::try_from(self.head.len()).unwrap_or(u64::MAX);
                    self.head.clear();
                    self.at = At::Skipped(len_bytes.saturating_sub(taken));
                    return Ok(true);
                }
                Ok(Header::Frame { wants_dictionary: true, .. }) => {
                    return Err(io::Error::other("a zstd frame wants a dictionary"));
                }
                Ok(Header::Frame { window_bytes, .. }) => {
                    if self.copy.is_some() && window_bytes > WINDOW_KEPT_MAX {
                        return self.refuse(Error::NotKeepable("a window is too big"));
                    }
                    self.at = At::Frame { full: false };
                    return Ok(true);
                }
                Err(frames::NoFrame) => return self.trailing(),
            }
        }
    }

    /// Bytes behind the last frame: harmless where the stream is compressed anew, since the NAR's
    /// hash decides, but clients choke on them.
    fn trailing(&mut self) -> io::Result<bool> {
        if self.copy.is_some() {
            return self.refuse(Error::NotKeepable("bytes follow the last frame"));
        }
        Ok(false)
    }

    fn refuse<T>(&mut self, error: Error) -> io::Result<T> {
        self.error = Some(error);
        Err(io::Error::other("refused"))
    }

    /// Brings the header up to `len` bytes; `false` when the stream ends before.
    fn take_head(&mut self, len: usize) -> io::Result<bool> {
        while self.head.len() < len {
            let wanted = len - self.head.len();
            let piece = self.feed.take(wanted)?;
            if piece.is_empty() {
                return Ok(false);
            }
            self.head.extend_from_slice(&piece);
            self.copy_out(&piece)?;
        }
        Ok(true)
    }

    fn copy_out(&mut self, piece: &[u8]) -> io::Result<()> {
        if let Some(copy) = self.copy.as_deref_mut()
            && copy.push_through(piece).is_err()
        {
            return self.refuse(Error::SinkGone);
        }
        Ok(())
    }

    fn skip(&mut self, left: u64) -> io::Result<()> {
        let piece = self.feed.take(usize::try_from(left).unwrap_or(usize::MAX))?;
        if piece.is_empty() && left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.copy_out(&piece)?;
        let left = left.saturating_sub(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        self.at = if left == 0 { At::Border } else { At::Skipped(left) };
        Ok(())
    }

    /// One step of the decoder: what it gave, 0 when it only took.
    fn step(&mut self, full: bool, out: &mut [u8]) -> io::Result<usize> {
        let from_head = !self.head.is_empty();
        let source: &[u8] = match (from_head, full) {
            (true, _) => &self.head,
            (false, true) => &[],
            (false, false) => {
                let source = self.feed.fill_buf()?;
                if source.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                source
            }
        };
        let mut input = InBuffer::around(source);
        let mut output = OutBuffer::around(out);
        let hint = self.decoder.decompress_stream(&mut output, &mut input).map_err(zstd_error)?;
        let (took, gave) = (input.pos(), output.pos());
        let capacity = output.capacity();
        if from_head {
            self.head.drain(..took);
        } else if took > 0 {
            let piece = self.feed.take(took)?;
            self.copy_out(&piece)?;
        }
        self.at = if hint == 0 { At::Border } else { At::Frame { full: gave == capacity } };
        Ok(gave)
    }
}

impl Read for ZstdReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.at {
                At::Border => {
                    if !self.enter_frame()? {
                        return Ok(0);
                    }
                }
                At::Skipped(left) => self.skip(left)?,
                At::Frame { full } => {
                    let gave = self.step(full, out)?;
                    if gave > 0 {
                        return Ok(gave);
                    }
                }
            }
        }
    }
}

fn zstd_error(code: zstd::zstd_safe::ErrorCode) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, get_error_name(code))
}
