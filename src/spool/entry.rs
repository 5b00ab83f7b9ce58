//! What waits, as it is named in the spool folder: when it was noted, and which store path. Pure.

use crate::nix::StorePath;

/// Digits of the seconds since 1970: enough until 2286, and with the hyphen and the longest store
/// path (244 characters) exactly what a file name may have.
const SECONDS_LEN: usize = 10;

/// A clock before 2026 has not been set yet, in seconds since 1970: an age cannot be taken from it.
const CLOCK_MIN_S: u64 = 1_767_225_600;

/// One store path that waits. Orders by its age, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// When it was noted, in seconds since 1970 by the clock of that moment.
    pub noted_s: u64,
    /// What was built.
    pub path: StorePath,
}

impl Entry {
    /// From the name of its link; `None` for what is no entry.
    pub(super) fn parse(file_name: &str) -> Option<Self> {
        let (seconds, rest) = file_name.split_at_checked(SECONDS_LEN)?;
        if !seconds.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        let path = StorePath::parse(rest.strip_prefix('-')?).ok()?;
        Some(Self { noted_s: seconds.parse().ok()?, path })
    }

    /// The name of its link.
    pub(super) fn file_name(&self) -> String {
        format!("{:0SECONDS_LEN$}-{}", self.noted_s, self.path)
    }

    /// How long it waits. What was noted before the clock was set, or after now, is new.
    pub fn age_s(&self, now_s: u64) -> u64 {
        if self.noted_s < CLOCK_MIN_S { 0 } else { now_s.saturating_sub(self.noted_s) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "9d82wl65gr2phigksgzzimbdf176rx4c";

    #[test]
    fn a_name_is_read_back_as_it_was_written() {
        let longest = "n".repeat(211);
        for name in ["a", "hello-1.0", longest.as_str()] {
            let path = StorePath::parse(&format!("{HASH}-{name}")).unwrap();
            let entry = Entry { noted_s: 1_795_000_000, path };
            assert!(entry.file_name().len() <= 255, "{}", entry.file_name().len());
            assert_eq!(Entry::parse(&entry.file_name()), Some(entry));
        }
    }

    #[test]
    fn what_is_no_entry_is_none() {
        let own = ["lock", "retry", "status.json", "status.json.new", "cache", ""];
        let odd = [
            format!("1795000000-{HASH}"),
            format!("179500000-{HASH}-a"),
            format!("+795000000-{HASH}-a"),
            format!("1795000000_{HASH}-a"),
            format!("1795000000-{HASH}-a/b"),
            "\u{e4}".repeat(200),
        ];
        for name in own.into_iter().chain(odd.iter().map(String::as_str)) {
            assert_eq!(Entry::parse(name), None, "{name}");
        }
    }

    #[test]
    fn names_order_by_age_and_no_clock_makes_a_new_build_old() {
        let entry =
            |noted_s| Entry { noted_s, path: StorePath::parse(&format!("{HASH}-a")).unwrap() };
        assert!(entry(5).file_name() < entry(1_795_000_000).file_name());
        assert_eq!(entry(1_795_000_000).age_s(1_795_000_060), 60);
        assert_eq!(entry(5).age_s(1_795_000_060), 0, "before the clock was set");
        assert_eq!(entry(1_795_000_060).age_s(1_795_000_000), 0, "the clock went back");
    }
}
