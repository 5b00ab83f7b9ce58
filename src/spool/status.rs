//! What a drainer tells of itself, in a file of the spool folder, and what others may ask of it
//! there: it has no socket.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::folder::Folder;
use super::{Config, Entry, Error, Target};
use crate::durable;
use crate::nix::StorePath;

/// Where a drainer writes it.
const FILE: &str = "status.json";

/// A status of 20,000 parked paths; what is larger is none of ours.
const FILE_LEN_MAX: u64 = 16 << 20;

/// What was dropped last, for people to see what they miss.
const DROPPED_SHOWN_MAX: usize = 10;

/// What a drainer tells. All times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// How many paths were pushed.
    pub pushed: u64,
    /// When the last one was.
    pub pushed_at_s: Option<u64>,
    /// How many were dropped for their age or for their bytes.
    pub dropped: u64,
    /// How many were deleted from the store before they were pushed.
    pub gone: u64,
    /// The last ones that were dropped or gone.
    pub last_dropped: Vec<Dropped>,
    /// What holds up everything.
    pub trouble: Option<Trouble>,
    /// When it is tried again.
    pub next_try_s: Option<u64>,
    /// What failed alone while others went.
    pub parked: Vec<Parked>,
    /// What waits and takes on the disk, where it was counted.
    pub waiting_bytes: u64,
    /// Why something that waits is not kept from garbage collection.
    pub unheld: Option<String>,
}

/// Something that was not pushed and will not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its base name.
    pub path: String,
    /// A phrase.
    pub why: String,
    /// When.
    pub at_s: u64,
}

/// What holds up everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// A sentence.
    pub message: String,
    /// Since when it is so.
    pub since_s: u64,
}

/// What failed alone while others went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// Its base name.
    pub path: String,
    /// What Nix said.
    pub reason: String,
    /// Since when.
    pub since_s: u64,
    /// When it is tried again.
    pub due_s: u64,
}

impl Status {
    /// The last one, or none: counters begin anew then, and nothing else is lost.
    pub(super) fn load(folder: &Path) -> Self {
        let file = folder.join(FILE);
        let fits = file.metadata().is_ok_and(|metadata| metadata.len() <= FILE_LEN_MAX);
        let text = if fits { std::fs::read(file).unwrap_or_default() } else { Vec::new() };
        serde_json::from_slice(&text).unwrap_or_default()
    }

    pub(super) fn save(&self, folder: &Path) -> std::io::Result<()> {
        let text = serde_json::to_string(self).map_err(std::io::Error::other)?;
        durable::write_private(&folder.join(FILE), &(text + "\n"))
    }

    pub(super) fn drop_one(&mut self, path: &StorePath, why: &str, at_s: u64) {
        let dropped = Dropped { path: path.to_string(), why: why.to_owned(), at_s };
        self.last_dropped.push(dropped);
        let over = self.last_dropped.len().saturating_sub(DROPPED_SHOWN_MAX);
        self.last_dropped.drain(..over);
    }

    pub(super) fn is_parked(&self, path: &StorePath, now_s: u64) -> bool {
        self.parked.iter().any(|it| it.path == path.base_name() && it.due_s > now_s)
    }

    pub(super) fn park(&mut self, path: &StorePath, reason: &str, now_s: u64, due_s: u64) {
        let before = self.parked.iter().find(|it| it.path == path.base_name());
        let since_s = before.map_or(now_s, |it| it.since_s);
        self.unpark(path);
        let (path, reason) = (path.to_string(), reason.to_owned());
        self.parked.push(Parked { path, reason, since_s, due_s });
    }

    pub(super) fn unpark(&mut self, path: &StorePath) {
        self.parked.retain(|it| it.path != path.base_name());
    }
}

/// The spool as anybody sees it who may read the folder.
#[derive(Debug)]
pub struct View {
    /// The folder.
    pub path: PathBuf,
    /// Where it is pushed.
    pub to: Target,
    /// Whether somebody drains it now.
    pub is_drained: bool,
    /// What waits, the oldest first.
    pub entries: Vec<Entry>,
    /// What the drainer told last.
    pub status: Status,
}

/// Looks at the spool of this configuration. No folder is an empty one.
pub fn view(config: &Config) -> Result<View, Error> {
    let folder = Folder::new(config);
    let entries = match folder.entries() {
        Err(Error::List { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Vec::new()
        }
        listed => listed?,
    };
    Ok(View {
        path: config.path.clone(),
        to: config.to.clone(),
        is_drained: folder.is_drained(),
        entries,
        status: Status::load(folder.path()),
    })
}

/// Asks whoever drains, now or next, to try everything at once.
pub fn retry(config: &Config) -> Result<(), Error> {
    Folder::new(config).ask_retry()
}

/// Takes this path out of the spool: how many entries it had.
pub fn forget(config: &Config, path: &StorePath) -> Result<usize, Error> {
    let folder = Folder::new(config);
    let mut forgotten = 0;
    for entry in folder.entries()?.iter().filter(|entry| entry.path == *path) {
        folder.remove(entry)?;
        forgotten += 1;
    }
    Ok(forgotten)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::kit;

    #[test]
    fn a_status_is_read_back_and_a_broken_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut status = Status { pushed: 3, ..Status::default() };
        let path = kit::path("a");
        status.park(&path, "refused", 5, 10);
        status.park(&path, "refused again", 11, 20);
        assert!(status.is_parked(&path, 19) && !status.is_parked(&path, 20));
        assert_eq!((status.parked.len(), status.parked[0].since_s), (1, 5));
        for n in 0..30 {
            status.drop_one(&path, "gone", n);
        }
        assert_eq!((status.last_dropped.len(), status.last_dropped[9].at_s), (10, 29));
        status.save(folder.path()).unwrap();
        assert_eq!(Status::load(folder.path()), status);
        status.unpark(&path);
        assert!(status.parked.is_empty());
        for broken in ["", "{", "[]", "{\"pushed\": -1}", "null"] {
            std::fs::write(folder.path().join(FILE), broken).unwrap();
            assert_eq!(Status::load(folder.path()), Status::default(), "{broken}");
        }
        std::fs::write(folder.path().join(FILE), "{\"pushed\": 1, \"of_a_newer\": 1}").unwrap();
        assert_eq!(Status::load(folder.path()).pushed, 1);
    }

    #[test]
    fn a_spool_that_is_not_there_is_empty_and_a_path_can_be_forgotten() {
        let (top, config) = kit::spool();
        let seen = view(&config).unwrap();
        assert!(seen.entries.is_empty() && !seen.is_drained);
        let folder = Folder::new(&config);
        folder.make().unwrap();
        let entries = [(1, "a"), (2, "a"), (3, "b")].map(|(at, name)| kit::entry(at, name));
        for entry in &entries {
            folder.note(entry).unwrap();
        }
        assert_eq!(forget(&config, &kit::path("a")).unwrap(), 2);
        assert_eq!(forget(&config, &kit::path("a")).unwrap(), 0);
        assert_eq!(view(&config).unwrap().entries, [entries[2].clone()]);
        drop(top);
    }
}
