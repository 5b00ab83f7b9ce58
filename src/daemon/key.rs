//! The state directory and the cache's own keys in it: made once, never made again; one that is
//! rotated away goes on being trusted.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::durable;
use crate::nix::{PublicKey, SecretKey};

/// Characters of the key that are part of its name: enough that two caches differ, few enough to
/// be compared by eye.
const NAME_PART_LEN: usize = 8;

/// A key file is one line of about 130 bytes, and a rotated key one of 70, of which there is one in
/// some years; what is longer is another file.
const KEY_FILE_LEN_MAX: u64 = 4096;

/// The keys of a cache.
#[derive(Debug, Clone, Default)]
pub struct OwnKeys {
    /// The one that signs; `None` before the first start, or when it is gone.
    pub secret: Option<SecretKey>,
    /// Those that signed before, the latest first: still trusted, still to be listed by clients.
    pub rotated: Vec<PublicKey>,
}

impl OwnKeys {
    /// Those of the cache with this state directory.
    pub fn read(state_dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { secret: read_own_key(state_dir)?, rotated: read_rotated(state_dir)? })
    }

    /// The public halves, the one that signs first.
    pub fn public(&self) -> Vec<PublicKey> {
        let mut keys: Vec<PublicKey> = self.secret.iter().map(SecretKey::public).collect();
        for key in &self.rotated {
            if !keys.contains(key) {
                keys.push(key.clone());
            }
        }
        keys
    }
}

/// Where the secret key of a cache lies.
pub fn own_key_file(state_dir: &Path) -> PathBuf {
    state_dir.join("secret-key")
}

/// Says that there was a key once: without it and the key, this is a first start.
fn marker(state_dir: &Path) -> PathBuf {
    state_dir.join("secret-key-made")
}

/// Where the public keys are that signed before.
fn rotated_file(state_dir: &Path) -> PathBuf {
    state_dir.join("old-public-keys")
}

/// The secret key of the cache with this state directory, when there is one.
pub fn read_own_key(state_dir: &Path) -> anyhow::Result<Option<SecretKey>> {
    let path = own_key_file(state_dir);
    let Some(text) = read_small(&path)? else { return Ok(None) };
    let key = SecretKey::parse(&text);
    key.map(Some).with_context(|| format!("read the key of this cache, {}", path.display()))
}

fn read_rotated(state_dir: &Path) -> anyhow::Result<Vec<PublicKey>> {
    let path = rotated_file(state_dir);
    let text = read_small(&path)?.unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Result<_, _> = lines.map(PublicKey::parse).collect();
    keys.with_context(|| format!("read the rotated keys of this cache, {}", path.display()))
}

/// A file of keys; `None` when it is not there.
fn read_small(path: &Path) -> anyhow::Result<Option<String>> {
    let act = || format!("read {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(act),
    };
    let mut text = String::new();
    file.take(KEY_FILE_LEN_MAX + 1).read_to_string(&mut text).with_context(act)?;
    let is_small = u64::try_from(text.len()).is_ok_and(|len| len <= KEY_FILE_LEN_MAX);
    anyhow::ensure!(is_small, "{} is no file of keys", path.display());
    Ok(Some(text))
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
    let made = named_key(cache_name, seed, 1)?;
    write_durably(&own_key_file(state_dir), &format!("{}\n", made.to_secret_text()))?;
    remember_key(state_dir)?;
    Ok(made)
}

/// Replaces the key by a new one, of the next number in its name. The old one goes on being trusted.
pub fn rotate(state_dir: &Path, cache_name: &str) -> anyhow::Result<OwnKeys> {
    let _lock = lock(state_dir)?;
    let old = read_own_key(state_dir)?.with_context(|| {
        format!(
            "there is no key at {} to rotate: `snowberry serve` makes it at its first start, or \
             `snowberry key import FILE` takes one",
            own_key_file(state_dir).display()
        )
    })?;
    let public = old.public();
    let number = public.name().rsplit_once('-').and_then(|(_, last)| last.parse::<u32>().ok());
    let number = number.unwrap_or(1).saturating_add(1);
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("draw random bytes for a key")?;
    replace(state_dir, Some(&public), &named_key(cache_name, seed, number)?)
}

/// How an import ended.
#[derive(Debug, Clone)]
pub enum Imported {
    /// It signs from now on.
    Taken(Box<OwnKeys>),
    /// It was the key already.
    WasThere,
}

