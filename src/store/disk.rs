//! The seam to the file system: what the store asks of a folder and of a file. Tests put a disk
//! here that fails, blocks, tears or forgets.

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;

/// A folder that holds the store's files.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Opens a file by its name in the folder.
    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>>;
    /// The names of the files in the folder.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Unlinks a file.
    fn remove(&self, name: &str) -> io::Result<()>;
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

/// One open file: the six calls that redb makes.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `out` from `offset`.
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

impl Disk for Folder {
    fn open(&self, _name: &str, _mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        todo!()
    }
    fn names(&self) -> io::Result<Vec<String>> {
        todo!()
    }
    fn remove(&self, _name: &str) -> io::Result<()> {
        todo!()
    }
    fn space(&self) -> io::Result<Space> {
        todo!()
    }
    fn lock(&self) -> io::Result<Box<dyn Debug + Send + Sync>> {
        todo!()
    }
}
