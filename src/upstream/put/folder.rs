//! Writing to a folder: a temporary file beside the place, synced and renamed, so that a name
//! stands for a whole file or for none, whenever the plug is pulled.
//!
//! All is done from a handle of the folder in which nix-cache-info was seen: when a stick is pulled
//! out, nothing is written to the mount point that it leaves behind.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, mkdirat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::ObjectHead;
use super::send::{Pace, Reading, Sent};
use crate::nix::FileHash;
use crate::upstream::folder::{CACHE_INFO, Folder};
use crate::upstream::{Asked, Error, location};

/// Written between two syncs: a slow stick writes this in seconds, so that each step ends in time.
const SYNC_EVERY_LEN: u64 = 16 * 1024 * 1024;

/// What a temporary file's name begins with; nobody asks a cache for such a name.
const TEMPORARY: &str = ".snowberry-";

/// A temporary file that nobody wrote to for so long was left by a crash; another snowberry may
/// write to the same folder.
const LEFT_AFTER: Duration = Duration::from_hours(24);

/// Folders that were looked through for what a crash left, before they are forgotten: logs have a
/// thousand.
const SWEPT_MAX: usize = 4096;

/// A file that is to be written.
pub(super) struct Written<'a> {
    pub(super) key: &'a str,
    pub(super) sent: Sent<'a>,
    /// What it must have.
    pub(super) sha256: Option<FileHash>,
}

impl Folder {
    /// What is known of a file.
    pub(super) async fn head(&self, key: &str, asked: &Asked) -> Result<Option<ObjectHead>, Error> {
        let look = |file: File, len| {
            let modified = file.metadata()?.modified().ok();
            Ok(ObjectHead { len, modified, expires: None })
        };
        self.blocking(key, asked, look).await
    }

    /// Writes a file.
    pub(super) async fn put(
        &self,
        file: &Written<'_>,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<(), Error> {
        self.write(file, true, pace, asked).await
    }

    /// Writes `nix-cache-info` into a folder that may have none yet.
    pub(in crate::upstream) async fn put_cache_info(
        &self,
        sent: Sent<'_>,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<(), Error> {
        let file = Written { key: CACHE_INFO, sent, sha256: None };
        self.write(&file, false, pace, asked).await
    }

    async fn write(
        &self,
        file: &Written<'_>,
        must_be_cache: bool,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<(), Error> {
        let key = file.key;
        location::plain_name(key).map_err(|why| Error::Url { asked: asked.clone(), why })?;
        let (parent, name) = key.rsplit_once('/').unwrap_or(("", key));
        let (root, parent, name) = (self.root.clone(), parent.to_owned(), name.to_owned());
        let swept = Arc::clone(&self.swept);
        let mut making = step(asked, pace.answer, move || {
            let sweep = swept.first_time(&parent, SWEPT_MAX);
            let Some(root) = open_root(&root, must_be_cache)? else { return Ok(None) };
            let making = Making::begin(root, &parent, name)?;
            if sweep {
                making.sweep()?;
            }
            Ok(Some(making))
        })
        .await?
        .ok_or_else(|| Error::NotACache { upstream: Arc::clone(&asked.upstream) })?;
        let mut reading = Reading::new(&file.sent, asked);
        while let Some(bytes) = reading.next().await? {
            file.sent.may_go(bytes.len()).await;
            making = step(asked, pace.progress, move || making.write(&bytes)).await?;
        }
        if let Some(sha256) = file.sha256
            && making.digest() != *sha256.as_bytes()
        {
            let source = Arc::new(io::Error::other("it has not the SHA-256 that it should have"));
            return Err(Error::Source { asked: asked.clone(), source });
        }
        step(asked, pace.answer, move || making.finish()).await
    }
}

/// Something on the disk that must end in time. One that does not is left to its thread.
async fn step<T: Send + 'static>(
    asked: &Asked,
    wait: Duration,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let trouble = |error| Error::Write { asked: asked.clone(), source: Arc::new(error) };
    let waited_s = wait.as_secs();
    let stalled = |_| Error::Stalled { asked: asked.clone(), waited_s };
    let ended = timeout(wait, spawn_blocking(act)).await.map_err(stalled)?;
    ended.map_err(|error| trouble(io::Error::other(error)))?.map_err(trouble)
}

