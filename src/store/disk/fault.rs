//! A disk that does what cards do: it stands before another disk and, when a test says so, fails
//! a call, tears a write, blocks, or loses its power. With [`Memory`](super::memory::Memory)
//! behind it, a pulled plug can be followed by the disk that is found afterwards:
//!
//! ```
//! use snowberry::store::disk::{fault::{Call, Faulty, Trouble}, memory::Memory};
//! let memory = Memory::new(1 << 30);
//! let disk = Faulty::new(memory.clone());
//! disk.fail_nth(Call::Write, 17, Trouble::Eio); // the 17th write from now on, once
//! disk.fail(Call::Sync, Trouble::Enospc); // every sync, until `well`
//! disk.well();
//! disk.shut(Call::Read); // reads wait, until `well`
//! disk.pull_plug(); // nothing reaches the disk any more
//! let found = Faulty::new(memory.after_power_cut(42));
//! ```

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::super::lock;
use super::{Disk, DiskFile, Mode, Space};

/// What the store may ask of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// Opening a file, making one.
    Open,
    /// Reading from a file.
    Read,
    /// Writing to a file.
    Write,
    /// Syncing a file.
    Sync,
    /// Cutting a file or making it longer.
    SetLen,
    /// All that concerns the folder: names, removing, renaming, space, the lock.
    Folder,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Open, Self::Read, Self::Write, Self::Sync, Self::SetLen, Self::Folder];
}

/// What comes of a call that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// `EIO`; nothing was done.
    Eio,
    /// `ENOSPC`; nothing was done.
    Enospc,
    /// The first half of a write reaches the disk, then `EIO`. For other calls the same as `Eio`.
    Torn,
}

impl Trouble {
    fn error(self) -> io::Error {
        match self {
            // The kind for EIO has no stable name.
            Self::Eio | Self::Torn => io::Error::from_raw_os_error(EIO),
            Self::Enospc => io::ErrorKind::StorageFull.into(),
        }
    }
}

/// The number of `EIO`, the same on every Linux.
const EIO: i32 = 5;

#[derive(Debug, Default)]
struct Switches {
    /// Files to which switches apply: those whose name begins so.
    prefix: String,
    /// Calls so far, and, of each kind, the one that fails.
    counts: HashMap<Call, u64>,
    nth: HashMap<Call, (u64, Trouble)>,
    all: HashMap<Call, Trouble>,
    shut: Vec<Call>,
    waiting: usize,
    calls: u64,
    pull_at: Option<u64>,
    pulled: bool,
}

#[derive(Debug)]
struct Inner {
    below: Arc<dyn Disk>,
    switches: Mutex<Switches>,
    changed: Condvar,
}

/// See the module. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct Faulty {
    inner: Arc<Inner>,
}

impl Faulty {
    /// A disk that is well until told otherwise.
    pub fn new(below: impl Disk) -> Self {
        let (below, changed) = (Arc::new(below), Condvar::new());
        Self { inner: Arc::new(Inner { below, switches: Mutex::default(), changed }) }
    }

    fn change(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut lock(&self.inner.switches));
        self.inner.changed.notify_all();
    }

    /// From now on switches concern only files whose name begins so (`index`, `nars-3.`); calls
    /// for the folder only while it is empty. A pulled plug concerns all.
    pub fn only(&self, prefix: &str) {
        self.change(|switches| prefix.clone_into(&mut switches.prefix));
    }

    /// The `nth` such call from now on (1: the next) fails, once.
    pub fn fail_nth(&self, call: Call, nth: u64, trouble: Trouble) {
        self.change(|switches| {
            let count = switches.counts.get(&call).copied().unwrap_or(0);
            switches.nth.insert(call, (count + nth, trouble));
        });
    }

    /// Every such call fails until [`Faulty::well`].
    pub fn fail(&self, call: Call, trouble: Trouble) {
        self.change(|switches| {
            switches.all.insert(call, trouble);
        });
    }

    /// Such calls wait until [`Faulty::well`].
    pub fn shut(&self, call: Call) {
        self.change(|switches| switches.shut.push(call));
    }

    /// Calls that wait at a shut gate.
    pub fn waiting(&self) -> usize {
        lock(&self.inner.switches).waiting
    }

    /// The disk does what it is asked again. A pulled plug stays pulled.
    pub fn well(&self) {
        self.change(|switches| {
            switches.nth.clear();
            switches.all.clear();
            switches.shut.clear();
            switches.prefix.clear();
        });
    }

    /// Calls of all kinds so far.
    pub fn calls(&self) -> u64 {
        lock(&self.inner.switches).calls
    }

    /// Nothing reaches the disk any more: every call is `EIO`.
    pub fn pull_plug(&self) {
        self.change(|switches| switches.pulled = true);
    }

    /// The plug is pulled at the `nth` call of any kind from now on.
    pub fn pull_plug_at(&self, nth: u64) {
        self.change(|switches| switches.pull_at = Some(switches.calls + nth));
    }

    /// Whether the plug is pulled.
    pub fn is_pulled(&self) -> bool {
        lock(&self.inner.switches).pulled
    }

    /// A call is about to be made: waits where it has to, and says what comes of it.
    fn meet(&self, call: Call, name: &str) -> Result<(), Trouble> {
        let mut switches = lock(&self.inner.switches);
        switches.calls += 1;
        if switches.pull_at.is_some_and(|at| switches.calls >= at) {
            switches.pulled = true;
        }
        while switches.shut.contains(&call)
            && name.starts_with(&switches.prefix)
            && !switches.pulled
        {
            switches.waiting += 1;
            let woken = self.inner.changed.wait(switches);
            switches = woken.unwrap_or_else(PoisonError::into_inner);
            switches.waiting -= 1;
        }
        if switches.pulled {
            return Err(Trouble::Eio);
        }
        if !name.starts_with(&switches.prefix) {
            return Ok(());
        }
        let count = switches.counts.entry(call).or_default();
        *count += 1;
        let count = *count;
        if let Some((_, trouble)) = switches.nth.get(&call).copied().filter(|(at, _)| *at == count)
        {
            switches.nth.remove(&call);
            return Err(trouble);
        }
        switches.all.get(&call).map_or(Ok(()), |trouble| Err(*trouble))
    }

    fn check(&self, call: Call, name: &str) -> io::Result<()> {
        self.meet(call, name).map_err(Trouble::error)
    }
}

