//! The spool folder itself: entries come, are listed, and go. Each step is one system call that
//! happens or does not, so that a kill or a pulled plug leaves nothing to repair.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use super::entry::Entry;
use super::{Config, Error, gcroot};
use crate::nix::{StoreDir, StorePath};

/// Entries at most. Nobody drains a folder with so many; a list of them takes milliseconds still.
pub(super) const ENTRIES_MAX: usize = 20_000;

/// Files of one store path that are looked at for its size: the largest have some 100,000. What is
/// beyond is not counted.
const FILES_MAX: usize = 200_000;

/// What a block of `st_blocks` is, whatever the file system's own are.
const BLOCK_LEN: u64 = 512;

/// Held by whoever drains.
const LOCK: &str = "lock";

/// Made by `spool retry`, removed by whoever drains.
const RETRY: &str = "retry";

/// The folder and where Nix keeps its things.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
    store_dir: StoreDir,
    nix_state_dir: PathBuf,
}

impl Folder {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            path: config.path.clone(),
            store_dir: config.store_dir.clone(),
            nix_state_dir: config.nix_state_dir.clone(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, for its owner only, unless it is there: whoever made it before chose who may.
    pub(super) fn make(&self) -> Result<(), Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.map_err(|source| Error::Make { path: self.path.clone(), source })
    }

    /// What waits, the oldest first. Other files are nobody's business here.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, Error> {
        let failed = |source| Error::List { path: self.path.clone(), source };
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)?.take(ENTRIES_MAX * 2) {
            let name = entry.map_err(failed)?.file_name();
            entries.extend(name.to_str().and_then(Entry::parse));
        }
        entries.sort_unstable();
        Ok(entries)
    }

    /// Whether more may come in.
    pub(super) fn has_room(&self) -> Result<bool, Error> {
        let failed = |source| Error::List { path: self.path.clone(), source };
        Ok(std::fs::read_dir(&self.path).map_err(failed)?.take(ENTRIES_MAX).count() < ENTRIES_MAX)
    }

    fn link(&self, entry: &Entry) -> PathBuf {
        self.path.join(entry.file_name())
    }

    /// Where Nix has it.
    pub(super) fn in_store(&self, path: &StorePath) -> PathBuf {
        PathBuf::from(self.store_dir.join(path))
    }

    /// Notes it: once its link is there it waits, whatever comes. The same one twice is one.
    pub(super) fn note(&self, entry: &Entry) -> io::Result<()> {
        match symlink(self.in_store(&entry.path), self.link(entry)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    /// Keeps it from the collector.
    pub(super) fn hold(&self, entry: &Entry) -> io::Result<()> {
        gcroot::hold(&self.nix_state_dir, &self.link(entry))
    }

    /// Where Nix will look for the root of an entry, for a message.
    pub(super) fn root(&self, entry: &Entry) -> PathBuf {
        gcroot::of(&self.nix_state_dir, &self.link(entry))
    }

    /// Keeps it from the collector again, where a pulled plug or a strange hand took that away.
    pub(super) fn mend(&self, entry: &Entry) -> io::Result<()> {
        let (link, target) = (self.link(entry), self.in_store(&entry.path));
        if std::fs::read_link(&link).is_ok_and(|leads_to| leads_to != target) {
            std::fs::remove_file(&link)?;
            symlink(&target, &link)?;
        }
        if gcroot::is_held(&self.nix_state_dir, &link) { Ok(()) } else { self.hold(entry) }
    }

    /// It waits no more, and is no root any more.
    pub(super) fn remove(&self, entry: &Entry) -> Result<(), Error> {
        let link = self.link(entry);
        match std::fs::remove_file(&link) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Remove { link, source })
            }
            Ok(()) | Err(_) => {
                gcroot::release(&self.nix_state_dir, &link);
                Ok(())
            }
        }
    }

    /// What was noted or removed before outlives a power cut from here on.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// The right to drain, until what is returned is dropped; `None` while another has it.
    pub(super) fn lock(&self) -> Result<Option<File>, Error> {
        let path = self.path.join(LOCK);
        let failed = |source| Error::Lock { path: path.clone(), source };
        // Reading suffices to lock: whoever made it, another user may drain after that one.
        let lock = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                File::options().read(true).write(true).create(true).truncate(false).open(&path)
            }
            opened => opened,
        };
        let lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Whether somebody drains it. Looking holds the lock for a moment, which who comes then
    /// tries again.
    pub(super) fn is_drained(&self) -> bool {
        let lock = File::open(self.path.join(LOCK));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Asks whoever drains not to wait any longer.
    pub(super) fn ask_retry(&self) -> Result<(), Error> {
        let path = self.path.join(RETRY);
        File::create(&path).map(drop).map_err(|source| Error::Ask { path, source })
    }

    /// Whether that was asked; asks are answered once.
    pub(super) fn take_retry(&self) -> bool {
        std::fs::remove_file(self.path.join(RETRY)).is_ok()
    }

    /// Whether this name in the folder is a reason to look.
    pub(super) fn is_news(name: &[u8]) -> bool {
        std::str::from_utf8(name).is_ok_and(|name| name == RETRY || Entry::parse(name).is_some())
    }

    /// What a path takes on the disk; `None` when it is not there.
    pub(super) fn size(&self, path: &StorePath) -> Option<u64> {
        let top = self.in_store(path);
        let mut bytes = top.symlink_metadata().ok()?.blocks() * BLOCK_LEN;
        let mut open = if top.is_symlink() || !top.is_dir() { Vec::new() } else { vec![top] };
        let mut files = 0;
        while let Some(folder) = open.pop() {
            // What cannot be read is not counted: Nix will say so when it copies it.
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                bytes = bytes.saturating_add(metadata.blocks() * BLOCK_LEN);
                if metadata.is_dir() {
                    open.push(entry.path());
                }
                files += 1;
                if files >= FILES_MAX {
                    return Some(bytes);
                }
            }
        }
        Some(bytes)
    }
}

