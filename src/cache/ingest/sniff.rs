//! The first bytes of a NAR file: which codec they are, and how much memory decoding takes. Pure.

use super::WINDOW_KEPT_MAX;
use super::frames::{self, Header};
use crate::nix::Compression;

/// Bytes that are looked at: an xz stream header and a block header with all its filters fit.
pub(crate) const SNIFF_LEN: usize = 128;

/// Taken for an xz dictionary that the first bytes do not tell: the biggest that presets make.
const XZ_DICTIONARY_UNKNOWN: u64 = 64 << 20;

/// bzip2's decoder at its biggest block, 900 kB.
const BZIP2_BYTES: u64 = 4 << 20;

/// gzip's window of 32 KiB and its tables.
const GZIP_BYTES: u64 = 64 << 10;

/// brotli's biggest window, 16 MiB, and its tables.
const BROTLI_BYTES: u64 = 17 << 20;

/// How a NAR file is packed, as its first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Codec {
    /// The codec.
    pub(crate) compression: Compression,
    /// Memory that its decoder needs at most, in bytes.
    pub(crate) window_bytes: u64,
}

impl Codec {
    /// Whether the stream may be kept as it is, as far as its start tells.
    pub(crate) fn is_keepable(self) -> bool {
        self.compression == Compression::Zstd && self.window_bytes <= WINDOW_KEPT_MAX
    }
}

/// What `head`, the file's first bytes, are. The bytes decide wherever a codec has a magic number:
/// labels lie in the wild, and the NAR's hash has the last word. Only brotli, which has none, is
/// believed by its label. `None`: the bytes are no NAR file at all.
pub(crate) fn sniff(label: Compression, head: &[u8]) -> Option<Codec> {
    let (compression, window_bytes) = match (label, head) {
        (Compression::Br, _) => (Compression::Br, BROTLI_BYTES),
        (_, [0xfd, b'7', b'z', b'X', b'Z', 0, ..]) => (Compression::Xz, xz_dictionary(head)),
        (_, [b'B', b'Z', b'h', b'1'..=b'9', ..]) => (Compression::Bzip2, BZIP2_BYTES),
        (_, [0x1f, 0x8b, 8, ..]) => (Compression::Gzip, GZIP_BYTES),
        (_, [13, 0, 0, 0, 0, 0, 0, 0, b'n', ..]) => (Compression::None, 0),
        _ => (Compression::Zstd, zstd_window(head)?),
    };
    Some(Codec { compression, window_bytes })
}

/// The window of the first real frame; one that lies behind skippable frames out of sight is taken
/// for the biggest that is kept.
fn zstd_window(head: &[u8]) -> Option<u64> {
    let mut rest = head;
    loop {
        match frames::parse(rest).ok()? {
            Header::Frame { window_bytes, .. } => return Some(window_bytes),
            Header::Skippable { len_bytes } => {
                let next = usize::try_from(len_bytes).ok().and_then(|len| rest.get(len..));
                match next {
                    Some(next) if !next.is_empty() => rest = next,
                    Some(_) | None => return Some(WINDOW_KEPT_MAX),
                }
            }
            Header::More { .. } if rest.len() < head.len() => return Some(WINDOW_KEPT_MAX),
            Header::More { .. } => return None,
        }
    }
}

/// The LZMA2 dictionary of the first block (xz-file-format 1.2.1, 3.1 and 5.3.1).
fn xz_dictionary(head: &[u8]) -> u64 {
    block_dictionary(head).unwrap_or(XZ_DICTIONARY_UNKNOWN)
}

fn block_dictionary(head: &[u8]) -> Option<u64> {
    /// The filter id of LZMA2.
    const LZMA2: u64 = 0x21;
    let mut rest = head.get(12..)?;
    let (_, flags) = (byte(&mut rest)?, byte(&mut rest)?);
    if flags & 0x40 != 0 {
        number(&mut rest)?;
    }
    if flags & 0x80 != 0 {
        number(&mut rest)?;
    }
    for _ in 0..=(flags & 3) {
        let (id, props_len) = (number(&mut rest)?, number(&mut rest)?);
        if id == LZMA2 {
            return dictionary_bytes(byte(&mut rest)?);
        }
        rest = rest.get(usize::try_from(props_len).ok()?..)?;
    }
    None
}

fn dictionary_bytes(bits: u8) -> Option<u64> {
    match bits {
        0..=39 => Some((2 | u64::from(bits & 1)) << (u32::from(bits / 2) + 11)),
        40 => Some(u64::from(u32::MAX)),
        41.. => None,
    }
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    Some(*first)
}

/// A number of at most nine bytes, seven bits each, the lowest first.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in 0..9 {
        let next = byte(rest)?;
        value |= u64::from(next & 0x7f) << (shift * 7);
        if next & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
