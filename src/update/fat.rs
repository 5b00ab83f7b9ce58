//! The boot partition: writable only while something is written, files replaced whole, everything on
//! the card before the next step.
//!
//! A FAT has no journal. Replacing a file is: write another one, make it durable, then rename. Linux
//! does the rename by changing the one directory entry of 32 bytes in place, in one sector, so after a
//! power cut the name leads to the old contents or to the new ones. The old file is held open until the
//! new name is on the card, so that its clusters are not given free before. What may be left over is
//! the second name of a file, which shares its clusters with the first: writing to it or removing it
//! would take them from under `config.txt`, so it is set aside and never touched again. Only a card
//! that tears a sector it was writing can lose the name; the firmware then finds no `config.txt`, and
//! the card must be flashed anew (which keeps the data partition).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Advice, StatVfsMountFlags, fadvise, statvfs, syncfs};

use super::error::{Error, io_error};
use crate::durable;

/// Longest complaint of `mount` that is repeated.
const TOLD_LEN_MAX: usize = 200;

/// What power cuts left over and is set aside: a cluster each, and each takes a cut within
/// milliseconds.
const LEFT_MAX: u32 = 100;

/// The boot partition while it may be written.
#[derive(Debug)]
pub(super) struct Writable {
    path: PathBuf,
    remounted: bool,
    /// `first-boot` and `identity` write there too, and make it read-only again.
    _lock: File,
}

impl Writable {
    /// Makes it writable, where it is not.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let lock = durable::lock_folder(path).map_err(io_error("lock", path))?;
        let found = statvfs(path).map_err(io::Error::from).map_err(io_error("look at", path))?;
        let is_read_only = found.f_flag.contains(StatVfsMountFlags::RDONLY);
        if is_read_only {
            remount(path, "rw")?;
        }
        Ok(Self { path: path.to_path_buf(), remounted: is_read_only, _lock: lock })
    }

    /// Everything on the card, and as it was before.
    pub(super) fn close(mut self) -> Result<(), Error> {
        sync(&self.path)?;
        if std::mem::take(&mut self.remounted) {
            remount(&self.path, "ro")?;
        }
        Ok(())
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        // After an error: what is said is that error.
        if self.remounted
            && let Err(error) = remount(&self.path, "ro")
        {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "the boot partition stays writable");
        }
    }
}

/// By `mount`, which keeps the other options as they are.
fn remount(path: &Path, how: &'static str) -> Result<(), Error> {
    let options = format!("remount,{how}");
    let done = Command::new("mount").args(["-o", &options]).arg(path).output();
    let told = match done {
        Ok(done) if done.status.success() => return Ok(()),
        Ok(done) => String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let told = told.chars().take(TOLD_LEN_MAX).collect();
    Err(Error::Mount { path: path.to_path_buf(), how, told })
}

/// Everything of the file system that this folder is on, durable.
pub(super) fn sync(folder: &Path) -> Result<(), Error> {
    let opened = File::open(folder).map_err(io_error("open", folder))?;
    syncfs(opened).map_err(io::Error::from).map_err(io_error("make durable", folder))
}

/// Replaces a small file, with a name of up to eight characters before its point, as FATs have one
/// entry for.
pub(super) fn replace(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    let new = Path::new(name).with_extension("new");
    let (new, path) = (folder.join(new), folder.join(name));
    set_aside(folder, &new)?;
    let before = File::open(&path).ok();
    write(&new, text.as_bytes())?;
    fs::rename(&new, &path).map_err(io_error("replace", &path))?;
    sync(folder)?;
    drop(before);
    sync(folder)
}

/// Moves what a power cut left of an earlier replacement out of the way.
fn set_aside(folder: &Path, left: &Path) -> Result<(), Error> {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    if !exists(left) {
        return Ok(());
    }
    let names = (0..LEFT_MAX).map(|index| folder.join(format!("left-{index:02}.old")));
    let full = || io::Error::from(io::ErrorKind::AlreadyExists);
    let aside = names.into_iter().find(|name| !exists(name)).ok_or_else(full);
    let moved = aside.and_then(|aside| fs::rename(left, aside));
    moved.map_err(io_error("set aside", left))
}

/// A file with these bytes, durable.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = create(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", path))
}

/// A new, empty file in the place of whatever was there.
pub(super) fn create(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    options.open(path).map_err(io_error("make", path))
}

/// Removes a file that may be missing.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Empties a folder by making it anew.
pub(super) fn clear(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("empty", folder)(error));
        }
        Ok(()) | Err(_) => {}
    }
    fs::create_dir(folder).map_err(io_error("make", folder))
}

/// Makes the kernel forget what it holds of a file that is durable, so that the next look is at the
/// card. Advice, which it may leave: then the comparison proves less, and nothing else changes.
pub(super) fn forget(file: &File) {
    if let Err(error) = fadvise(file, 0, None, Advice::DontNeed) {
        let error: &dyn std::error::Error = &error;
        tracing::debug!(error, "the kernel keeps what it read");
    }
}

/// Bytes that are free for root on the file system of a folder.
pub(super) fn free_bytes(folder: &Path) -> Result<u64, Error> {
    let found = statvfs(folder).map_err(io::Error::from).map_err(io_error("look at", folder))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// All files below a folder with their lengths, in order; none where there is no folder.
pub(super) fn files(folder: &Path) -> Result<Vec<(PathBuf, u64)>, Error> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(io_error("list", &folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(io_error("list", &folder))?;
            let path = entry.path();
            let about = entry.metadata().map_err(io_error("look at", &path))?;
            if about.is_dir() {
                open.push(path);
            } else {
                found.push((path, about.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_what_was_left_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let read = |name: &str| fs::read_to_string(at(name)).unwrap();
        replace(folder.path(), "config.txt", "one").unwrap();
        for (index, text) in ["two", "three"].into_iter().enumerate() {
            // Two names of one file, as a rename leaves them that was cut: what is done to one would
            // be done to both.
            fs::hard_link(at("config.txt"), at("config.new")).unwrap();
            let before = read("config.txt");
            replace(folder.path(), "config.txt", text).unwrap();
            assert_eq!(read("config.txt"), text);
            assert_eq!(read(&format!("left-{index:02}.old")), before);
            assert!(!at("config.new").exists());
        }
        for index in 0..LEFT_MAX {
            fs::write(at(&format!("left-{index:02}.old")), "").unwrap();
        }
        fs::write(at("config.new"), "").unwrap();
        assert!(replace(folder.path(), "config.txt", "four").is_err());
        assert_eq!(read("config.txt"), "three");
    }
}
