//! How a NAR's zstd stream is cut into rows. Pure: the lengths follow from the length of the
//! stream alone, so no record has to list them.

/// Bytes of a row's checksum, in front of its stream bytes.
pub(super) const CHECKSUM_LEN: usize = 8;

/// Bytes of a whole row's value, checksum included: 1 KiB short of a power of two. redb rounds a
/// row with its header up to one, and 256 KiB would occupy 512.
pub(super) const ROW_LEN: usize = 255 * 1024;

/// Stream bytes of a whole row.
pub(super) const ROW_BODY: u64 = (ROW_LEN - CHECKSUM_LEN) as u64;

/// What redb adds to a row in its page, and more: 4 bytes of page header, 8 of offsets, 12 of key.
const PAGE_OVERHEAD: u64 = 64;

/// The page of redb, the least that anything takes.
const PAGE_LEN: u64 = 4096;

/// A rounding that wastes at most this part of the page is taken as it is, without another row.
const WASTE_PART: u64 = 16;

/// Bytes that a row with `body` stream bytes takes in its segment, rounded as redb does.
pub(super) fn row_takes(body: u64) -> u64 {
    (body + CHECKSUM_LEN as u64 + PAGE_OVERHEAD).next_power_of_two().max(PAGE_LEN)
}

/// The length of the next row when `rest` stream bytes are left: a whole row; else what fills a
/// power of two well; else as much as fills the next smaller one.
fn next_body(rest: u64) -> u64 {
    if rest >= ROW_BODY {
        return ROW_BODY;
    }
    let whole = row_takes(rest);
    let used = rest + CHECKSUM_LEN as u64 + PAGE_OVERHEAD;
    if whole == PAGE_LEN || whole - used <= whole / WASTE_PART {
        return rest;
    }
    whole / 2 - CHECKSUM_LEN as u64 - PAGE_OVERHEAD
}

/// One row of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// Its number within the NAR.
    pub(super) number: u32,
    /// Where its bytes begin in the stream.
    pub(super) start: u64,
    /// Its stream bytes.
    pub(super) body: u64,
}

/// The rows from `number` and `start` on, of what is left of a stream.
fn rows_of(mut number: u32, mut start: u64, end: u64) -> impl Iterator<Item = Row> {
    std::iter::from_fn(move || {
        (start < end).then(|| {
            let row = Row { number, start, body: next_body(end - start) };
            number = number.saturating_add(1);
            start += row.body;
            row
        })
    })
}

/// How many whole rows stand before `offset`, as a row number and where that row begins.
fn whole_before(offset: u64) -> (u32, u64) {
    let number = u32::try_from(offset / ROW_BODY).unwrap_or(u32::MAX);
    (number, u64::from(number) * ROW_BODY)
}

/// The rows after the last whole one, which is where the stream's tail begins.
pub(super) fn tail(len: u64) -> impl Iterator<Item = Row> {
    let (number, start) = whole_before(len);
    rows_of(number, start, len)
}

/// The row that holds the byte at `offset` of a stream of `len` bytes.
pub(super) fn row_at(offset: u64, len: u64) -> Option<Row> {
    let (number, start) = whole_before(offset);
    rows_of(number, start, len).find(|row| offset < row.start + row.body)
}

/// `count` rows from number `first` on, of a stream of `len` bytes.
pub(super) fn rows_between(first: u32, count: u32, len: u64) -> impl Iterator<Item = Row> {
    let (whole, _) = whole_before(len);
    let first_whole = first.min(whole);
    let start = u64::from(first_whole) * ROW_BODY;
    let skip = usize::try_from(first - first_whole).unwrap_or(usize::MAX);
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    rows_of(first_whole, start, len).skip(skip).take(count)
}

/// Bytes that a stream of `len` bytes takes in all.
pub(super) fn stream_takes(len: u64) -> u64 {
    let (whole, _) = whole_before(len);
    u64::from(whole) * row_takes(ROW_BODY) + tail(len).map(|row| row_takes(row.body)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(len: u64) {
        let mut at = 0;
        let mut takes = 0;
        let mut number = 0;
        while let Some(row) = row_at(at, len) {
            assert_eq!((row.start, row.number), (at, number), "{len}");
            assert_eq!(row_at(at + row.body - 1, len), Some(row), "{len}");
            assert!(row.body > 0 && row.body <= ROW_BODY, "{len}");
            takes += row_takes(row.body);
            at += row.body;
            number += 1;
        }
        assert_eq!((at, takes), (len, stream_takes(len)), "{len}");
        for first in [0, number / 2, number] {
            let rest: u64 = rows_between(first, number, len).map(|row| row.body).sum();
            let before: u64 = rows_between(0, first, len).map(|row| row.body).sum();
            assert_eq!(before + rest, len);
        }
        assert!(takes <= len + len / 8 + PAGE_LEN, "{len} takes {takes}");
    }

    #[test]
    fn rows_cover_a_stream_and_waste_little() {
        for len in [0, 1, 4023, 4024, 4025, 4096, 8192, 100_000, 1 << 30] {
            check(len);
        }
        for near in [ROW_BODY, 2 * ROW_BODY, 130_000] {
            for len in near - 80..near + 80 {
                check(len);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn rows_cover_any_stream(len in 0..8_000_000_u64) {
            check(len);
        }
    }
}
