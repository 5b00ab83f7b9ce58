//! The seam to the file system: what the store asks of a folder and of a file. Tests put a disk
//! here that fails, blocks, tears or forgets ([`fault`]).

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

pub mod fault;

/// The file whose lock says that a process has the folder. It is never removed: a lock on a file
/// that somebody unlinks guards nothing.
const LOCK_NAME: &str = "lock";

/// A folder that holds the store's files.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Opens a file by its name in the folder.
    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>>;
    /// The names of the files in the folder.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Unlinks a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Gives a file another name, durably, in place of what had that name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Bytes free for us, and bytes in all, of the file system.
    fn space(&self) -> io::Result<Space>;
    /// Locks the folder for this process; released when the value is dropped.
    fn lock(&self) -> io::Result<Box<dyn Debug + Send + Sync>>;
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It must not exist yet.
    Create,
    /// Read and write what exists.
    Write,
    /// Only read; writing is an error.
    Read,
}

/// Space of a file system in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free for unprivileged use.
    pub free_bytes: u64,
    /// In all.
    pub total_bytes: u64,
}

/// One open file: the calls that redb makes.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// How long it is.
    fn len_bytes(&self) -> io::Result<u64>;
    /// Fills `out` from `offset`; an error when the file ends before.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Cuts or grows with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Waits until all is on the medium.
    fn sync(&self) -> io::Result<()>;
    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
}

/// A real folder.
#[derive(Debug)]
pub struct Folder {
    /// Its path.
    pub path: PathBuf,
}

impl Folder {
    /// Names that were made or unlinked are durable only once their folder is synced.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Disk for Folder {
    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            Mode::Create => options.write(true).create_new(true),
            Mode::Write => options.write(true),
            Mode::Read => &mut options,
        };
        let file = options.open(path)?;
        if mode == Mode::Create {
            self.sync()?;
        }
        Ok(Box::new(RealFile(file)))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))?;
        self.sync()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))?;
        self.sync()
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn lock(&self) -> io::Result<Box<dyn Debug + Send + Sync>> {
        let path = self.path.join(LOCK_NAME);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.try_lock()?;
        Ok(Box::new(file))
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}