impl Disk for Faulty {
    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        self.check(Call::Open, name)?;
        let below = self.inner.below.open(name, mode)?;
        Ok(Box::new(FaultyFile { below, name: name.to_owned(), disk: self.clone() }))
    }
    fn names(&self) -> io::Result<Vec<String>> {
        self.check(Call::Folder, "")?;
        self.inner.below.names()
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.check(Call::Folder, "")?;
        self.inner.below.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check(Call::Folder, "")?;
        self.inner.below.rename(from, to)
    }
    fn space(&self) -> io::Result<Space> {
        self.check(Call::Folder, "")?;
        self.inner.below.space()
    }
    fn lock(&self) -> io::Result<Box<dyn Debug + Send + Sync>> {
        self.check(Call::Folder, "")?;
        self.inner.below.lock()
    }
}

#[derive(Debug)]
struct FaultyFile {
    below: Box<dyn DiskFile>,
    name: String,
    disk: Faulty,
}

impl DiskFile for FaultyFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.below.len_bytes()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.check(Call::Read, &self.name)?;
        self.below.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.check(Call::SetLen, &self.name)?;
        self.below.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.check(Call::Sync, &self.name)?;
        self.below.sync()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let met = self.disk.meet(Call::Write, &self.name);
        match met {
            Ok(()) => self.below.write(offset, data),
            Err(trouble) => {
                if trouble == Trouble::Torn {
                    self.below.write(offset, data.split_at(data.len() / 2).0)?;
                }
                Err(trouble.error())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;

    fn disk() -> (Faulty, Box<dyn DiskFile>) {
        let disk = Faulty::new(Memory::new(1 << 20));
        let file = disk.open("index", Mode::Create).unwrap();
        (disk, file)
    }

    #[test]
    fn the_nth_call_fails_once_and_a_switch_until_well() {
        let (disk, file) = disk();
        disk.fail_nth(Call::Write, 2, Trouble::Torn);
        file.write(0, b"aaaa").unwrap();
        assert_eq!(file.write(0, b"bbbb").unwrap_err().raw_os_error(), Some(EIO));
        let mut out = [0; 4];
        file.read(0, &mut out).unwrap();
        assert_eq!(&out, b"bbaa");
        disk.fail(Call::Write, Trouble::Enospc);
        for _ in 0..2 {
            let error = file.write(0, b"cccc").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        disk.only("nars");
        file.write(0, b"dddd").unwrap();
        disk.only("");
        assert!(file.write(0, b"e").is_err());
        disk.well();
        file.write(0, b"e").unwrap();
    }

    #[test]
    fn a_shut_gate_holds_calls_and_a_pulled_plug_ends_all() {
        let (disk, file) = disk();
        disk.shut(Call::Sync);
        let blocked = std::thread::spawn(move || (file.sync(), file));
        while disk.waiting() == 0 {
            std::thread::yield_now();
        }
        disk.well();
        let (synced, file) = blocked.join().unwrap();
        synced.unwrap();
        disk.pull_plug_at(2);
        file.sync().unwrap();
        assert!(file.sync().is_err() && disk.is_pulled());
        disk.well();
        assert!(file.sync().is_err() && disk.names().is_err());
    }
}
