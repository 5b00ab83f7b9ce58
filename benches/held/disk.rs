//! A disk in memory on which hundreds of gibibytes fit, as long as they are of one byte: a page is
//! kept without the run of [`FILLER`] at its start or its end, and every byte reads as written. It
//! can crash: from then on nothing that was opened through it works, and what was written stays.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use snowberry::store::Disk;
use snowberry::store::disk::{DiskFile, Mode, Space};

/// The byte that NARs are made of here.
pub(crate) const FILLER: u8 = 0xa5;

/// redb's own page, so that a write rarely meets half of one.
const PAGE_LEN: usize = 4096;

/// What the file system is said to hold: more than any budget asked of it.
const SPACE_BYTES: u64 = 4 << 40;

type Page = [u8; PAGE_LEN];

/// What a page has that is not [`FILLER`], and where that begins.
type Part = (usize, Box<[u8]>);

#[derive(Debug, Default)]
struct Content {
    len: u64,
    /// A bit for each page that is all [`FILLER`].
    filler: Vec<u64>,
    /// Pages that are partly [`FILLER`], or not at all. A page that is neither here nor above is
    /// zeros.
    parts: HashMap<u64, Part>,
}

impl Content {
    fn page(&self, number: u64) -> Page {
        let Some((start, bytes)) = self.parts.get(&number) else {
            return if self.is_filler(number) { [FILLER; PAGE_LEN] } else { [0; PAGE_LEN] };
        };
        let mut page = [FILLER; PAGE_LEN];
        if let Some(to) = page.get_mut(*start..*start + bytes.len()) {
            to.copy_from_slice(bytes);
        }
        page
    }

    fn is_filler(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|word| self.filler.get(word));
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn set_page(&mut self, number: u64, page: &Page) {
        let word = usize::try_from(number / 64).unwrap_or(usize::MAX);
        if self.filler.len() <= word {
            self.filler.resize(word + 1, 0);
        }
        let Some(word) = self.filler.get_mut(word) else { return };
        if *page == [FILLER; PAGE_LEN] {
            *word |= 1 << (number % 64);
            self.parts.remove(&number);
            return;
        }
        *word &= !(1 << (number % 64));
        let start = page.iter().position(|byte| *byte != FILLER).unwrap_or(0);
        let end = page.iter().rposition(|byte| *byte != FILLER).map_or(PAGE_LEN, |last| last + 1);
        self.parts.insert(number, (start, page.get(start..end).unwrap_or_default().into()));
    }

    /// The pages that a span touches: number, place in the page, length.
    fn spans(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
        let page_len = PAGE_LEN as u64;
        let mut at = offset;
        let mut left = len;
        std::iter::from_fn(move || {
            let within = usize::try_from(at % page_len).ok()?;
            let number = at / page_len;
            let take = left.min(PAGE_LEN - within);
            at += u64::try_from(take).ok()?;
            left -= take;
            (take > 0).then_some((number, within, take))
        })
    }

    fn read(&self, offset: u64, mut out: &mut [u8]) {
        for (number, within, take) in Self::spans(offset, out.len()) {
            let Some((to, rest)) = out.split_at_mut_checked(take) else { return };
            if let Some(from) = self.page(number).get(within..within + take) {
                to.copy_from_slice(from);
            }
            out = rest;
        }
    }

    fn write(&mut self, offset: u64, mut data: &[u8]) {
        for (number, within, take) in Self::spans(offset, data.len()) {
            let Some((from, rest)) = data.split_at_checked(take) else { return };
            let mut page = if take == PAGE_LEN { [0; PAGE_LEN] } else { self.page(number) };
            if let Some(to) = page.get_mut(within..within + take) {
                to.copy_from_slice(from);
            }
            self.set_page(number, &page);
            data = rest;
        }
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let whole = len / PAGE_LEN as u64;
            self.parts.retain(|number, _| *number <= whole);
            let mut page = self.page(whole);
            let within = usize::try_from(len % PAGE_LEN as u64).unwrap_or(0);
            page.iter_mut().skip(within).for_each(|byte| *byte = 0);
            self.filler.truncate(usize::try_from(whole / 64 + 1).unwrap_or(usize::MAX));
            for after in whole + 1..(whole / 64 + 1) * 64 {
                if self.is_filler(after) {
                    self.set_page(after, &[0; PAGE_LEN]);
                    self.parts.remove(&after);
                }
            }
            self.set_page(whole, &page);
        }
        self.len = len;
    }
}

type Files = Mutex<BTreeMap<String, Arc<RwLock<Content>>>>;

/// The disk. What it holds outlives it: [`Memory::crash`] gives the next one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    files: Arc<Files>,
    crashed: Arc<AtomicBool>,
    written_bytes: Arc<AtomicU64>,
}

impl Memory {
    /// Nothing works any more through this one; the disk returned holds what was written, synced
    /// or not, as after `kill -9`.
    pub(crate) fn crash(&self) -> Self {
        self.crashed.store(true, Ordering::SeqCst);
        Self { files: self.files.clone(), ..Self::default() }
    }

    /// Bytes written through it.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    fn alive(&self) -> io::Result<()> {
        if self.crashed.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk has crashed"));
        }
        Ok(())
    }

    fn files(&self) -> io::Result<MutexGuard<'_, BTreeMap<String, Arc<RwLock<Content>>>>> {
        self.alive()?;
        Ok(self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Disk for Memory {
    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        let mut files = self.files()?;
        let content = match (files.get(name), mode) {
            (Some(_), Mode::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(content), Mode::Write | Mode::Read) => content.clone(),
            (None, Mode::Create) => files.entry(name.to_owned()).or_default().clone(),
            (None, Mode::Write | Mode::Read) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Box::new(Handle { disk: self.clone(), content, writable: mode != Mode::Read }))
    }
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.files()?.keys().cloned().collect())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.files()?.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files()?;
        let content = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), content);
        Ok(())
    }
    fn space(&self) -> io::Result<Space> {
        self.alive()?;
        Ok(Space { free_bytes: SPACE_BYTES, total_bytes: SPACE_BYTES })
    }
    fn lock(&self) -> io::Result<Box<dyn std::fmt::Debug + Send + Sync>> {
        self.alive()?;
        Ok(Box::new(()))
    }
}

#[derive(Debug)]
struct Handle {
    disk: Memory,
    content: Arc<RwLock<Content>>,
    writable: bool,
}

impl Handle {
    fn change(&self, act: impl FnOnce(&mut Content)) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        // Asked under the lock: a write that a crash overtakes is not done.
        self.disk.alive()?;
        act(&mut content);
        Ok(())
    }
}

impl DiskFile for Handle {
    fn len_bytes(&self) -> io::Result<u64> {
        self.disk.alive()?;
        Ok(self.content.read().unwrap_or_else(PoisonError::into_inner).len)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.alive()?;
        let content = self.content.read().unwrap_or_else(PoisonError::into_inner);
        let end = offset + u64::try_from(out.len()).unwrap_or(u64::MAX);
        if end > content.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        content.read(offset, out);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|content| content.set_len(len))
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.alive()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.disk.written_bytes.fetch_add(len, Ordering::Relaxed);
        self.change(|content| {
            content.len = content.len.max(offset + len);
            content.write(offset, data);
        })
    }
}
