//! Headers of zstd frames (RFC 8878, 3.1): how long they are and which window they want. Pure.

/// Bytes of a frame's magic number and descriptor, and less than any header has.
const LEN_MIN: usize = 5;

/// Bytes of a skippable frame's header.
const SKIPPABLE_HEADER_LEN: u64 = 8;

/// What stands at the border between two frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// A frame with data.
    Frame {
        /// Bytes that the decoder must remember.
        window_bytes: u64,
        /// Whether it wants a dictionary, which nobody has.
        wants_dictionary: bool,
    },
    /// A frame without meaning, of so many bytes, its header included.
    Skippable {
        /// Bytes to step over.
        len_bytes: u64,
    },
    /// The header is not complete: so many bytes are needed to know more.
    More {
        /// Bytes from the frame's start.
        len: usize,
    },
}

/// The bytes begin no zstd frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoFrame;

/// Reads the header that `bytes` begin with.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, NoFrame> {
    match *bytes {
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, ref rest @ ..] => frame(descriptor, rest),
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d, ..] => {
            let len_bytes = u64::from(u32::from_le_bytes([a, b, c, d])) + SKIPPABLE_HEADER_LEN;
            Ok(Header::Skippable { len_bytes })
        }
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Header::More { len: 8 }),
        _ if bytes.len() < LEN_MIN && begins_frame(bytes) => Ok(Header::More { len: LEN_MIN }),
        _ => Err(NoFrame),
    }
}

/// Whether these few bytes may yet become a magic number.
fn begins_frame(bytes: &[u8]) -> bool {
    match bytes {
        [0x50..=0x5f, rest @ ..] => [0x2a, 0x4d, 0x18].starts_with(rest),
        _ => [0x28, 0xb5, 0x2f, 0xfd].starts_with(bytes),
    }
}

fn frame(descriptor: u8, rest: &[u8]) -> Result<Header, NoFrame> {
    if descriptor & 0x08 != 0 {
        return Err(NoFrame);
    }
    let single_segment = descriptor & 0x20 != 0;
    let dictionary_len = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or(0);
    let wants_dictionary = dictionary_len > 0;
    if !single_segment {
        let Some(window) = rest.first() else { return Ok(Header::More { len: LEN_MIN + 1 }) };
        let base = 1_u64 << (10 + (window >> 3));
        let window_bytes = base + base / 8 * u64::from(window & 7);
        return Ok(Header::Frame { window_bytes, wants_dictionary });
    }
    let size_len: usize = match descriptor >> 6 {
        0 => 1,
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let Some(size) = rest.get(dictionary_len..dictionary_len + size_len) else {
        return Ok(Header::More { len: LEN_MIN + dictionary_len + size_len });
    };
    let size = size.iter().rev().fold(0_u64, |size, byte| size << 8 | u64::from(*byte));
    let window_bytes = if size_len == 2 { size + 256 } else { size };
    Ok(Header::Frame { window_bytes, wants_dictionary })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Result<Header, NoFrame>) {
        assert_eq!(parse(bytes), expected, "{bytes:02x?}");
    }

    #[test]
    fn windows_are_read_from_both_kinds_of_header() {
        let plain = |window_bytes| Ok(Header::Frame { window_bytes, wants_dictionary: false });
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x58], plain(1 << 21));
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x59], plain((1 << 21) + (1 << 18)));
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0x20, 17], plain(17));
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0x60, 0, 1], plain(512));
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 1], plain(1 << 24));
        let with = Header::Frame { window_bytes: 1 << 10, wants_dictionary: true };
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0x01, 0x00, 9], Ok(with));
    }

    #[test]
    fn incomplete_headers_say_how_much_is_missing() {
        check(&[], Ok(Header::More { len: 5 }));
        check(&[0x28, 0xb5], Ok(Header::More { len: 5 }));
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0x00], Ok(Header::More { len: 6 }));
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0xe0, 1], Ok(Header::More { len: 13 }));
        check(&[0x52, 0x2a, 0x4d, 0x18, 1], Ok(Header::More { len: 8 }));
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        check(b"\0\0\0\0", Err(NoFrame));
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0x08], Err(NoFrame));
        check(&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0], Ok(Header::Skippable { len_bytes: 12 }));
    }
}
