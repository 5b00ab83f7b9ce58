//! Where things lie on the card of the appliance, as its image says it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{FILE_LEN_MAX, read_bounded};

/// Where the image says it.
pub const LAYOUT_FILE: &str = "/usr/lib/snowberry/appliance.toml";

/// Where the daemon answers on its own machine, unless the image says otherwise.
const DEFAULT_HEALTH: &str = "127.0.0.1:80";

/// The folder in which Linux names partitions by their ids.
const BY_PARTUUID: &str = "/dev/disk/by-partuuid";

/// One of the two places for a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// The one that this one is not.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its name, which is also that of its folder on the boot partition.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// From its name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::A, Self::B].into_iter().find(|slot| slot.name() == text)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The partitions of the slots, or plain files that stand for them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Slots {
    /// That of [`Slot::A`].
    pub a: PathBuf,
    /// That of [`Slot::B`].
    pub b: PathBuf,
}

/// Where things lie.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Layout {
    /// The version of the image that runs.
    pub version: String,
    /// The boot partition, a FAT: `config.txt` and a folder for each slot.
    pub boot: PathBuf,
    /// The data partition, which outlives updates.
    pub data: PathBuf,
    /// The partitions of the slots.
    pub slots: Slots,
    /// What root's commands tell the daemon.
    pub notes: PathBuf,
    /// The public keys of releases, one a line.
    pub keys: PathBuf,
    /// Host and port at which the daemon answers this machine over plain HTTP.
    #[serde(default = "default_health")]
    pub health: String,
}

fn default_health() -> String {
    DEFAULT_HEALTH.to_owned()
}

/// Why it is not known where things lie.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read {}: is this an appliance made from snowberry's image?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It says something else.
    #[error("{} is no layout of an appliance", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
}

impl Layout {
    /// As the file says it.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = read_bounded(path, FILE_LEN_MAX)
            .map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        toml::from_str(&text)
            .map_err(|source| Error::Wrong { path: path.to_path_buf(), source: source.into() })
    }

    /// The partition of a slot.
    pub fn partition(&self, slot: Slot) -> &Path {
        match slot {
            Slot::A => &self.slots.a,
            Slot::B => &self.slots.b,
        }
    }

    /// How the kernel's `root=` names a slot: by the partition's id where that is how it is known
    /// here, since the names of disks differ between Pis.
    pub fn root_of(&self, slot: Slot) -> String {
        let partition = self.partition(slot);
        match partition.strip_prefix(BY_PARTUUID) {
            Ok(id) => format!("PARTUUID={}", id.display()),
            Err(_) => partition.display().to_string(),
        }
    }

    /// The folder of a slot on the boot partition.
    pub fn boot_of(&self, slot: Slot) -> PathBuf {
        self.boot.join(slot.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        version = "0.1.0"
        boot = "/boot/firmware"
        data = "/var/lib/snowberry-data"
        slots = { a = "/dev/disk/by-partuuid/5b0e2217-02", b = "/srv/b" }
        notes = "/run/snowberry-appliance"
        keys = "/usr/lib/snowberry/release-keys"
        of-a-later-image = true
    "#;

    #[test]
    fn the_layout_is_read_and_slots_are_named_to_the_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("appliance.toml");
        std::fs::write(&file, TEXT).unwrap();
        let layout = Layout::read(&file).unwrap();
        assert_eq!(layout.root_of(Slot::A), "PARTUUID=5b0e2217-02");
        assert_eq!(layout.root_of(Slot::B), "/srv/b");
        assert_eq!(layout.boot_of(Slot::B), Path::new("/boot/firmware/b"));
        assert_eq!(layout.health, DEFAULT_HEALTH);
        std::fs::write(&file, "version = 1").unwrap();
        assert!(matches!(Layout::read(&file), Err(Error::Wrong { .. })));
        std::fs::write(&file, vec![b'#'; 1 << 17]).unwrap();
        assert!(matches!(Layout::read(&file), Err(Error::Read { .. })));
    }

    #[test]
    fn a_slot_is_not_the_other() {
        for slot in [Slot::A, Slot::B] {
            assert_eq!(Slot::parse(slot.name()), Some(slot));
            assert_eq!((slot.other() == slot, slot.other().other()), (false, slot));
        }
        assert_eq!(Slot::parse("c"), None);
    }
}
