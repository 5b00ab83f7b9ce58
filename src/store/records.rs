//! What rows hold: records to bytes and back, coded by hand, numbers big-endian. `docs/format.md`
//! has them byte by byte.

use redb::{ReadTransaction, WriteTransaction};

use super::tables::{Fault, NAR, Table};
use super::{Origin, StoredNarInfo};
use crate::nix::{FileHash, NarHash, NarInfo, StoreDir};

/// Takes fixed pieces from the front of a body.
pub(super) struct Reader<'b> {
    table: Table,
    pub(super) rest: &'b [u8],
}

impl<'b> Reader<'b> {
    pub(super) fn new(table: Table, rest: &'b [u8]) -> Self {
        Self { table, rest }
    }
    pub(super) fn damaged(&self) -> Fault {
        Fault::Damaged(self.table.name())
    }
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.damaged())?;
        self.rest = rest;
        Ok(*head)
    }
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'b [u8], Fault> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.damaged())?;
        self.rest = rest;
        Ok(head)
    }
    pub(super) fn u8(&mut self) -> Result<u8, Fault> {
        Ok(u8::from_be_bytes(self.array()?))
    }
    fn u16(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_be_bytes(self.array()?))
    }
    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    fn origin(&mut self) -> Result<Origin, Fault> {
        match self.u8()? {
            0 => Ok(Origin::Upstream),
            1 => Ok(Origin::Ours),
            2 => Ok(Origin::Kept),
            _ => Err(self.damaged()),
        }
    }
    pub(super) fn flag(&mut self) -> Result<bool, Fault> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.damaged()),
        }
    }
    pub(super) fn end(self) -> Result<(), Fault> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.damaged()) }
    }
}

/// The byte that stands for an origin, in keys too: what an upstream still has goes first.
pub(super) const fn origin_byte(origin: Origin) -> u8 {
    match origin {
        Origin::Upstream => 0,
        Origin::Ours => 1,
        Origin::Kept => 2,
    }
}

/// Consecutive rows of a NAR in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) segment: u32,
    pub(super) first_row: u32,
    pub(super) rows: u32,
}

/// A NAR's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NarRecord {
    pub(super) nar_hash: NarHash,
    pub(super) nar_size: u64,
    pub(super) file_hash: FileHash,
    pub(super) file_size: u64,
    pub(super) origin: Origin,
    /// Its rows are to go; nobody is given it any more.
    pub(super) doomed: bool,
    /// This `NarHash` was held with another file hash before.
    pub(super) changed: bool,
    /// The use counter when it was last used.
    pub(super) last_use: u64,
    pub(super) parts: Vec<Part>,
}

impl NarRecord {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(93 + 12 * self.parts.len());
        out.extend_from_slice(self.nar_hash.as_bytes());
        out.extend_from_slice(&self.nar_size.to_be_bytes());
        out.extend_from_slice(self.file_hash.as_bytes());
        out.extend_from_slice(&self.file_size.to_be_bytes());
        out.extend_from_slice(&[origin_byte(self.origin), self.doomed.into(), self.changed.into()]);
        out.extend_from_slice(&self.last_use.to_be_bytes());
        for part in &self.parts {
            for number in [part.segment, part.first_row, part.rows] {
                out.extend_from_slice(&number.to_be_bytes());
            }
        }
        out
    }

    pub(super) fn from_bytes(table: Table, body: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(table, body);
        let mut record = Self {
            nar_hash: NarHash::from_bytes(reader.array()?),
            nar_size: reader.u64()?,
            file_hash: FileHash::from_bytes(reader.array()?),
            file_size: reader.u64()?,
            origin: reader.origin()?,
            doomed: reader.flag()?,
            changed: reader.flag()?,
            last_use: reader.u64()?,
            parts: Vec::new(),
        };
        while !reader.rest.is_empty() {
            let (segment, first_row, rows) = (reader.u32()?, reader.u32()?, reader.u32()?);
            record.parts.push(Part { segment, first_row, rows });
        }
        Ok(record)
    }
}

/// The record of a NAR.
pub(super) fn record(txn: &ReadTransaction, id: u64) -> Result<Option<NarRecord>, Fault> {
    NAR.get(txn, &id.to_be_bytes())?.map(|body| NarRecord::from_bytes(NAR, &body)).transpose()
}

/// The same as the writer sees it.
pub(super) fn record_in(txn: &WriteTransaction, id: u64) -> Result<Option<NarRecord>, Fault> {
    NAR.get_in(txn, &id.to_be_bytes())?.map(|body| NarRecord::from_bytes(NAR, &body)).transpose()
}

/// Adds a row that landed to the parts of its NAR.
pub(super) fn add_row(parts: &mut Vec<Part>, segment: u32, row: u32) {
    match parts.last_mut() {
        Some(part) if part.segment == segment => part.rows += 1,
        Some(_) | None => parts.push(Part { segment, first_row: row, rows: 1 }),
    }
}

/// The segment that a row lies in.
pub(super) fn segment_of(parts: &[Part], row: u32) -> Option<u32> {
    let holds = |part: &&Part| row >= part.first_row && row - part.first_row < part.rows;
    parts.iter().find(holds).map(|part| part.segment)
}

