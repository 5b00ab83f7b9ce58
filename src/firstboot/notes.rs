//! What was wrong with the settings, for people on the boot partition and for the daemon's page.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use serde::Serialize;

/// The file among the notes.
const SETTINGS_NOTE: &str = "settings.toml";

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Note<'a> {
    errors: &'a [String],
    applied_at: i64,
}

/// `None` when all is well.
pub(super) fn errors_text(sentences: &[String]) -> Option<String> {
    if sentences.is_empty() {
        return None;
    }
    let mut text = String::from(
        "What is wrong with the settings of this snowberry. Everything else was applied; what is \
         wrong\ntook its default. Mend snowberry.toml and start again: this file goes when all is \
         well.\n\n",
    );
    for sentence in sentences {
        text.push_str("* ");
        text.push_str(sentence);
        text.push('\n');
    }
    Some(text)
}

/// Tells the daemon, which may be another user's.
pub(super) fn write(folder: &Path, errors: &[String], now_s: u64) -> io::Result<()> {
    let note = Note { errors, applied_at: i64::try_from(now_s).unwrap_or(i64::MAX) };
    let text = toml::to_string(&note).map_err(io::Error::other)?;
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let (path, new) = (folder.join(SETTINGS_NOTE), folder.join(format!("{SETTINGS_NOTE}.new")));
    fs::write(&new, text)?;
    fs::set_permissions(&new, Permissions::from_mode(0o644))?;
    fs::rename(new, path)
}
