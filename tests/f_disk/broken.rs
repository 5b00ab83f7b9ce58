//! A real folder whose reads, writes or syncs fail or stand still as long as a test wants.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use snowberry::store::disk::{Disk, DiskFile, Folder, Mode, Space};

/// What a stuck card takes at most before its driver gives up.
const STUCK_MAX: Duration = Duration::from_mins(1);

/// Which calls go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Read,
    Write,
    Sync,
}

/// How they go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// EIO.
    Fails,
    /// They do not return until the disk is mended, or for a minute.
    Stuck,
}

#[derive(Debug, Default)]
struct State {
    broken: Option<(Call, How)>,
    /// How many calls went wrong.
    hits: usize,
}

/// The switch of a disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Switch(Arc<(Mutex<State>, Condvar)>);

impl Switch {
    pub(crate) fn break_it(&self, call: Call, how: How) {
        let mut state = self.0.0.lock().unwrap();
        *state = State { broken: Some((call, how)), hits: 0 };
    }

    pub(crate) fn mend(&self) {
        self.0.0.lock().unwrap().broken = None;
        self.0.1.notify_all();
    }

    pub(crate) fn hits(&self) -> usize {
        self.0.0.lock().unwrap().hits
    }

    fn pass(&self, call: Call) -> io::Result<()> {
        let mut state = self.0.0.lock().unwrap();
        let Some((_, how)) = state.broken.filter(|(broken, _)| *broken == call) else {
            return Ok(());
        };
        state.hits += 1;
        match how {
            // Linux's EIO.
            How::Fails => Err(io::Error::from_raw_os_error(5)),
            How::Stuck => {
                let stuck = |state: &mut State| state.broken.is_some();
                drop(self.0.1.wait_timeout_while(state, STUCK_MAX, stuck).unwrap());
                Ok(())
            }
        }
    }
}

/// The folder with its switch.
#[derive(Debug)]
pub(crate) struct BrokenDisk {
    folder: Folder,
    switch: Switch,
}

impl BrokenDisk {
    pub(crate) fn new(path: PathBuf, switch: &Switch) -> Self {
        Self { folder: Folder { path }, switch: switch.clone() }
    }
}

impl Disk for BrokenDisk {
    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        if mode == Mode::Create {
            self.switch.pass(Call::Write)?;
        }
        let file = self.folder.open(name, mode)?;
        Ok(Box::new(BrokenFile { file, switch: self.switch.clone() }))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.switch.pass(Call::Read)?;
        self.folder.names()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.switch.pass(Call::Write)?;
        self.folder.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.switch.pass(Call::Write)?;
        self.folder.rename(from, to)
    }

    fn space(&self) -> io::Result<Space> {
        self.switch.pass(Call::Read)?;
        self.folder.space()
    }

    fn lock(&self) -> io::Result<Box<dyn std::fmt::Debug + Send + Sync>> {
        self.folder.lock()
    }
}

#[derive(Debug)]
struct BrokenFile {
    file: Box<dyn DiskFile>,
    switch: Switch,
}

impl DiskFile for BrokenFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.switch.pass(Call::Read)?;
        self.file.len_bytes()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.switch.pass(Call::Read)?;
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.switch.pass(Call::Write)?;
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.switch.pass(Call::Sync)?;
        self.file.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.switch.pass(Call::Write)?;
        self.file.write(offset, data)
    }
}
