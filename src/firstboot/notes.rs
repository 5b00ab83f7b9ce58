//! What was wrong with the settings, for people on the boot partition and for the daemon's page.

use std::io;
use std::path::Path;

use crate::appliance::SettingsNote;

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
    SettingsNote { errors: errors.to_vec(), applied_at: Some(now_s) }.write(folder)
}
