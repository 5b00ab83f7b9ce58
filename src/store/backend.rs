//! Files of a [`Disk`](super::Disk) as redb wants them, counted; and a scratch file that takes
//! writes in memory, so that a damaged or newer index can be looked at and stays untouched.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::StorageBackend;

use super::disk::DiskFile;
use super::lock;
use crate::metrics::Metrics;

/// Counts what is written to the store's files.
#[derive(Clone)]
pub(super) struct Meters {
    metrics: Metrics,
    written_bytes: Arc<AtomicU64>,
}

impl Meters {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics, written_bytes: Arc::default() }
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    fn wrote(&self, len: usize) {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        self.written_bytes.fetch_add(len, Ordering::Relaxed);
        self.metrics.disk_written_bytes.inc_by(len);
    }
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").field("written_bytes", &self.written_bytes()).finish()
    }
}

/// A file for redb.
#[derive(Debug)]
pub(super) struct Metered {
    pub(super) file: Box<dyn DiskFile>,
    pub(super) meters: Meters,
}

impl StorageBackend for Metered {
    fn len(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)?;
        self.meters.wrote(data.len());
        Ok(())
    }
}

/// Reads a file, keeps writes in memory and forgets them.
#[derive(Debug)]
pub(super) struct Scratch {
    file: Box<dyn DiskFile>,
    state: Mutex<ScratchState>,
}

#[derive(Debug)]
struct ScratchState {
    len: u64,
    writes: Vec<(u64, Vec<u8>)>,
}

impl Scratch {
    pub(super) fn new(file: Box<dyn DiskFile>) -> io::Result<Self> {
        let len = file.len_bytes()?;
        Ok(Self { file, state: Mutex::new(ScratchState { len, writes: Vec::new() }) })
    }
}

/// Copies into `out`, which begins at `offset`, what `data` at `start` has of it.
fn overlay(offset: u64, out: &mut [u8], start: u64, data: &[u8]) {
    let position = |distance: u64| usize::try_from(distance).unwrap_or(usize::MAX);
    let (skip_out, skip_data) =
        (position(start.saturating_sub(offset)), position(offset.saturating_sub(start)));
    if let (Some(out), Some(data)) = (out.get_mut(skip_out..), data.get(skip_data..)) {
        for (to, from) in out.iter_mut().zip(data) {
            *to = *from;
        }
    }
}

impl StorageBackend for Scratch {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.state).len)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = lock(&self.state);
        let end = offset.saturating_add(u64::try_from(out.len()).unwrap_or(u64::MAX));
        if end > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.fill(0);
        let there = self.file.len_bytes()?.saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(out.len());
        if let Some(there) = out.get_mut(..there) {
            self.file.read(offset, there)?;
        }
        for (start, data) in &state.writes {
            overlay(offset, out, *start, data);
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        lock(&self.state).len = len;
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        lock(&self.state).writes.push((offset, data.to_vec()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_lies_over_what_it_meets() {
        let mut out = *b"........";
        overlay(10, &mut out, 12, b"ab");
        overlay(10, &mut out, 8, b"xyz");
        overlay(10, &mut out, 17, b"12345");
        overlay(10, &mut out, 30, b"far");
        overlay(10, &mut out, 0, b"before");
        assert_eq!(&out, b"z.ab...1");
    }
}
