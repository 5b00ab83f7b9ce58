//! Makes a partition writable and read-only again. A trait, so that a test has a plain folder, or a
//! card that refuses.

use std::io;
use std::path::Path;
use std::process::Command;

use rustix::fs::StatVfsMountFlags;

/// Who can change how a folder is mounted.
pub trait Mount {
    /// Whether it was read-only, and is writable now.
    fn make_writable(&self, folder: &Path) -> io::Result<bool>;
    /// The opposite, for what was read-only.
    fn make_read_only(&self, folder: &Path) -> io::Result<()>;
}

/// The system's own, by `mount`: it knows the options that the partition was mounted with.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Mount for System {
    fn make_writable(&self, folder: &Path) -> io::Result<bool> {
        if !rustix::fs::statvfs(folder)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Ok(false);
        }
        remount(folder, "remount,rw")?;
        Ok(true)
    }

    fn make_read_only(&self, folder: &Path) -> io::Result<()> {
        remount(folder, "remount,ro")
    }
}

fn remount(folder: &Path, options: &str) -> io::Result<()> {
    let done = Command::new("mount").args(["-o", options]).arg(folder).output()?;
    if done.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&done.stderr);
    Err(io::Error::other(format!("mount -o {options}: {}", told.trim())))
}
