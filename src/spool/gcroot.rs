//! How what waits is kept from Nix's garbage collector, without asking Nix.
//!
//! The link of an entry leads to its store path, and a link in `gcroots/auto` of Nix's state
//! directory leads to the link of the entry. That is what `nix-store --add-root` makes too: an
//! indirect root. Whoever removes the entry has removed the root, without any right in Nix's own
//! folders: the collector drops links in `gcroots/auto` that lead nowhere by itself.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::nix::StorePathHash;

/// The link in Nix's state directory that makes `link` a root.
///
/// Named like Nix's own: 20 bytes of a hash of the link's path in nix32, so that two spools share
/// none.
pub(super) fn of(nix_state_dir: &Path, link: &Path) -> PathBuf {
    let sum = Sha256::digest(link.as_os_str().as_encoded_bytes());
    let mut name = [0; 20];
    name.iter_mut().zip(sum).for_each(|(to, from)| *to = from);
    nix_state_dir.join("gcroots/auto").join(StorePathHash::from_bytes(name).to_string())
}

/// Makes `link` a root, unless it is one.
pub(super) fn hold(nix_state_dir: &Path, link: &Path) -> io::Result<()> {
    let root = of(nix_state_dir, link);
    match symlink(link, &root) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // A store in which no collector ever ran has no such folder yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(root.parent().unwrap_or(nix_state_dir))?;
            symlink(link, &root)
        }
        made => made,
    }
}

/// Whether `link` is a root.
pub(super) fn is_held(nix_state_dir: &Path, link: &Path) -> bool {
    of(nix_state_dir, link).symlink_metadata().is_ok()
}

/// Tidies up after an entry that is gone. Without the right to do so Nix will.
pub(super) fn release(nix_state_dir: &Path, link: &Path) {
    drop(std::fs::remove_file(of(nix_state_dir, link)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_leads_to_the_link_and_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let (state, link) = (folder.path().join("var/nix"), folder.path().join("spool/entry"));
        assert!(!is_held(&state, &link));
        hold(&state, &link).unwrap();
        hold(&state, &link).unwrap();
        assert!(is_held(&state, &link));
        assert_eq!(std::fs::read_link(of(&state, &link)).unwrap(), link);
        let name = of(&state, &link).file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name.len(), 32);
        assert_ne!(of(&state, &link), of(&state, &folder.path().join("other/entry")));
        release(&state, &link);
        assert!(!is_held(&state, &link));
    }
}
