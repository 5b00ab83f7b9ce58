//! A look at the folder: what waits, and what of it need not wait any longer. Blocks.

use std::collections::{HashMap, HashSet};

use super::folder::{Folder, by_path};
use super::{Config, Entry, Error};
use crate::nix::StorePath;

/// Something that waits.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) path: StorePath,
    /// More than one when it was built more than once.
    pub(super) entries: Vec<Entry>,
    /// What it takes on the disk.
    pub(super) bytes: u64,
}

/// Why something waits no longer without having been pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Not in Nix's store any more.
    Gone,
    /// Named by `spool.exclude` since.
    Excluded,
    /// Beyond `spool.age-max`.
    Age,
    /// Beyond `spool.bytes-max`.
    Bytes,
}

impl Why {
    /// For people.
    pub(super) fn phrase(self) -> &'static str {
        match self {
            Self::Gone => "it was deleted from the store",
            Self::Excluded => "spool.exclude names it",
            Self::Age => "it waited longer than spool.age-max",
            Self::Bytes => "what waits took more than spool.bytes-max",
        }
    }
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The oldest first.
    pub(super) waiting: Vec<Waiting>,
    pub(super) dropped: Vec<(StorePath, Why)>,
    /// Somebody asked not to wait.
    pub(super) retry: bool,
    /// Entries that are not kept from garbage collection, and the last reason.
    pub(super) unheld: Option<(usize, String)>,
}

/// Sizes that were taken before: a walk over a large path takes a second.
pub(super) type Sizes = HashMap<StorePath, u64>;

/// Looks, at `now_s`. The bounds count only where a try has failed: what just came, or is
/// about to go, is not dropped for them.
pub(super) fn look(
    config: &Config,
    sizes: &mut Sizes,
    now_s: u64,
    bounds_count: bool,
) -> Result<Seen, Error> {
    let folder = Folder::new(config);
    let mut seen = Seen { retry: folder.take_retry(), ..Seen::default() };
    let mut kept = Vec::new();
    for (path, entries) in by_path(folder.entries()?) {
        let size = sizes.get(&path).copied();
        let is_there = folder.in_store(&path).symlink_metadata().is_ok();
        let why = if is_there {
            config.exclude.iter().any(|pattern| pattern.fits(&path)).then_some(Why::Excluded)
        } else {
            Some(Why::Gone)
        };
        if let Some(why) = why {
            drop_entries(&folder, path, &entries, why, &mut seen)?;
            continue;
        }
        let bytes = size.or_else(|| folder.size(&path)).unwrap_or_default();
        sizes.insert(path.clone(), bytes);
        kept.push(Waiting { path, entries, bytes });
    }
    let verdicts = if bounds_count { beyond(config, &kept, now_s) } else { Vec::new() };
    let mut verdicts = verdicts.into_iter();
    for waiting in kept {
        if let Some(why) = verdicts.next().flatten() {
            drop_entries(&folder, waiting.path, &waiting.entries, why, &mut seen)?;
            continue;
        }
        hold(&folder, &waiting.entries, &mut seen);
        seen.waiting.push(waiting);
    }
    let still: HashSet<&StorePath> = seen.waiting.iter().map(|waiting| &waiting.path).collect();
    sizes.retain(|path, _| still.contains(path));
    Ok(seen)
}

fn hold(folder: &Folder, entries: &[Entry], seen: &mut Seen) {
    for entry in entries {
        if let Err(error) = folder.mend(entry) {
            let reason = format!("{}: {error}", folder.root(entry).display());
            seen.unheld = Some((seen.unheld.take().map_or(1, |(count, _)| count + 1), reason));
        }
    }
}

fn drop_entries(
    folder: &Folder,
    path: StorePath,
    entries: &[Entry],
    why: Why,
    seen: &mut Seen,
) -> Result<(), Error> {
    entries.iter().try_for_each(|entry| folder.remove(entry))?;
    seen.dropped.push((path, why));
    Ok(())
}

