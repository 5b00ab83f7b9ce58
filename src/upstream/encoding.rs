//! Content-Encoding of small things, undone within bounds. S3 buckets that Nix filled with
//! `narinfo-compression` send it unasked.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use hyper::{HeaderMap, header};

/// Memory that an xz or zstd window of a small thing may ask for: 16 MiB is twice what xz -6 and
/// zstd -19 use.
const WINDOW_LEN_MAX_LOG: u32 = 24;

/// Read buffer of the brotli decoder.
const BROTLI_BUFFER_LEN: usize = 8 * 1024;

/// Why a Content-Encoding could not be undone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EncodingError {
    /// A name that is not known, or several.
    #[error("Content-Encoding {0:?} is not known")]
    Unknown(Box<str>),
    /// The bytes are not what the name says.
    #[error("undo Content-Encoding")]
    Decode(#[source] Arc<io::Error>),
    /// A NAR is asked for without any.
    #[error("a NAR came with Content-Encoding {0:?}, though asked for without")]
    OnNar(Box<str>),
}

/// How a body is wrapped on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Gzip,
    Zstd,
    Brotli,
    Xz,
    Bzip2,
}

impl Encoding {
    /// `None` for a body that is as it stands. `identity` and `none` say nothing; `aws-chunked` is
    /// what some S3 servers keep of the way an object was once uploaded.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Self>, EncodingError> {
        let mut found = None;
        for value in headers.get_all(header::CONTENT_ENCODING) {
            let text = value.to_str().unwrap_or("?");
            for name in text.split(',').map(|name| name.trim().to_ascii_lowercase()) {
                let encoding = match name.as_str() {
                    "" | "identity" | "none" | "aws-chunked" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "zstd" => Self::Zstd,
                    "br" => Self::Brotli,
                    "xz" => Self::Xz,
                    "bzip2" | "x-bzip2" => Self::Bzip2,
                    _ => return Err(EncodingError::Unknown(text.into())),
                };
                if found.replace(encoding).is_some() {
                    return Err(EncodingError::Unknown(text.into()));
                }
            }
        }
        Ok(found)
    }

    /// At most `len_max` bytes; `Ok(None)` when there are more.
    pub(crate) fn undo(self, body: &[u8], len_max: usize) -> Result<Option<Bytes>, EncodingError> {
        self.read(body, len_max).map_err(|error| EncodingError::Decode(Arc::new(error)))
    }

    fn read(self, body: &[u8], len_max: usize) -> io::Result<Option<Bytes>> {
        match self {
            Self::Gzip => bounded(flate2::read::MultiGzDecoder::new(body), len_max),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(body)?;
                decoder.window_log_max(WINDOW_LEN_MAX_LOG)?;
                bounded(decoder, len_max)
            }
            Self::Brotli => {
                bounded(brotli_decompressor::Decompressor::new(body, BROTLI_BUFFER_LEN), len_max)
            }
            Self::Xz => {
                let limit = 2 << WINDOW_LEN_MAX_LOG;
                let stream = liblzma::stream::Stream::new_stream_decoder(limit, 0)?;
                bounded(liblzma::bufread::XzDecoder::new_stream(body, stream), len_max)
            }
            Self::Bzip2 => bounded(bzip2::read::MultiBzDecoder::new(body), len_max),
        }
    }
}

fn bounded(reader: impl Read, len_max: usize) -> io::Result<Option<Bytes>> {
    let mut text = Vec::new();
    let limit = u64::try_from(len_max).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(limit).read_to_end(&mut text)?;
    Ok((text.len() <= len_max).then(|| text.into()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &[u8] = b"StorePath: /nix/store/x\nand more, and more, and more\n";

    pub(crate) fn encoded(encoding: Encoding, text: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Gzip => {
                let mut writer =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                writer.write_all(text).unwrap();
                writer.finish().unwrap()
            }
            Encoding::Zstd => zstd::encode_all(text, 3).unwrap(),
            Encoding::Brotli => {
                let mut out = Vec::new();
                let mut writer = brotli::CompressorWriter::new(&mut out, 4096, 5, 20);
                writer.write_all(text).unwrap();
                drop(writer);
                out
            }
            Encoding::Xz => {
                let mut writer = liblzma::write::XzEncoder::new(Vec::new(), 6);
                writer.write_all(text).unwrap();
                writer.finish().unwrap()
            }
            Encoding::Bzip2 => {
                let level = bzip2::Compression::fast();
                let mut writer = bzip2::write::BzEncoder::new(Vec::new(), level);
                writer.write_all(text).unwrap();
                writer.finish().unwrap()
            }
        }
    }

    const ALL: [Encoding; 5] =
        [Encoding::Gzip, Encoding::Zstd, Encoding::Brotli, Encoding::Xz, Encoding::Bzip2];

    #[test]
    fn each_encoding_is_undone() {
        for encoding in ALL {
            let text = encoding.undo(&encoded(encoding, TEXT), TEXT.len()).unwrap();
            assert_eq!(text.as_deref(), Some(TEXT), "{encoding:?}");
        }
    }

    #[test]
    fn more_than_the_bound_is_told_and_not_held() {
        let bomb = vec![0_u8; 8 << 20];
        for encoding in ALL {
            assert_eq!(
                encoding.undo(&encoded(encoding, &bomb), 4096).unwrap(),
                None,
                "{encoding:?}"
            );
        }
    }

    #[test]
    fn damage_and_truncation_are_errors() {
        for encoding in ALL {
            let whole = encoded(encoding, TEXT);
            let half = whole.split_at(whole.len() / 2).0;
            assert!(encoding.undo(half, 4096).is_err(), "{encoding:?}");
            assert!(encoding.undo(b"<html>no</html>", 4096).is_err(), "{encoding:?}");
        }
    }

    #[test]
    fn names_are_known_or_refused() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, value.parse().unwrap());
            Encoding::of(&headers)
        };
        assert_eq!(of("identity").unwrap(), None);
        assert_eq!(of("aws-chunked").unwrap(), None);
        assert_eq!(of("aws-chunked, XZ").unwrap(), Some(Encoding::Xz));
        assert!(of("gzip, br").is_err());
        assert!(of("compress").is_err());
    }
}
