//! A disk in memory that knows what was synced: after a pulled plug only that is sure to be there,
//! and of the rest any sectors. For tests; nothing of the cache itself uses it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::super::lock;
use super::{Disk, DiskFile, Mode, Space};

/// What a file is kept in.
const PAGE: usize = 4096;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// A folder of files in memory. Clones are the same folder. Names are durable at once, as
/// [`Folder`](super::Folder) makes them; the bytes of a file are only with its sync.
#[derive(Clone, Debug)]
pub struct Memory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    files: Mutex<BTreeMap<String, Arc<Mutex<Content>>>>,
    capacity_bytes: u64,
    locked: Arc<AtomicBool>,
}

type Pages = HashMap<u64, Arc<[u8; PAGE]>>;

/// One file: what it holds, what of it was synced, and the sectors in which the two may differ.
#[derive(Clone, Default)]
struct Content {
    len: u64,
    pages: Pages,
    synced_len: u64,
    synced: Pages,
    dirty: BTreeSet<u64>,
}

impl Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("len", &self.len).finish_non_exhaustive()
    }
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The pieces of a range that lie in one unit of `unit` bytes each: unit, offset in it, length.
fn pieces(offset: u64, len: usize, unit: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + wide(done);
        let inside = usize::try_from(at % wide(unit)).unwrap_or(0);
        let piece = (unit - inside).min(len - done);
        done += piece;
        (piece > 0).then_some((at / wide(unit), inside, piece))
    })
}

impl Content {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.saturating_add(wide(out.len())) > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = out;
        for (page, inside, len) in pieces(offset, rest.len(), PAGE) {
            let Some((piece, after)) = rest.split_at_mut_checked(len) else { break };
            let kept = self.pages.get(&page).and_then(|page| page.get(inside..inside + len));
            match kept {
                Some(kept) => piece.copy_from_slice(kept),
                None => piece.fill(0),
            }
            rest = after;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut rest = data;
        for (page, inside, len) in pieces(offset, data.len(), PAGE) {
            let Some((piece, after)) = rest.split_at_checked(len) else { break };
            let page = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            if let Some(kept) = Arc::make_mut(page).get_mut(inside..inside + len) {
                kept.copy_from_slice(piece);
            }
            rest = after;
        }
        self.dirty.extend(pieces(offset, data.len(), SECTOR).map(|(sector, _, _)| sector));
        self.len = self.len.max(offset.saturating_add(wide(data.len())));
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let tail = usize::try_from(len % wide(PAGE)).unwrap_or(0);
            if tail > 0 && self.pages.contains_key(&(len / wide(PAGE))) {
                self.write(len, [0; PAGE].split_at(tail).1);
            }
            let first_gone = len.div_ceil(wide(PAGE));
            let gone: Vec<u64> =
                self.pages.keys().copied().filter(|page| *page >= first_gone).collect();
            for page in gone {
                self.pages.remove(&page);
                let sectors = wide(PAGE / SECTOR);
                self.dirty.extend(page * sectors..(page + 1) * sectors);
            }
        }
        self.len = len;
    }

    fn sync(&mut self) {
        let sectors = wide(PAGE / SECTOR);
        let pages: BTreeSet<u64> = self.dirty.iter().map(|sector| sector / sectors).collect();
        for page in pages {
            match self.pages.get(&page) {
                Some(kept) => drop(self.synced.insert(page, kept.clone())),
                None => drop(self.synced.remove(&page)),
            }
        }
        self.dirty.clear();
        self.synced_len = self.len;
    }

    /// What the medium holds after the plug was pulled.
    fn after_power_cut(&self, chance: &mut Chance) -> Self {
        let mut left = Self { len: self.synced_len, pages: self.synced.clone(), ..Self::default() };
        if chance.coin() {
            left.set_len(self.len);
        }
        for sector in &self.dirty {
            let start = sector * wide(SECTOR);
            if start + wide(SECTOR) > left.len || !chance.coin() {
                continue;
            }
            let mut bytes = [0; SECTOR];
            // What a shorter file no longer has was not written.
            if self.read(start, &mut bytes).is_ok() {
                left.write(start, &bytes);
            }
        }
        left.dirty.clear();
        left.synced_len = left.len;
        left.synced = left.pages.clone();
        left
    }
}

/// Coins from a seed (splitmix64), so that a failure can be replayed.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn coin(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) & 1 == 1
    }
}

impl Memory {
    /// An empty folder on a disk of so many bytes; what is more is `ENOSPC`.
    pub fn new(capacity_bytes: u64) -> Self {
        let files = Mutex::default();
        Self { inner: Arc::new(Inner { files, capacity_bytes, locked: Arc::default() }) }
    }

    /// The disk that is found after the plug was pulled now: all that was synced, and of the rest
    /// sectors of 512 bytes, chosen by the seed. This one is left as it is.
    #[must_use]
    pub fn after_power_cut(&self, seed: u64) -> Self {
        let mut chance = Chance(seed);
        let left = Self::new(self.inner.capacity_bytes);
        for (name, content) in &*lock(&self.inner.files) {
            let content = lock(content).after_power_cut(&mut chance);
            lock(&left.inner.files).insert(name.clone(), Arc::new(Mutex::new(content)));
        }
        left
    }

    /// Bytes of the pages that the files occupy.
    pub fn occupied_bytes(&self) -> u64 {
        let files = lock(&self.inner.files);
        files.values().map(|content| wide(lock(content).pages.len() * PAGE)).sum()
    }

