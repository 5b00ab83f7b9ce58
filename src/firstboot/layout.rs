//! Where the appliance has what: read from the image, the usual places where that cannot be read.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What says where, in the image.
pub const LAYOUT_FILE: &str = "/usr/lib/snowberry/appliance.toml";

/// The folders that settings are read from and written to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Folders {
    /// The FAT partition, which every machine can read.
    pub boot: PathBuf,
    /// The data partition, which outlives the image.
    pub data: PathBuf,
    /// What the parts of the appliance tell the daemon.
    pub notes: PathBuf,
    /// What the image itself wants of the daemon's configuration, under what its owner wants.
    pub defaults: Option<PathBuf>,
}

impl Default for Folders {
    fn default() -> Self {
        Self {
            boot: PathBuf::from("/boot/firmware"),
            data: PathBuf::from("/var/lib/snowberry-data"),
            notes: PathBuf::from("/run/snowberry-appliance"),
            defaults: None,
        }
    }
}

impl Folders {
    /// As the file says; with it, in a sentence, what of it was not understood. `None` where there is
    /// no such file: this machine is no appliance, and its files are nobody's to write.
    pub fn read(file: &Path) -> Option<(Self, Option<String>)> {
        let wrong = |why: &dyn std::fmt::Display| {
            format!("{} cannot be read ({why}): the usual folders are taken", file.display())
        };
        match std::fs::read_to_string(file).map(|text| toml::from_str(&text)) {
            Ok(Ok(folders)) => Some((folders, None)),
            Ok(Err(error)) => Some((Self::default(), Some(wrong(&error.message())))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => Some((Self::default(), Some(wrong(&error)))),
        }
    }
}
