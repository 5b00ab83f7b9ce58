//! The boot partition: read-only at rest, and made writable for the moment in which something
//! changes. A file there is replaced whole, and what it held of secrets is written over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::mount::Mount;
use crate::durable;

/// Longest settings file: a house with thirty upstreams has a tenth of it.
const FILE_LEN_MAX: u64 = 64 << 10;

/// Names that are looked at in the folder: the firmware's files and device trees are some hundred.
const NAMES_MAX: usize = 4096;

/// What a file has until it is whole.
const NEW: &str = "new";

/// The partition.
pub(super) struct Boot<'a> {
    folder: &'a Path,
    mount: &'a dyn Mount,
    is_writable: bool,
    /// Held while it is, so that no other part of the appliance writes when it is at rest again.
    lock: Option<File>,
}

impl<'a> Boot<'a> {
    pub(super) fn new(folder: &'a Path, mount: &'a dyn Mount) -> Self {
        Self { folder, mount, is_writable: false, lock: None }
    }

    /// The names in its folder. None at all means that it is not mounted.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(self.folder)?.take(NAMES_MAX);
        let names = names.filter_map(Result::ok);
        let mut names: Vec<String> =
            names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// `None`: it is not there. The error is a sentence.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        let file = match File::open(self.folder.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("it cannot be read: {error}")),
        };
        if !file.metadata().is_ok_and(|it| it.is_file()) {
            return Err("it is no file".to_owned());
        }
        let mut raw = Vec::new();
        file.take(FILE_LEN_MAX + 1)
            .read_to_end(&mut raw)
            .map_err(|error| format!("it cannot be read: {error}"))?;
        if u64::try_from(raw.len()).is_ok_and(|len| len <= FILE_LEN_MAX) {
            return Ok(Some(raw));
        }
        Err(format!("it has more than {} KiB, so it is another file", FILE_LEN_MAX >> 10))
    }

    /// Replaces a file, unless it is so already.
    pub(super) fn write(&mut self, name: &str, text: &[u8]) -> io::Result<()> {
        if fs::read(self.folder.join(name)).is_ok_and(|found| found == text) {
            return Ok(());
        }
        self.replace(name, text)
    }

    pub(super) fn remove(&mut self, name: &str) -> io::Result<()> {
        let path = self.folder.join(name);
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        self.open()?;
        fs::remove_file(path)?;
        self.sync_folder()
    }

    /// Replaces a file and writes over what it had before, where it had it: its place on the card is
    /// free afterwards, and would keep the text for long.
    pub(super) fn wipe(&mut self, name: &str, text: &[u8]) -> io::Result<()> {
        self.open()?;
        let mut old = OpenOptions::new().write(true).open(self.folder.join(name))?;
        let len = old.metadata()?.len().min(FILE_LEN_MAX);
        self.replace(name, text)?;
        old.seek(SeekFrom::Start(0))?;
        io::copy(&mut io::repeat(b' ').take(len), &mut old)?;
        old.sync_all()
    }

    /// All or nothing, as far as FAT can.
    fn replace(&mut self, name: &str, text: &[u8]) -> io::Result<()> {
        self.open()?;
        let path = self.folder.join(name);
        let new = self.new_name(name);
        let mut file = File::create(&new)?;
        let written = file.write_all(text).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| fs::rename(&new, path)) {
            drop(fs::remove_file(new));
            return Err(error);
        }
        self.sync_folder()
    }

    fn new_name(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.{NEW}"))
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(self.folder)?.sync_all()
    }

    fn open(&mut self) -> io::Result<()> {
        if self.lock.is_none() {
            self.lock = Some(durable::lock_folder(self.folder)?);
            self.is_writable = self.mount.make_writable(self.folder)?;
        }
        Ok(())
    }

    /// Back to rest.
    pub(super) fn close(self) -> io::Result<()> {
        if self.is_writable { self.mount.make_read_only(self.folder) } else { Ok(()) }
    }
}