/// Makes `key` the key of this cache. Another one that is there stays, unless `may_replace`: then
/// it is rotated away.
pub fn import(state_dir: &Path, key: &SecretKey, may_replace: bool) -> anyhow::Result<Imported> {
    make_state_dir(state_dir)?;
    let _lock = lock(state_dir)?;
    let (old, new) = (read_own_key(state_dir)?.map(|old| old.public()), key.public());
    if old.as_ref() == Some(&new) {
        return Ok(Imported::WasThere);
    }
    if let Some(old) = &old {
        anyhow::ensure!(
            may_replace,
            "this cache has the key {old}: give --replace to let another one sign from now on, the \
             old one stays trusted"
        );
    }
    let known = OwnKeys { secret: None, rotated: read_rotated(state_dir)? };
    if let Some(same) = old.iter().chain(&known.rotated).find(|it| it.name() == new.name())
        && *same != new
    {
        anyhow::bail!(
            "this cache has or had another key of the name {}: clients know keys by their names, \
             so the new one needs a name of its own",
            new.name()
        );
    }
    let keys = replace(state_dir, old.as_ref(), key)?;
    Ok(Imported::Taken(Box::new(keys)))
}

/// The old key is listed before the new one signs: whenever the plug is pulled, both are trusted.
fn replace(state_dir: &Path, old: Option<&PublicKey>, new: &SecretKey) -> anyhow::Result<OwnKeys> {
    let public = new.public();
    let mut rotated = read_rotated(state_dir)?;
    if let Some(old) = old {
        rotated.retain(|key| key != old);
        rotated.insert(0, old.clone());
        let lines: Vec<String> = rotated.iter().map(ToString::to_string).collect();
        let lines = lines.join("\n") + "\n";
        anyhow::ensure!(
            u64::try_from(lines.len()).is_ok_and(|len| len <= KEY_FILE_LEN_MAX),
            "{} would be too long: take keys out of it that nobody lists any more",
            rotated_file(state_dir).display()
        );
        write_durably(&rotated_file(state_dir), &lines)?;
    }
    write_durably(&own_key_file(state_dir), &format!("{}\n", new.to_secret_text()))?;
    remember_key(state_dir)?;
    rotated.retain(|key| *key != public);
    Ok(OwnKeys { secret: Some(new.clone()), rotated })
}

fn lock(state_dir: &Path) -> anyhow::Result<File> {
    durable::lock_folder(state_dir)
        .with_context(|| format!("open the state directory {}", state_dir.display()))
}

/// `<cache name>-<8 characters of the key>-<number>`: Nix maps names to keys, so two caches, or one that
/// was flashed again, must not share a name.
fn named_key(cache_name: &str, seed: [u8; 32], number: u32) -> anyhow::Result<SecretKey> {
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
    SecretKey::from_seed(&format!("{cache_name}-{part}-{number}"), seed).context("name a key")
}

/// The state directory, for its owner only where it is made here.
pub fn make_state_dir(state_dir: &Path) -> anyhow::Result<()> {
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

fn write_durably(path: &Path, text: &str) -> anyhow::Result<()> {
    durable::write_private(path, text).with_context(|| format!("write {}", path.display()))
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
        let name = |seed| named_key("attic", [seed; 32], 1).unwrap().public().name().to_owned();
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

    #[test]
    fn a_key_that_is_rotated_away_stays_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path();
        assert!(rotate(state_dir, "attic").is_err());
        let first = make_own_key(state_dir, "attic").unwrap().public();
        let second = rotate(state_dir, "attic").unwrap().secret.unwrap().public();
        assert!(second.name().starts_with("attic-") && second.name().ends_with("-2"));
        let third = rotate(state_dir, "attic").unwrap().secret.unwrap().public();
        let keys = OwnKeys::read(state_dir).unwrap();
        assert_eq!(keys.public(), [third, second, first]);
        let mode = rotated_file(state_dir).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_is_imported_over_another_one_only_when_that_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path();
        let key = |name: &str, seed| SecretKey::from_seed(name, [seed; 32]).unwrap();
        let (one, two) = (key("one-1", 1), key("two-1", 2));
        assert!(matches!(import(state_dir, &one, false), Ok(Imported::Taken(_))));
        assert!(matches!(import(state_dir, &one, false), Ok(Imported::WasThere)));
        assert!(import(state_dir, &two, false).unwrap_err().to_string().contains("--replace"));
        assert_eq!(OwnKeys::read(state_dir).unwrap().public(), [one.public()]);
        let of_the_same_name = key("one-1", 3);
        assert!(import(state_dir, &of_the_same_name, true).is_err());
        import(state_dir, &two, true).unwrap();
        assert_eq!(OwnKeys::read(state_dir).unwrap().public(), [two.public(), one.public()]);
        assert!(import(state_dir, &of_the_same_name, true).is_err());
        // And back: what signs is not among the rotated.
        import(state_dir, &one, true).unwrap();
        assert_eq!(OwnKeys::read(state_dir).unwrap().public(), [one.public(), two.public()]);
    }

    #[test]
    fn rotated_keys_that_are_none_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(rotated_file(folder.path()), "garbage\n").unwrap();
        assert!(OwnKeys::read(folder.path()).is_err());
    }
}
