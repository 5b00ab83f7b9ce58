//! What outlives a restart: which version each slot holds, what is on trial, what is not tried again.
//! One file on the data partition, replaced whole. Without it nothing is lost but memory: the firmware
//! knows the slot, and the image its version.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Error, io_error};
use super::version::Version;
use crate::appliance::{Slot, UpdateState, read_bounded};
use crate::durable;

/// Longest record: it has some hundred bytes.
const RECORD_LEN_MAX: u64 = 64 * 1024;

/// Versions that are remembered as not to be tried again; the oldest is forgotten.
const REFUSED_MAX: usize = 16;

/// Longest sentence that is kept.
const SENTENCE_LEN_MAX: usize = 500;

/// What a slot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Holds {
    /// The version.
    pub version: Version,
    /// Whether it was well once.
    pub confirmed: bool,
    /// What the slot looked like: a card that was flashed anew looks differently.
    pub print: String,
}

/// A version that is to be booted once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Trial {
    /// The version.
    pub version: Version,
    /// Where it is.
    pub slot: Slot,
    /// Whether there was a default route when it was installed: then there must be one again.
    pub had_route: bool,
    /// The kernel's id of the boot during which it was installed, which is no trial of it.
    pub boot_id: String,
    /// Whether it came up as far as to look at itself.
    pub begun: bool,
}

/// The record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Record {
    /// How the last update stands.
    pub state: UpdateState,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Why the last one came to nothing.
    pub last_error: Option<String>,
    /// Versions that did not come up well, or were taken back: not tried again without being asked.
    pub refused: Vec<Version>,
    /// What is to be booted once.
    pub trial: Option<Trial>,
    /// What slot a holds.
    pub a: Option<Holds>,
    /// What slot b holds.
    pub b: Option<Holds>,
}

impl Record {
    /// What a slot holds, as far as is known.
    pub fn holds(&self, slot: Slot) -> Option<&Holds> {
        match slot {
            Slot::A => self.a.as_ref(),
            Slot::B => self.b.as_ref(),
        }
    }

    /// Says what a slot holds.
    pub fn set_holds(&mut self, slot: Slot, holds: Option<Holds>) {
        match slot {
            Slot::A => self.a = holds,
            Slot::B => self.b = holds,
        }
    }

    /// Remembers a version as not to be tried again.
    pub fn refuse(&mut self, version: Version) {
        self.refused.retain(|other| *other != version);
        let surplus = (self.refused.len() + 1).saturating_sub(REFUSED_MAX);
        self.refused.drain(..surplus);
        self.refused.push(version);
    }

    /// How it stands from now on.
    pub fn stands(&mut self, state: UpdateState, now: u64, error: Option<String>) {
        let shortened = |error: String| error.chars().take(SENTENCE_LEN_MAX).collect();
        (self.state, self.since, self.last_error) = (state, now, error.map(shortened));
    }
}

/// The folder of updates on the data partition: the record, and the file that is being fetched.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// Below the data partition. Made when it is not there; the partition's own folder is not.
    pub fn open(data: &Path) -> Result<Self, Error> {
        let path = data.join("update");
        let made = match fs::create_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => fs::set_permissions(&path, fs::Permissions::from_mode(0o700)),
        };
        made.map_err(io_error("make", &path))?;
        Ok(Self(path))
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Its own path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The record as it is; one that is missing or cannot be read is an empty one.
    pub fn record(&self) -> Record {
        let path = self.file(FILE);
        let text = match read_bounded(&path, RECORD_LEN_MAX) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, path = %path.display(), "the record of updates is lost");
                }
                return Record::default();
            }
        };
        toml::from_str(&text).unwrap_or_else(|error| {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, path = %path.display(), "the record of updates is lost");
            Record::default()
        })
    }

    /// Changes the record, all or nothing; nobody else does meanwhile.
    pub fn change(&self, change: impl FnOnce(&mut Record)) -> Result<Record, Error> {
        let path = self.file(FILE);
        let _lock = durable::lock_folder(&self.0).map_err(io_error("lock", &self.0))?;
        let mut record = self.record();
        change(&mut record);
        let text = toml::to_string(&record).map_err(std::io::Error::other);
        let written = text.and_then(|text| durable::write_private(&path, &text));
        written.map_err(io_error("write", &path))?;
        Ok(record)
    }
}

/// The record's name.
const FILE: &str = "record.toml";

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn a_record_is_kept_whole() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::open(data.path()).unwrap();
        assert_eq!(folder.record(), Record::default());
        let holds = Holds { version: version("0.1.0"), confirmed: true, print: "print".to_owned() };
        let trial = Trial {
            version: version("0.2.0-rc.1"),
            slot: Slot::B,
            had_route: true,
            boot_id: "id".into(),
            begun: false,
        };
        let changed = folder.change(|record| {
            record.set_holds(Slot::A, Some(holds.clone()));
            record.trial = Some(trial.clone());
            record.refuse(version("0.1.5"));
            record.stands(UpdateState::Installed, 7, Some("\u{e4}".repeat(9999)));
        });
        let record = Folder::open(data.path()).unwrap().record();
        assert_eq!(record, changed.unwrap());
        assert_eq!((record.holds(Slot::A), record.holds(Slot::B)), (Some(&holds), None));
        assert_eq!((record.trial, record.since), (Some(trial), 7));
    }

    #[test]
    fn garbage_is_an_empty_record_that_can_be_written_anew() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::open(data.path()).unwrap();
        let flood = vec![b'#'; 1 << 17];
        for garbage in [&b"\xff"[..], b"state = 1", b"a = {}", &flood] {
            fs::write(folder.file(FILE), garbage).unwrap();
            assert_eq!(folder.record(), Record::default());
        }
        folder.change(|record| record.since = 3).unwrap();
        assert_eq!(folder.record().since, 3);
    }

    #[test]
    fn a_missing_data_partition_is_not_made_up() {
        let data = tempfile::tempdir().unwrap();
        assert!(Folder::open(&data.path().join("not-mounted")).is_err());
    }

    #[test]
    fn what_was_refused_is_remembered_within_bounds() {
        let mut record = Record::default();
        for patch in 0..40 {
            record.refuse(version(&format!("0.0.{patch}")));
            record.refuse(version("0.1.0"));
        }
        assert_eq!(record.refused.len(), REFUSED_MAX);
        assert!(record.refused.contains(&version("0.1.0")));
        assert!(!record.refused.contains(&version("0.0.1")));
    }
}
