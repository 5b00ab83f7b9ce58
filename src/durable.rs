//! Small files that must not be lost and are nobody else's business: keys, tokens, markers.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The one bit beyond the owner's that a file keeps when it is written: a server that reads it by
/// its group goes on reading it.
const GROUP_READS: u32 = 0o040;

/// Replaces the file, all or nothing, whenever the plug is pulled: a temporary file, made durable,
/// then its name. A link stays one: what it leads to is replaced. One writer at a time.
///
/// It is for its owner only, who is that of the file which was there, else of its folder, so that
/// what root makes by a command can be read by a server that is not root.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let folder = path.parent().unwrap_or(Path::new("/"));
    let temporary = beside(&path, "new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let known = path.metadata().ok();
    let wanted = match &known {
        Some(known) => known.clone(),
        None => folder.metadata()?,
    };
    let made = file.metadata()?;
    if made.uid() != wanted.uid() {
        std::os::unix::fs::fchown(&file, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    if let Some(known) = known {
        let kept = known.permissions().mode() & GROUP_READS | 0o600;
        file.set_permissions(Permissions::from_mode(kept))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, &path)?;
    File::open(folder)?.sync_all()
}

/// Waits until nobody else of ours changes this folder's files, and holds them off until what is
/// returned is dropped. Others hold it for a few writes, and not beyond their end.
pub fn lock_folder(folder: &Path) -> io::Result<File> {
    let folder = File::open(folder)?;
    folder.lock()?;
    Ok(folder)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_for_its_owner_and_behind_its_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        let mode = || file.metadata().unwrap().permissions().mode() & 0o777;
        write_private(&file, "one").unwrap();
        assert_eq!(mode(), 0o600);
        std::os::unix::fs::symlink("file", &link).unwrap();
        // What a writer left that was killed.
        std::fs::write(folder.path().join("file.new"), "half").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o664)).unwrap();
        write_private(&link, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(mode(), 0o640);
    }
}
