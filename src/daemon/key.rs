//! The state directory and the cache's own key in it: made once, never made again.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::nix::SecretKey;

/// Characters of the key that are part of its name: enough that two caches differ, few enough to
/// be compared by eye.
const NAME_PART_LEN: usize = 8;

/// A key file is one line of about 130 bytes; what is longer is another file.
const KEY_FILE_LEN_MAX: u64 = 4096;

/// Where the secret key of a cache lies.
pub fn own_key_file(state_dir: &Path) -> PathBuf {
    state_dir.join("secret-key")
}

/// Says that there was a key once: without it and the key, this is a first start.
fn marker(state_dir: &Path) -> PathBuf {
    state_dir.join("secret-key-made")
}

/// The secret key of the cache with this state directory, when there is one.
pub fn read_own_key(state_dir: &Path) -> anyhow::Result<Option<SecretKey>> {
    let path = own_key_file(state_dir);
    let act = || format!("read the key of this cache, {}", path.display());
    let len_bytes = match path.metadata() {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(act),
    };
    anyhow::ensure!(len_bytes <= KEY_FILE_LEN_MAX, "{} is no key file", path.display());
    let text = std::fs::read_to_string(&path).with_context(act)?;
    SecretKey::parse(&text).map(Some).with_context(act)
}

/// Whether a key was ever made in this state directory.
pub fn had_own_key(state_dir: &Path) -> bool {
    // A marker that cannot be seen for another reason than its absence counts as one.
    marker(state_dir).try_exists().unwrap_or(true)
}

/// Notes that there is a key, for the day on which it is gone.
pub(super) fn remember_key(state_dir: &Path) -> anyhow::Result<()> {
    if had_own_key(state_dir) {
        return Ok(());
    }
    let text = "A key was made here. When it is gone, restore it: no new one is made.\n";
    write_durably(&marker(state_dir), text)
}

/// Makes the key of a cache of this name and keeps it, readable for its owner only.
pub(super) fn make_own_key(state_dir: &Path, cache_name: &str) -> anyhow::Result<SecretKey> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("draw random bytes for a key")?;
    let made = named_key(cache_name, seed)?;
    write_durably(&own_key_file(state_dir), &format!("{}\n", made.to_secret_text()))?;
    remember_key(state_dir)?;
    Ok(made)
}

/// `<cache name>-<8 characters of the key>-1`: Nix maps names to keys, so two caches, or one that
/// was flashed again, must not share a name.
fn named_key(cache_name: &str, seed: [u8; 32]) -> anyhow::Result<SecretKey> {
    let unnamed = SecretKey::from_seed(cache_name, seed).context("make a key")?.public();
    let text = unnamed.to_string();
    let part: String = text
        .rsplit(':')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(NAME_PART_LEN)
        .collect();
    SecretKey::from_seed(&format!("{cache_name}-{part}-1"), seed).context("name a key")
}

/// The state directory, for its owner only where it is made here.
pub(super) fn make_state_dir(state_dir: &Path) -> anyhow::Result<()> {
    make_private_dir(state_dir).with_context(|| {
        format!(
            "make the state directory {} (choose another one: --set 'state-dir=\"/PATH\"')",
            state_dir.display()
        )
    })
}

pub(super) fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// All or nothing, whenever the plug is pulled: a temporary file, made durable, then its name.
fn write_durably(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let temporary = path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_only_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("a/b");
        make_state_dir(&state_dir).unwrap();
        assert!(read_own_key(&state_dir).unwrap().is_none());
        assert!(!had_own_key(&state_dir));
        let made = make_own_key(&state_dir, "attic").unwrap();
        let read = read_own_key(&state_dir).unwrap().unwrap();
        assert_eq!(read.public(), made.public());
        assert!(had_own_key(&state_dir));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&own_key_file(&state_dir)), 0o600);
        assert_eq!(mode(&state_dir), 0o700);
    }

    #[test]
    fn a_key_is_named_by_the_cache_and_by_itself() {
        let name = |seed| named_key("attic", [seed; 32]).unwrap().public().name().to_owned();
        assert!(name(1).starts_with("attic-") && name(1).ends_with("-1"), "{}", name(1));
        assert_eq!(name(1).len(), "attic-12345678-1".len());
        assert_ne!(name(1), name(2));
    }

    #[test]
    fn a_key_that_is_no_key_is_an_error_and_not_an_absence() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(own_key_file(folder.path()), "garbage").unwrap();
        assert!(read_own_key(folder.path()).is_err());
    }
}