/// What is beyond the bounds, in the order of `waiting`, which is the oldest first. A path that is
/// beyond them alone does not push out the others.
fn beyond(config: &Config, waiting: &[Waiting], now_s: u64) -> Vec<Option<Why>> {
    let mut verdicts: Vec<Option<Why>> = waiting
        .iter()
        .map(|waiting| {
            let noted = waiting.entries.last();
            let age_s = noted.map_or(0, |entry| entry.age_s(now_s));
            if age_s > config.age_max.as_secs() {
                Some(Why::Age)
            } else {
                (waiting.bytes > config.bytes_max.0).then_some(Why::Bytes)
            }
        })
        .collect();
    let kept = waiting.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_none());
    let mut bytes = kept.fold(0_u64, |sum, (waiting, _)| sum.saturating_add(waiting.bytes));
    for (waiting, verdict) in waiting.iter().zip(&mut verdicts) {
        if bytes <= config.bytes_max.0 {
            break;
        }
        if verdict.is_none() {
            *verdict = Some(Why::Bytes);
            bytes = bytes.saturating_sub(waiting.bytes);
        }
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spool::kit;
    use crate::units::ByteSize;

    const NOW_S: u64 = 1_795_000_000;

    fn note(config: &Config, age_s: u64, name: &str) -> Entry {
        let folder = Folder::new(config);
        folder.make().unwrap();
        let entry = kit::entry(NOW_S - age_s, name);
        folder.note(&entry).unwrap();
        folder.hold(&entry).unwrap();
        entry
    }

    fn names(seen: &Seen) -> Vec<&str> {
        seen.waiting.iter().map(|waiting| waiting.path.name()).collect()
    }

    #[test]
    fn what_is_gone_or_excluded_goes_and_takes_its_root_along() {
        let (top, mut config) = kit::spool();
        config.exclude = vec!["x*".parse().unwrap()];
        kit::in_store(&config, "a");
        kit::in_store(&config, "x1");
        note(&config, 3, "a");
        let gone = note(&config, 2, "gone");
        let excluded = note(&config, 1, "x1");
        let seen = look(&config, &mut Sizes::new(), NOW_S, false).unwrap();
        assert_eq!(names(&seen), ["a"]);
        let dropped = [(kit::path("gone"), Why::Gone), (kit::path("x1"), Why::Excluded)];
        assert_eq!(seen.dropped, dropped);
        for entry in [gone, excluded] {
            assert!(Folder::new(&config).root(&entry).symlink_metadata().is_err());
        }
        drop(top);
    }

    #[test]
    fn a_lost_root_is_made_again_and_what_cannot_be_is_counted() {
        let (top, mut config) = kit::spool();
        for name in ["a", "b"] {
            kit::in_store(&config, name);
        }
        let entry = note(&config, 2, "a");
        note(&config, 1, "b");
        let root = Folder::new(&config).root(&entry);
        std::fs::remove_file(&root).unwrap();
        let seen = look(&config, &mut Sizes::new(), NOW_S, false).unwrap();
        assert!(seen.unheld.is_none() && root.symlink_metadata().is_ok());
        config.nix_state_dir = top.path().join("file");
        std::fs::write(&config.nix_state_dir, "").unwrap();
        let seen = look(&config, &mut Sizes::new(), NOW_S, false).unwrap();
        assert_eq!(seen.unheld.unwrap().0, 2);
        assert_eq!(seen.waiting.len(), 2);
    }

    #[test]
    fn the_bounds_drop_the_oldest_once_a_try_has_failed() {
        let (top, mut config) = kit::spool();
        for (age_s, name) in [(9000, "old"), (50, "a"), (40, "b"), (30, "c"), (20, "d")] {
            kit::in_store(&config, name);
            note(&config, age_s, name);
        }
        config.age_max = Duration::from_hours(1);
        let mut sizes: Sizes =
            ["old", "a", "c", "d"].map(|name| (kit::path(name), 400)).into_iter().collect();
        sizes.insert(kit::path("b"), 5000);
        config.bytes_max = ByteSize(1000);
        let seen = look(&config, &mut sizes, NOW_S, false).unwrap();
        assert_eq!(seen.waiting.len(), 5, "nothing was tried yet");
        let seen = look(&config, &mut sizes, NOW_S, true).unwrap();
        assert_eq!(names(&seen), ["c", "d"]);
        let dropped = [("old", Why::Age), ("a", Why::Bytes), ("b", Why::Bytes)];
        assert_eq!(seen.dropped, dropped.map(|(name, why)| (kit::path(name), why)));
        assert_eq!(sizes.len(), 2);
        drop(top);
    }

    #[test]
    fn what_was_built_again_is_as_young_as_its_last_build() {
        let (top, mut config) = kit::spool();
        kit::in_store(&config, "a");
        note(&config, 9000, "a");
        note(&config, 10, "a");
        config.age_max = Duration::from_hours(1);
        let seen = look(&config, &mut Sizes::new(), NOW_S, true).unwrap();
        assert_eq!(names(&seen), ["a"]);
        drop(top);
    }
}
