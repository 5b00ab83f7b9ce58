//! What the parts of the appliance share: where things lie on its card, which slot is which, and the
//! notes by which root's commands tell the daemon how they are. Knows nothing of what an update or a
//! settings file is.

mod boot;
mod layout;
mod notes;

pub use boot::{CONFIG_LEN_MAX, running_slot, slot_of, with_slot};
pub use layout::{Error, LAYOUT_FILE, Layout, Slot, Slots};
pub use notes::{Notes, SettingsNote, UpdateNote, UpdateState};

/// Longest of the small files that are read here: notes and the layout have some hundred bytes, the
/// settings' errors at most 32 KiB.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// A small file of text; longer than the bound, or no UTF-8, is an error.
pub fn read_bounded(path: &std::path::Path, len_max: u64) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    // One byte more shows that there is more.
    let file = std::fs::File::open(path)?;
    file.take(len_max.saturating_add(1)).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > len_max {
        return Err(std::io::Error::other(format!("longer than {len_max} bytes")));
    }
    Ok(text)
}