/// A file in the making; dropped before it is finished, it is gone.
struct Making {
    folder: OwnedFd,
    temporary: String,
    name: String,
    file: File,
    sha256: Sha256,
    unsynced: u64,
    finished: bool,
}

impl Making {
    fn begin(mut folder: OwnedFd, parent: &str, name: String) -> io::Result<Self> {
        for segment in parent.split('/').filter(|segment| !segment.is_empty()) {
            folder = open_or_make(&folder, segment)?;
        }
        let random = getrandom::u64().map_err(|_| io::Error::other("no random number"))?;
        let temporary = format!("{TEMPORARY}{random:016x}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::from(openat(&folder, &temporary, flags, Mode::from(0o644))?);
        let (sha256, unsynced, finished) = (Sha256::new(), 0, false);
        Ok(Self { folder, temporary, name, file, sha256, unsynced, finished })
    }

    fn write(mut self, bytes: &Bytes) -> io::Result<Self> {
        self.file.write_all(bytes)?;
        self.sha256.update(bytes);
        self.unsynced += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.unsynced >= SYNC_EVERY_LEN {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(self)
    }

    fn digest(&self) -> [u8; 32] {
        self.sha256.clone().finalize().into()
    }

    fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        renameat(&self.folder, &self.temporary, &self.folder, &self.name)?;
        self.finished = true;
        sync_folder(&self.folder)
    }

    /// Removes what a crash left here. Ages are by the folder's own clock.
    fn sweep(&self) -> io::Result<()> {
        let now = self.file.metadata()?.modified()?;
        for entry in Dir::read_from(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if !name.to_bytes().starts_with(TEMPORARY.as_bytes()) {
                continue;
            }
            let Ok(stat) = statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let age = now.duration_since(modified(stat.st_mtime)).unwrap_or_default();
            if age > LEFT_AFTER {
                unlinkat(&self.folder, name, AtFlags::empty())?;
            }
        }
        Ok(())
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.finished {
            // What stays is swept some day.
            drop(
                unlinkat(&self.folder, &self.temporary, AtFlags::empty()).map_err(io::Error::from),
            );
        }
    }
}

fn modified(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    SystemTime::UNIX_EPOCH + since
}

const FOLDER_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A handle of the root; `None` where it is not there, or is no cache and must be one.
fn open_root(root: &Path, must_be_cache: bool) -> io::Result<Option<OwnedFd>> {
    let folder = match openat(CWD, root, FOLDER_FLAGS, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        opened => opened?,
    };
    if !must_be_cache {
        return Ok(Some(folder));
    }
    match statat(&folder, CACHE_INFO, AtFlags::empty()) {
        Ok(_) => Ok(Some(folder)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A sub-folder. One that is a link may lead anywhere: it is not followed.
fn open_or_make(folder: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = FOLDER_FLAGS | OFlags::NOFOLLOW;
    match openat(folder, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        Err(Errno::NOTDIR | Errno::LOOP) if is_link(folder, name) => {
            let why = "a sub-folder is a symbolic link, which is not written through";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        opened => return Ok(opened?),
    }
    match mkdirat(folder, name, Mode::from(0o755)) {
        Err(Errno::EXIST) => {}
        made => made?,
    }
    sync_folder(folder)?;
    Ok(openat(folder, name, flags, Mode::empty())?)
}

fn is_link(folder: &OwnedFd, name: &str) -> bool {
    let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_symlink())
}

/// Makes new names durable, where the file system can say that of a folder.
fn sync_folder(folder: &OwnedFd) -> io::Result<()> {
    match rustix::fs::fsync(folder) {
        Err(Errno::INVAL) => Ok(()),
        synced => Ok(synced?),
    }
}
