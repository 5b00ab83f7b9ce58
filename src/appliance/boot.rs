//! What is said to the firmware and by the kernel about slots. Pure.

use super::Slot;

/// Longest `config.txt`: the firmware itself takes no more than some KiB.
pub const CONFIG_LEN_MAX: u64 = 64 * 1024;

/// The key of `config.txt` that names the folder of the kernel, and so the slot.
const PREFIX_KEY: &str = "os_prefix=";

/// What the kernel's command line calls the slot.
const SLOT_KEY: &str = "snowberry.slot=";

/// The folder that a line `os_prefix=a/` names; `None` for any other line.
fn folder_in(line: &str) -> Option<&str> {
    line.trim().strip_prefix(PREFIX_KEY).map(str::trim)
}

/// The slot that a `config.txt` boots; `None` when no line says it, or two say different ones.
pub fn slot_of(config: &str) -> Option<Slot> {
    let mut folders = config.lines().filter_map(folder_in);
    let first = folders.next()?;
    let slot = Slot::parse(first.strip_suffix('/')?)?;
    folders.all(|other| other == first).then_some(slot)
}

/// The same `config.txt` for another slot; every other line stays as it is. `None` when it does not
/// say which slot it boots.
pub fn with_slot(config: &str, slot: Slot) -> Option<String> {
    slot_of(config)?;
    let mut text = String::with_capacity(config.len());
    for line in config.split_inclusive('\n') {
        if folder_in(line).is_none() {
            text.push_str(line);
            continue;
        }
        let bare = line.trim_end_matches(['\n', '\r']);
        let line_end = line.strip_prefix(bare).unwrap_or_default();
        text.push_str(PREFIX_KEY);
        text.push_str(slot.name());
        text.push('/');
        text.push_str(line_end);
    }
    Some(text)
}

/// The slot that runs, by the kernel's command line. The last one counts, as with the kernel's own.
pub fn running_slot(command_line: &str) -> Option<Slot> {
    let mut words = command_line.split_whitespace();
    Slot::parse(words.rfind(|word| word.starts_with(SLOT_KEY))?.strip_prefix(SLOT_KEY)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_txt_is_read_and_changed_in_one_line_only() {
        let config = "# Pi\narm_64bit=1\r\nos_prefix=a/\r\n[pi5]\nos_check=0";
        assert_eq!(slot_of(config), Some(Slot::A));
        let changed = with_slot(config, Slot::B).unwrap();
        assert_eq!(changed, config.replace("=a/", "=b/"));
        assert_eq!(with_slot(&changed, Slot::A).unwrap(), config);
    }

    #[test]
    fn a_config_txt_that_names_no_slot_or_two_is_not_changed() {
        for config in [
            "",
            "arm_64bit=1\n",
            "#os_prefix=a/\n",
            "os_prefix=c/\n",
            "os_prefix=a\n",
            "os_prefix=a/\nos_prefix=b/\n",
            "os_prefix=a/\nos_prefix=\n",
        ] {
            assert_eq!((slot_of(config), with_slot(config, Slot::B)), (None, None), "{config:?}");
        }
        assert_eq!(slot_of("os_prefix=b/\n[all]\n os_prefix=b/ \n"), Some(Slot::B));
    }

    #[test]
    fn the_kernels_command_line_says_which_slot_runs() {
        assert_eq!(running_slot("ro root=X snowberry.slot=b quiet\n"), Some(Slot::B));
        assert_eq!(running_slot("snowberry.slot=a snowberry.slot=b"), Some(Slot::B));
        for none in ["", "snowberry.slot=", "snowberry.slot=c", "xsnowberry.slot=a"] {
            assert_eq!(running_slot(none), None, "{none:?}");
        }
    }
}
