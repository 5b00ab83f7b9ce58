//! The files of a join: each written whole or not at all, and told once it is there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::place::Place;
use crate::cli::out;

/// Longest nix.conf that is read; those of people have some KiB.
const CONF_LEN_MAX: u64 = 1 << 20;

/// Mode of what everybody may read: units and Nix's own configuration are.
pub(super) const PUBLIC: u32 = 0o644;

/// Mode of a token.
pub(super) const PRIVATE: u32 = 0o600;

/// Writes and removes below a place.
pub(super) struct Files<'a> {
    pub(super) place: &'a Place,
}

impl Files<'_> {
    /// What is in a file; `None` when it is not there.
    pub(super) fn read(&self, path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
        use std::io::Read as _;
        let act = || format!("read {}", path.display());
        let file = match File::open(self.place.on_disk(path)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(act),
        };
        let mut text = Vec::new();
        file.take(CONF_LEN_MAX + 1).read_to_end(&mut text).with_context(act)?;
        let is_small = u64::try_from(text.len()).is_ok_and(|len| len <= CONF_LEN_MAX);
        anyhow::ensure!(is_small, "{} is longer than {CONF_LEN_MAX} bytes", path.display());
        Ok(Some(text))
    }

    pub(super) fn is_link(&self, path: &Path) -> bool {
        self.place.on_disk(path).is_symlink()
    }

    /// Replaces a file, all or nothing, and says so; one that is right already is left alone. One that
    /// was there keeps its owner and mode.
    pub(super) fn write(&self, path: &Path, text: &[u8], mode: u32) -> anyhow::Result<()> {
        let file = self.place.on_disk(path);
        let known = file.metadata().ok();
        let is_right = known.as_ref().is_some_and(|it| it.mode() & 0o777 & !mode == 0);
        if is_right && self.read(path)?.as_deref() == Some(text) {
            out::note(&format!("is there already: {}", path.display()));
            return Ok(());
        }
        replace(&file, text, mode).with_context(|| format!("write {}", file.display()))?;
        out::note(&format!("wrote {}", path.display()));
        Ok(())
    }

    /// Makes a link, in place of another one that was there.
    pub(super) fn link(&self, path: &Path, to: &Path) -> anyhow::Result<()> {
        let link = self.place.on_disk(path);
        if std::fs::read_link(&link).is_ok_and(|there| there == to) {
            out::note(&format!("is there already: {}", path.display()));
            return Ok(());
        }
        let act = || format!("make the link {}", link.display());
        anyhow::ensure!(
            link.is_symlink() || !link.exists(),
            "{} is there and no link: move it away",
            path.display()
        );
        make_parent(&link).with_context(act)?;
        let temporary = beside(&link);
        remove(&temporary).with_context(act)?;
        std::os::unix::fs::symlink(to, &temporary).with_context(act)?;
        std::fs::rename(&temporary, &link).with_context(act)?;
        out::note(&format!("wrote {} (a link to {})", path.display(), to.display()));
        Ok(())
    }

    /// Removes a file, where it is there, and says so.
    pub(super) fn remove(&self, path: &Path) -> anyhow::Result<()> {
        let file = self.place.on_disk(path);
        if remove(&file).with_context(|| format!("remove {}", file.display()))? {
            out::note(&format!("removed {}", path.display()));
        }
        Ok(())
    }

    /// Removes the folder of a file that was removed, if nothing else is in it.
    pub(super) fn remove_folder_of(&self, path: &Path) {
        let folder = self.place.on_disk(path).parent().map(Path::to_path_buf);
        // One that is not empty stays, and so does one that others hold.
        drop(folder.map(std::fs::remove_dir));
    }
}

fn replace(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    make_parent(path)?;
    let known = path.metadata().ok();
    let temporary = beside(path);
    remove(&temporary)?;
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(&temporary)?;
    if let Some(known) = &known {
        let made = file.metadata()?;
        if (made.uid(), made.gid()) != (known.uid(), known.gid()) {
            let given = std::os::unix::fs::fchown(&file, Some(known.uid()), Some(known.gid()));
            // Who is not root may own a file whose group is not theirs: it becomes their own.
            given.or_else(|error| if made.uid() == known.uid() { Ok(()) } else { Err(error) })?;
        }
    }
    // A token that was readable for others is not left so; nix.conf keeps what it has.
    let kept = known.filter(|_| mode != PRIVATE).map_or(mode, |known| known.mode() & 0o7777);
    file.set_permissions(std::fs::Permissions::from_mode(kept))?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn make_parent(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(folder)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".snowberry-new");
    PathBuf::from(name)
}

/// Whether it was there.
fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
