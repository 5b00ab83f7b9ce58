//! What of the settings outlives a boot, on the data partition: secrets that were moved there, and
//! the last files that could be read.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::secrets::Kept;
use super::told::Told;
use crate::durable;

/// The folder, for root only.
const FOLDER: &str = "settings";

/// The secrets in it.
const SECRETS: &str = "secrets.toml";

/// As long as a settings file may be, with the line that is added.
const FILE_LEN_MAX: u64 = 128 << 10;

/// The folder on the data partition.
pub(super) struct State {
    data: PathBuf,
}

impl State {
    pub(super) fn new(data: &Path) -> Self {
        Self { data: data.to_path_buf() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.data.join(FOLDER).join(name)
    }

    pub(super) fn kept(&self, told: &mut Told) -> Kept {
        let path = self.file(SECRETS);
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Kept::default(),
            Err(error) => {
                told.say(&format!("{} cannot be read: {error}", path.display()));
                return Kept::default();
            }
        };
        let kept = String::from_utf8(text).ok().and_then(|text| Kept::parse(&text));
        kept.unwrap_or_else(|| {
            told.say(&format!(
                "{} is damaged: write the Wi-Fi password and the bucket's secret again",
                path.display()
            ));
            Kept::default()
        })
    }

    /// Whether they are safe there now.
    pub(super) fn keep(&self, kept: &Kept, told: &mut Told) -> bool {
        let written = self.write(SECRETS, &kept.text());
        if let Err(error) = &written {
            told.say(&format!(
                "the data partition takes no secrets, so they stay on the boot partition: {error}"
            ));
        }
        written.is_ok()
    }

    /// A file as it was when it could be read.
    pub(super) fn last(&self, name: &str) -> Option<Vec<u8>> {
        read(&self.file(&last_name(name))).ok()
    }

    pub(super) fn remember(&self, name: &str, raw: &[u8], told: &mut Told) {
        // Other bytes than text are none of its keys.
        let text = String::from_utf8_lossy(raw);
        if self.last(name).is_some_and(|known| known == text.as_bytes()) {
            return;
        }
        if let Err(error) = self.write(&last_name(name), &text) {
            told.say(&format!("the data partition cannot keep a copy of {name}: {error}"));
        }
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let folder = self.data.join(FOLDER);
        if !folder.exists() {
            // Not the data folder itself: where it is missing the partition is.
            DirBuilder::new().mode(0o700).create(&folder)?;
            File::open(&self.data)?.sync_all()?;
        }
        durable::write_private(&folder.join(name), text)
    }
}

fn last_name(name: &str) -> String {
    format!("last-{name}")
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(FILE_LEN_MAX).read_to_end(&mut text)?;
    Ok(text)
}
