//! Notes: what root's commands tell the daemon, which may read them and nothing else of theirs. They
//! lie in memory (`/run`), so a boot begins without any.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{FILE_LEN_MAX, Slot, read_bounded};

/// The note about updates.
const UPDATE: &str = "update.toml";

/// The note about the settings file.
const SETTINGS: &str = "settings.toml";

/// Errors of the settings that are kept: more than that nobody reads, and the file itself is there.
const ERRORS_MAX: usize = 64;

/// Longest sentence that is kept.
const SENTENCE_LEN_MAX: usize = 512;

/// How an update stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateState {
    /// Nothing is under way.
    #[default]
    Idle,
    /// The file is being fetched.
    Downloading,
    /// The other slot is being written.
    Installing,
    /// It waits for the restart.
    Installed,
    /// It runs, and is watched before it may stay.
    Confirming,
    /// It did not come up well, or was taken back: the version before runs.
    RolledBack,
    /// It could not be fetched or installed; nothing was changed.
    Failed,
}

impl UpdateState {
    /// As it is written, also in `/api/status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Downloading => "downloading",
            Self::Installing => "installing",
            Self::Installed => "installed",
            Self::Confirming => "confirming",
            Self::RolledBack => "rolled-back",
            Self::Failed => "failed",
        }
    }
}

/// What `snowberry update` tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct UpdateNote {
    /// The slot that runs.
    pub slot: Option<Slot>,
    /// The version of its image.
    pub version: String,
    /// Whether it runs on trial: the firmware falls back to the other slot at the next start.
    pub trial: bool,
    /// How the update stands.
    pub state: UpdateState,
    /// The version that is being fetched, installed or tried.
    pub next: Option<String>,
    /// Why the last one came to nothing.
    pub last_error: Option<String>,
    /// Since when it stands so, in seconds since 1970.
    pub since: u64,
}

/// What `snowberry first-boot` tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct SettingsNote {
    /// What was wrong in the settings, a sentence each.
    pub errors: Vec<String>,
    /// When they were applied, in seconds since 1970.
    pub applied_at: Option<u64>,
}

/// All notes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// That of updates, when there is one that can be read.
    pub update: Option<UpdateNote>,
    /// That of settings.
    pub settings: Option<SettingsNote>,
}

impl Notes {
    /// What there is; `None` where there is no folder, so on no appliance.
    pub fn read(folder: &Path) -> Option<Self> {
        folder.is_dir().then(|| {
            let mut notes = Self { update: one(folder, UPDATE), settings: one(folder, SETTINGS) };
            if let Some(settings) = &mut notes.settings {
                settings.errors.truncate(ERRORS_MAX);
                settings.errors.iter_mut().for_each(shorten);
            }
            if let Some(error) = notes.update.as_mut().and_then(|it| it.last_error.as_mut()) {
                shorten(error);
            }
            notes
        })
    }
}

impl UpdateNote {
    /// Replaces the note.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        write(folder, UPDATE, self)
    }
}

impl SettingsNote {
    /// Replaces the note.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        write(folder, SETTINGS, self)
    }
}

fn one<T: for<'de> Deserialize<'de>>(folder: &Path, name: &str) -> Option<T> {
    toml::from_str(&read_bounded(&folder.join(name), FILE_LEN_MAX).ok()?).ok()
}

fn shorten(sentence: &mut String) {
    let end = (0..=SENTENCE_LEN_MAX).rev().find(|end| sentence.is_char_boundary(*end));
    sentence.truncate(end.unwrap_or(0));
}

/// All or nothing for whoever reads meanwhile; nothing in memory has to outlive a power cut.
fn write<T: Serialize>(folder: &Path, name: &str, note: &T) -> io::Result<()> {
    let text = toml::to_string(note).map_err(io::Error::other)?;
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    let (new, path) = (folder.join(format!("{name}.new")), folder.join(name));
    fs::write(&new, text)?;
    fs::set_permissions(&new, Permissions::from_mode(0o644))?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_others_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let notes = folder.path().join("notes");
        assert_eq!(Notes::read(&notes), None);
        let update = UpdateNote {
            slot: Some(Slot::B),
            version: "0.1.0".into(),
            trial: true,
            state: UpdateState::Confirming,
            next: Some("0.2.0".into()),
            last_error: Some("a \"sentence\"".into()),
            since: 7,
        };
        let settings = SettingsNote { errors: vec!["one".into()], applied_at: Some(9) };
        update.write(&notes).unwrap();
        settings.write(&notes).unwrap();
        let both = Notes { update: Some(update), settings: Some(settings) };
        assert_eq!(Notes::read(&notes), Some(both));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&notes), mode(&notes.join(UPDATE))), (0o755, 0o644));
    }

    #[test]
    fn garbage_and_floods_are_no_notes() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        let flood = vec![b'#'; 1 << 17];
        for garbage in [&b"\xff\xfe"[..], b"state = 7", b"state = \"x\"", &flood] {
            put(UPDATE, garbage);
            put(SETTINGS, b"errors = 3");
            assert_eq!(Notes::read(folder.path()), Some(Notes::default()));
        }
        let long = "\u{e4}".repeat(SENTENCE_LEN_MAX);
        put(SETTINGS, format!("errors = [{}]", format!("{long:?},").repeat(60)).as_bytes());
        let read = Notes::read(folder.path()).unwrap().settings.unwrap();
        assert_eq!((read.errors.len(), read.errors[0].len()), (60, SENTENCE_LEN_MAX));
    }

    #[test]
    fn states_are_written_as_they_are_named() {
        for state in [
            UpdateState::Idle,
            UpdateState::Downloading,
            UpdateState::Installing,
            UpdateState::Installed,
            UpdateState::Confirming,
            UpdateState::RolledBack,
            UpdateState::Failed,
        ] {
            let note = UpdateNote { state, ..UpdateNote::default() };
            let text = toml::to_string(&note).unwrap();
            assert!(text.contains(&format!("state = {:?}", state.name())), "{text}");
        }
    }
}
