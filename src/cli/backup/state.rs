//! The small files of a cache that must not be lost: where each is, and its name in a backup.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{CONFIG, SETTINGS, STATE};
use crate::config::Config;
use crate::daemon;
use crate::firstboot::Folders;

/// Longest small file: tokens of a thousand machines.
pub(super) const FILE_LEN_MAX: u64 = 1 << 20;

/// Small files at most: a state directory has some ten.
pub(super) const FILES_MAX: usize = 256;

/// What is in the state directory itself; its tokens may be elsewhere.
const OF_STATE: [&str; 4] = ["secret-key", "secret-key-made", "old-public-keys", "tls-made"];

/// Its folder of CA and certificates.
const TLS: &str = "tls/";

/// The name of the tokens in a backup, wherever they are.
const TOKENS: &str = "tokens";

/// Where the files of a cache are.
pub(super) struct Places {
    state_dir: PathBuf,
    tokens: PathBuf,
    config: PathBuf,
    settings: Option<PathBuf>,
}

impl Places {
    /// `settings` are those of an appliance, when this is one.
    pub(super) fn new(config: &Config, appliance: &Path) -> Self {
        let settings = Folders::read(appliance).map(|(folders, _)| folders.data.join("settings"));
        Self {
            state_dir: config.state_dir.clone(),
            tokens: config.push.tokens_file.clone(),
            config: config.file.clone().unwrap_or_else(|| crate::config::DEFAULT_FILE.into()),
            settings,
        }
    }

    /// Names and content of all that is there.
    pub(super) fn read(&self) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        let mut take = |name: String, path: &Path| -> anyhow::Result<()> {
            let read = read(path).with_context(|| format!("read {}", path.display()))?;
            files.extend(read.map(|content| (name, content)));
            Ok(())
        };
        for name in OF_STATE {
            take(format!("{STATE}{name}"), &self.state_dir.join(name))?;
        }
        take(format!("{STATE}{TOKENS}"), &self.tokens)?;
        for (name, path) in listed(&self.state_dir.join(TLS))? {
            take(format!("{STATE}{TLS}{name}"), &path)?;
        }
        take(CONFIG.to_owned(), &self.config)?;
        if let Some(settings) = &self.settings {
            for (name, path) in listed(settings)? {
                take(format!("{SETTINGS}{name}"), &path)?;
            }
        }
        anyhow::ensure!(files.len() <= FILES_MAX, "there are more files than a cache has");
        Ok(files)
    }

    /// Where a file of a backup goes; `None` for what has no place here.
    pub(super) fn place(&self, name: &str) -> Option<PathBuf> {
        if name == CONFIG {
            return Some(self.config.clone());
        }
        if let Some(name) = name.strip_prefix(SETTINGS) {
            let is_plain = !name.contains('/');
            return self.settings.as_ref().filter(|_| is_plain).map(|folder| folder.join(name));
        }
        let name = name.strip_prefix(STATE)?;
        if name == TOKENS {
            return Some(self.tokens.clone());
        }
        let of_tls = name.strip_prefix(TLS).is_some_and(|name| !name.contains('/'));
        (OF_STATE.contains(&name) || of_tls).then(|| self.state_dir.join(name))
    }

    /// Whether a file is one that the cache is known by.
    pub(super) fn key_file(&self) -> PathBuf {
        daemon::own_key_file(&self.state_dir)
    }
}

/// `None`: it is not there.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut content)?;
    if u64::try_from(content.len()).is_ok_and(|len| len <= FILE_LEN_MAX) {
        return Ok(Some(content));
    }
    Err(io::Error::other("it is too long to be what it should be"))
}

/// The plain files in a folder, by name. None where it is not there.
fn listed(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    let mut files = Vec::new();
    for entry in entries.take(FILES_MAX) {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        // What a writer left that was killed is nothing.
        let is_whole = path.extension().is_none_or(|ending| ending != "new");
        if let (Some(name), true) = (name, is_whole && path.is_file()) {
            files.push((name, path));
        }
    }
    files.sort();
    Ok(files)
}
