//! Brotli without compression (RFC 7932): each block of the stream holds its bytes as they are.
//!
//! A client asks for a file in this codec only where it remembers an upload's name, which is rare,
//! and it is in this house. An encoder with its dictionary is 0.9 MB, a tenth of the program.

use std::io::{self, Write};

/// What a block holds at most: its length less one takes 16 bits, four of the format's nibbles.
const BLOCK_LEN: usize = 1 << 16;

/// The stream's first bit: a window of 64 KiB, the one that takes a single bit. Nothing looks back.
const WINDOW_BITS: u32 = 1;

/// Bits of a block's head: the last one? no (1), four nibbles of length (2), length less one (16),
/// not compressed (1). Zeros fill its last byte; the block's bytes follow.
const HEAD_BITS: u32 = 20;

/// The last block, empty: two bits.
const END: u8 = 0b11;

/// A writer of such a stream into another writer.
pub(super) struct StoredBrotli<W> {
    out: W,
    begun: bool,
}

impl<W: Write> StoredBrotli<W> {
    /// Nothing is written yet.
    pub(super) const fn new(out: W) -> Self {
        Self { out, begun: false }
    }

    /// Ends the stream.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let shift = self.begin();
        self.out.write_all(&[END << shift])?;
        Ok(self.out)
    }

    /// How many bits come before the next block's head in its first byte: those of the stream's own.
    const fn begin(&mut self) -> u32 {
        let bits = if self.begun { 0 } else { WINDOW_BITS };
        self.begun = true;
        bits
    }
}

impl<W: Write> Write for StoredBrotli<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for block in bytes.chunks(BLOCK_LEN) {
            let shift = self.begin();
            let len = u32::try_from(block.len()).map_err(io::Error::other)?;
            // From the lowest bit: one of zero, two of zero, the length, one.
            let head = ((len.saturating_sub(1)) << 3) | (1 << (HEAD_BITS - 1));
            let [first, second, third, _] = (head << shift).to_le_bytes();
            self.out.write_all(&[first, second, third])?;
            self.out.write_all(block)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn unpacked(stream: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        brotli::Decompressor::new(stream, 4096).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn check(writes: &[usize]) {
        let all: Vec<u8> = (0..251).cycle().take(writes.iter().sum()).collect();
        let mut stream = StoredBrotli::new(Vec::new());
        let mut rest = all.as_slice();
        for len in writes {
            let (piece, after) = rest.split_at(*len);
            stream.write_all(piece).unwrap();
            rest = after;
        }
        let stream = stream.finish().unwrap();
        assert!(unpacked(&stream) == all, "{writes:?} came back as something else");
    }

    #[test]
    fn a_decoder_reads_back_what_was_stored() {
        check(&[]);
        check(&[0]);
        check(&[1]);
        check(&[1, 1, 0, 3]);
        check(&[BLOCK_LEN - 1, BLOCK_LEN, BLOCK_LEN + 1, 5 * BLOCK_LEN + 17]);
    }

    #[test]
    fn the_smallest_streams_are_those_of_the_format() {
        assert_eq!(StoredBrotli::new(Vec::new()).finish().unwrap(), [0b110]);
        let mut one = StoredBrotli::new(Vec::new());
        one.write_all(b"a").unwrap();
        assert_eq!(one.finish().unwrap(), [0, 0, 0b1_0000, b'a', 0b11]);
    }

    #[test]
    fn a_stream_that_is_cut_is_no_stream() {
        let mut whole = StoredBrotli::new(Vec::new());
        whole.write_all(&[7; 100]).unwrap();
        let whole = whole.finish().unwrap();
        let (cut, _) = whole.split_at(whole.len() - 1);
        let read = brotli::Decompressor::new(cut, 4096).read_to_end(&mut Vec::new());
        assert!(read.is_err(), "a stream without its end was taken for a whole one");
    }
}