/// What the index knows of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SegmentRecord {
    /// Bytes that the rows of NARs known to the index take.
    pub(super) count_bytes: u64,
    /// The most it ever counted: about what the file occupies.
    pub(super) peak_bytes: u64,
    /// Rows of ids from here on may lie in it without the index knowing them.
    pub(super) noted_from: Option<u64>,
    /// It is damaged: its NARs are withdrawn, then its file goes. Nothing is read from it or
    /// written to it any more.
    pub(super) failed: bool,
}

impl SegmentRecord {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(26);
        out.extend_from_slice(&self.count_bytes.to_be_bytes());
        out.extend_from_slice(&self.peak_bytes.to_be_bytes());
        out.push(self.noted_from.is_some().into());
        out.extend_from_slice(&self.noted_from.unwrap_or(0).to_be_bytes());
        out.push(self.failed.into());
        out
    }

    pub(super) fn from_bytes(table: Table, body: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(table, body);
        let (count_bytes, peak_bytes) = (reader.u64()?, reader.u64()?);
        let (noted, from, failed) = (reader.flag()?, reader.u64()?, reader.flag()?);
        reader.end()?;
        Ok(Self { count_bytes, peak_bytes, noted_from: noted.then_some(from), failed })
    }
}

/// A narinfo or a document with what its row says beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Small<T> {
    /// The use counter when it was last used.
    pub(super) last_use: u64,
    pub(super) value: T,
}

impl Small<StoredNarInfo> {
    /// The text is printed for the default store directory whatever the configured one: only
    /// base names matter, and they are the same.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let text = self.value.narinfo.print(&StoreDir::default());
        let upstream = self.value.upstream.as_bytes();
        let upstream_len = u16::try_from(upstream.len()).unwrap_or(0);
        let upstream = upstream.get(..usize::from(upstream_len)).unwrap_or_default();
        let mut out = Vec::with_capacity(11 + upstream.len() + text.len());
        out.extend_from_slice(&self.last_use.to_be_bytes());
        out.push(origin_byte(self.value.origin.min(Origin::Ours)));
        out.extend_from_slice(&upstream_len.to_be_bytes());
        out.extend_from_slice(upstream);
        out.extend_from_slice(text.as_bytes());
        out
    }

    pub(super) fn from_bytes(table: Table, body: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(table, body);
        let (last_use, origin, upstream_len) = (reader.u64()?, reader.origin()?, reader.u16()?);
        let upstream = reader.bytes(upstream_len.into())?.to_vec();
        let upstream = String::from_utf8(upstream).map_err(|_| reader.damaged())?;
        let parsed = NarInfo::parse(reader.rest, &StoreDir::default());
        let narinfo = parsed.map_err(|_| reader.damaged())?;
        Ok(Self { last_use, value: StoredNarInfo { narinfo, upstream, origin } })
    }
}

impl Small<(Origin, Vec<u8>)> {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + self.value.1.len());
        out.extend_from_slice(&self.last_use.to_be_bytes());
        out.push(origin_byte(self.value.0.min(Origin::Ours)));
        out.extend_from_slice(&self.value.1);
        out
    }

    pub(super) fn from_bytes(table: Table, body: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(table, body);
        let (last_use, origin) = (reader.u64()?, reader.origin()?);
        Ok(Self { last_use, value: (origin, reader.rest.to_vec()) })
    }
}

/// The use counter in front of a narinfo's or a document's body.
pub(super) fn small_last_use(table: Table, body: &[u8]) -> Result<u64, Fault> {
    Reader::new(table, body).u64()
}

/// A body that is one number.
pub(super) fn number(table: Table, body: &[u8]) -> Result<u64, Fault> {
    let mut reader = Reader::new(table, body);
    let number = reader.u64()?;
    reader.end()?;
    Ok(number)
}

/// A body that is one SHA-256 of a file.
pub(super) fn file_hash(table: Table, body: &[u8]) -> Result<FileHash, Fault> {
    let mut reader = Reader::new(table, body);
    let hash = FileHash::from_bytes(reader.array()?);
    reader.end()?;
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tables::SEGMENT;

    fn record() -> NarRecord {
        let mut parts = Vec::new();
        for (segment, row) in [(3, 0), (3, 1), (4, 2), (4, 3), (4, 4)] {
            add_row(&mut parts, segment, row);
        }
        NarRecord {
            nar_hash: NarHash::from_bytes([1; 32]),
            nar_size: 17,
            file_hash: FileHash::from_bytes([2; 32]),
            file_size: 9,
            origin: Origin::Ours,
            doomed: false,
            changed: true,
            last_use: 5,
            parts,
        }
    }

    #[test]
    fn a_nar_record_comes_back() {
        let record = record();
        let bytes = record.to_bytes();
        assert_eq!(NarRecord::from_bytes(NAR, &bytes).unwrap(), record);
        assert!(NarRecord::from_bytes(NAR, &bytes[..bytes.len() - 1]).is_err());
        let segments: Vec<_> = (0..6).map(|row| segment_of(&record.parts, row)).collect();
        assert_eq!(segments, [Some(3), Some(3), Some(4), Some(4), Some(4), None]);
    }

    #[test]
    fn a_segment_record_comes_back() {
        for noted_from in [None, Some(0), Some(7)] {
            let failed = noted_from == Some(7);
            let record = SegmentRecord { count_bytes: 1, peak_bytes: 2, noted_from, failed };
            assert_eq!(SegmentRecord::from_bytes(SEGMENT, &record.to_bytes()).unwrap(), record);
        }
    }
}