/// The entries of each path, and the paths by the age of their oldest entry.
pub(super) fn by_path(entries: Vec<Entry>) -> Vec<(StorePath, Vec<Entry>)> {
    let mut places: BTreeMap<StorePath, usize> = BTreeMap::new();
    let mut paths: Vec<(StorePath, Vec<Entry>)> = Vec::new();
    for entry in entries {
        let next = paths.len();
        let place = *places.entry(entry.path.clone()).or_insert(next);
        match paths.get_mut(place) {
            Some((_, entries)) => entries.push(entry),
            None => paths.push((entry.path.clone(), vec![entry])),
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::kit;

    #[test]
    fn an_entry_waits_with_its_root_until_both_are_gone() {
        let (top, config) = kit::spool();
        let folder = Folder::new(&config);
        folder.make().unwrap();
        assert_eq!(folder.path().metadata().unwrap().mode() & 0o777, 0o700);
        let (one, two) = (kit::entry(1_795_000_001, "one"), kit::entry(1_795_000_000, "two"));
        for entry in [&one, &one, &two] {
            folder.note(entry).unwrap();
            folder.hold(entry).unwrap();
        }
        std::fs::write(folder.path().join("other"), "").unwrap();
        assert_eq!(folder.entries().unwrap(), [two.clone(), one.clone()]);
        let leads_to = std::fs::read_link(folder.root(&one)).unwrap();
        assert_eq!(std::fs::read_link(leads_to).unwrap(), folder.in_store(&one.path));
        folder.remove(&one).unwrap();
        folder.remove(&one).unwrap();
        assert_eq!(folder.entries().unwrap(), [two]);
        assert!(folder.root(&one).symlink_metadata().is_err());
        drop(top);
    }

    #[test]
    fn a_lost_root_and_a_strange_link_are_mended() {
        let (top, config) = kit::spool();
        let folder = Folder::new(&config);
        folder.make().unwrap();
        let entry = kit::entry(1_795_000_000, "a");
        symlink("/elsewhere", folder.link(&entry)).unwrap();
        folder.mend(&entry).unwrap();
        assert_eq!(std::fs::read_link(folder.link(&entry)).unwrap(), folder.in_store(&entry.path));
        assert_eq!(std::fs::read_link(folder.root(&entry)).unwrap(), folder.link(&entry));
        drop(top);
    }

    #[test]
    fn one_drains_and_a_look_does_not_hinder() {
        let (top, config) = kit::spool();
        let folder = Folder::new(&config);
        folder.make().unwrap();
        assert!(!folder.is_drained());
        let lock = folder.lock().unwrap();
        assert!(lock.is_some() && folder.lock().unwrap().is_none() && folder.is_drained());
        drop(lock);
        assert!(!folder.is_drained() && folder.lock().unwrap().is_some());
        drop(top);
    }

    #[test]
    fn a_path_is_as_large_as_its_files_and_links_are_not_followed() {
        let (top, config) = kit::spool();
        let folder = Folder::new(&config);
        let path = kit::path("a");
        assert_eq!(folder.size(&path), None);
        let inner = folder.in_store(&path).join("inner");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("file"), vec![1; 100_000]).unwrap();
        symlink("/", inner.join("root")).unwrap();
        let size = folder.size(&path).unwrap();
        assert!((100_000..200_000).contains(&size), "{size}");
        drop(top);
    }

    #[test]
    fn a_path_that_was_built_twice_waits_once_since_the_first_time() {
        let [old, other, new] =
            [(1, "a"), (2, "b"), (3, "a")].map(|(at, name)| kit::entry(at, name));
        let paths = by_path(vec![old.clone(), other.clone(), new.clone()]);
        assert_eq!(paths, [(kit::path("a"), vec![old, new]), (kit::path("b"), vec![other])]);
    }
}