    /// Copies all files of another folder, or into another folder ([`Memory`] to real or back).
    pub fn copy(from: &dyn Disk, to: &dyn Disk) -> io::Result<()> {
        for name in from.names()? {
            let (read, write) = (from.open(&name, Mode::Read)?, to.open(&name, Mode::Create)?);
            let len = read.len_bytes()?;
            write.set_len(len)?;
            let mut buffer = [0; PAGE];
            for at in (0..len).step_by(PAGE) {
                let piece = usize::try_from(len - at).unwrap_or(PAGE).min(PAGE);
                let Some(buffer) = buffer.get_mut(..piece) else { break };
                read.read(at, buffer)?;
                // Holes stay holes.
                if buffer.iter().any(|byte| *byte != 0) {
                    write.write(at, buffer)?;
                }
            }
            write.sync()?;
        }
        Ok(())
    }

    fn content(&self, name: &str) -> io::Result<Arc<Mutex<Content>>> {
        let content = lock(&self.inner.files).get(name).cloned();
        content.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for Memory {
    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        let content = match mode {
            Mode::Create => {
                let mut files = lock(&self.inner.files);
                if files.contains_key(name) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                files.entry(name.to_owned()).or_default().clone()
            }
            Mode::Write | Mode::Read => self.content(name)?,
        };
        Ok(Box::new(MemoryFile { content, disk: self.clone(), mode }))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.inner.files).keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = lock(&self.inner.files).remove(name);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = lock(&self.inner.files);
        let content = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), content);
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let total_bytes = self.inner.capacity_bytes;
        let free_bytes = total_bytes.saturating_sub(self.occupied_bytes());
        Ok(Space { free_bytes, total_bytes })
    }

    fn lock(&self) -> io::Result<Box<dyn Debug + Send + Sync>> {
        if self.inner.locked.swap(true, Ordering::AcqRel) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Held(self.inner.locked.clone())))
    }
}

/// The folder's lock while somebody has it.
#[derive(Debug)]
struct Held(Arc<AtomicBool>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[derive(Debug)]
struct MemoryFile {
    content: Arc<Mutex<Content>>,
    disk: Memory,
    mode: Mode,
}

impl MemoryFile {
    fn writable(&self) -> io::Result<()> {
        if self.mode == Mode::Read {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(lock(&self.content).len)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        lock(&self.content).read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        lock(&self.content).set_len(len);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        lock(&self.content).sync();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writable()?;
        // Holes that are filled are new; nothing else is asked how full the disk is.
        let new = {
            let content = lock(&self.content);
            let missing = |(page, _, _): &(u64, _, _)| !content.pages.contains_key(page);
            pieces(offset, data.len(), PAGE).filter(missing).count()
        };
        if new > 0 && self.disk.space()?.free_bytes < wide(new * PAGE) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        lock(&self.content).write(offset, data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(disk: &Memory, name: &str) -> Vec<u8> {
        let file = disk.open(name, Mode::Read).unwrap();
        let mut out = vec![0; usize::try_from(file.len_bytes().unwrap()).unwrap()];
        file.read(0, &mut out).unwrap();
        out
    }

    #[test]
    fn what_was_synced_is_there_after_a_power_cut() {
        let disk = Memory::new(1 << 20);
        let file = disk.open("a", Mode::Create).unwrap();
        file.write(100, &[1; 9000]).unwrap();
        file.sync().unwrap();
        let synced = bytes(&disk, "a");
        assert_eq!(bytes(&disk.after_power_cut(1), "a"), synced);
        file.write(4096, &[2; 8192]).unwrap();
        let now = bytes(&disk, "a");
        let mut seen = BTreeSet::new();
        for seed in 0..20 {
            let left = bytes(&disk.after_power_cut(seed), "a");
            assert!(left.len() == synced.len() || left.len() == now.len());
            let mut grown = synced.clone();
            grown.resize(now.len(), 0);
            for (at, sector) in left.chunks(SECTOR).enumerate() {
                let fits = |bytes: &[u8]| bytes[at * SECTOR..].starts_with(sector);
                assert!(fits(&grown) || fits(&now), "{seed}: {at}");
            }
            assert_eq!(bytes(&disk.after_power_cut(seed).after_power_cut(9), "a"), left);
            seen.insert(left);
        }
        assert!(seen.len() > 10);
        file.sync().unwrap();
        assert_eq!(bytes(&disk.after_power_cut(1), "a"), now);
    }

    #[test]
    fn a_file_that_was_cut_is_zero_where_it_grows_again() {
        let disk = Memory::new(1 << 20);
        let file = disk.open("a", Mode::Create).unwrap();
        file.write(0, &[7; 10_000]).unwrap();
        file.sync().unwrap();
        file.set_len(5000).unwrap();
        file.set_len(10_000).unwrap();
        let mut expected = vec![7; 5000];
        expected.resize(10_000, 0);
        assert_eq!(bytes(&disk, "a"), expected);
        file.sync().unwrap();
        assert_eq!(bytes(&disk.after_power_cut(3), "a"), expected);
    }

    #[test]
    fn a_full_disk_says_so_and_a_locked_folder_too() {
        let disk = Memory::new(8192);
        let file = disk.open("a", Mode::Create).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write(0, &[1; 8192]).unwrap();
        file.write(10, &[2; 20]).unwrap();
        assert_eq!(file.write(8192, &[1]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        let held = disk.lock().unwrap();
        assert_eq!(disk.lock().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        assert!(disk.lock().is_ok());
        let copy = Memory::new(1 << 20);
        drop(file);
        disk.remove("a").unwrap();
        disk.open("b", Mode::Create).unwrap().write(3, b"xyz").unwrap();
        Memory::copy(&disk, &copy).unwrap();
        assert_eq!(bytes(&copy, "b"), b"\0\0\0xyz");
    }
}
