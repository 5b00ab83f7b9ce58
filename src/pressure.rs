//! The memory that there is for this process, and whether it runs short: what the kernel says of the
//! machine and of the control groups that we are in (version 2; others are not looked at). It looks
//! when it is asked to. What follows from that is for others to say.

use std::fs;
use std::path::{Path, PathBuf};

/// Part of what there is below which it runs short: an eighth of a Pi Zero 2 W is 50 MiB.
const SHORT_PART: u64 = 8;

/// Less than this is short only where there is little in all: with more, nobody is killed yet.
const SHORT_BYTES_MAX: u64 = 64 << 20;

/// It is well again with half as much again, so that it does not go to and fro.
const WELL_HALVES: u64 = 3;

/// Share of ten seconds in which nothing at all went on for want of memory, in hundredths of a
/// percent: with a tenth of them the machine is busy with its memory and with little else.
const STALLED_SHORT: u32 = 1000;

/// Below this it is well again.
const STALLED_WELL: u32 = 200;

/// Bytes in a line of `meminfo`, which counts in KiB.
const KIB: u64 = 1024;

/// Where the kernel tells, as it is mounted below this folder.
#[derive(Debug, Clone)]
pub struct Kernel {
    root: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { root: PathBuf::from("/") }
    }
}

/// Memory with a bound: the machine's, or that of a control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The bound.
    pub bytes: u64,
    /// What is left, with what the kernel gives up by itself counted as left.
    pub free_bytes: u64,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// All that bounds us. Nothing where the kernel says nothing.
    pub memories: Vec<Memory>,
    /// Hundredths of a percent of the last ten seconds in which everything stood still for memory.
    pub stalled: u32,
}

impl Look {
    /// The lowest bound.
    pub fn room_bytes(&self) -> Option<u64> {
        self.memories.iter().map(|memory| memory.bytes).min()
    }
}

/// Whether it runs short, over one look after another.
#[derive(Debug, Default)]
pub struct Watch {
    is_short: bool,
}

impl Watch {
    /// Whether it runs short now, by what was seen.
    pub fn observe(&mut self, look: &Look) -> bool {
        let halves = if self.is_short { WELL_HALVES } else { 2 };
        let stalled = if self.is_short { STALLED_WELL } else { STALLED_SHORT };
        let is_low = |memory: &Memory| {
            let short = (memory.bytes / SHORT_PART).min(SHORT_BYTES_MAX);
            memory.free_bytes < short / 2 * halves
        };
        self.is_short = look.memories.iter().any(is_low) || look.stalled >= stalled;
        self.is_short
    }
}

impl Kernel {
    /// Looks: some small files that cost no disk.
    pub fn look(&self) -> Look {
        let groups = self.groups();
        let pressure = groups.first().and_then(|own| read(&own.join("memory.pressure")));
        let pressure = pressure.or_else(|| read(&self.root.join("proc/pressure/memory")));
        let of_groups = groups.iter().filter_map(|group| group_memory(group));
        Look {
            memories: self.machine().into_iter().chain(of_groups).collect(),
            stalled: pressure.and_then(|text| stalled(&text)).unwrap_or(0),
        }
    }

    fn machine(&self) -> Option<Memory> {
        let text = read(&self.root.join("proc/meminfo"))?;
        let bytes = |name| Some(value_of(&text, name)?.saturating_mul(KIB));
        Some(Memory { bytes: bytes("MemTotal:")?, free_bytes: bytes("MemAvailable:")? })
    }

    /// Our control group and those that it is in, the innermost first.
    fn groups(&self) -> Vec<PathBuf> {
        let text = read(&self.root.join("proc/self/cgroup")).unwrap_or_default();
        let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
            return Vec::new();
        };
        let mount = self.root.join("sys/fs/cgroup");
        let inside = Path::new(own).ancestors();
        // A name that leads out of the mount is another namespace's.
        inside.filter(|path| !path.starts_with("..")).map(|path| mount.join(path)).collect()
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// A group's bound: beyond `high` the kernel holds its processes up, beyond `max` it kills one.
fn group_memory(group: &Path) -> Option<Memory> {
    let bound = |name| read(&group.join(name))?.trim().parse::<u64>().ok();
    let bytes = [bound("memory.high"), bound("memory.max")].into_iter().flatten().min()?;
    let stat = read(&group.join("memory.stat")).unwrap_or_default();
    let of = |name| value_of(&stat, name).unwrap_or(0);
    // Pages of files give way; what lies in memory alone does not.
    let gives_way = of("file").saturating_sub(of("shmem"));
    let taken = bound("memory.current")?.saturating_sub(gives_way);
    Some(Memory { bytes, free_bytes: bytes.saturating_sub(taken) })
}

/// The number behind a name at the beginning of a line.
fn value_of(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(
        |mut words| {
            if words.next() == Some(name) { words.next()?.parse().ok() } else { None }
        },
    )
}

/// `full avg10=1.25 avg60=...`
fn stalled(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix("full avg10="))?;
    let (whole, hundredths) = line.split_whitespace().next()?.split_once('.')?;
    Some(whole.parse::<u32>().ok()?.saturating_mul(100) + hundredths.parse::<u32>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// What the kernel of a Pi Zero 2 W says, with these files besides.
    fn kernel(files: &[(&str, &str)]) -> (tempfile::TempDir, Kernel) {
        let root = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal:         437980 kB\nMemFree:  9 kB\nMemAvailable:     204800 kB\n";
        for (name, text) in [("proc/meminfo", meminfo)].iter().chain(files) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let kernel = Kernel { root: root.path().to_owned() };
        (root, kernel)
    }

    fn memory(mib: u64, free_mib: u64) -> Memory {
        Memory { bytes: mib * MIB, free_bytes: free_mib * MIB }
    }

    #[test]
    fn the_lowest_bound_of_machine_and_groups_counts() {
        let machine = Memory { bytes: 437_980 * 1024, free_bytes: 200 * MIB };
        let (_root, plain) = kernel(&[("proc/self/cgroup", "1:name=systemd:/x\n0::/a/b\n")]);
        assert_eq!(plain.look(), Look { memories: vec![machine], stalled: 0 });
        let (_root, grouped) = kernel(&[
            ("proc/self/cgroup", "0::/system.slice/snowberry.service\n"),
            ("proc/pressure/memory", "some avg10=9.00 avg60=1.00\nfull avg10=8.00 avg60=1.00\n"),
            ("sys/fs/cgroup/system.slice/snowberry.service/memory.high", "268435456\n"),
            ("sys/fs/cgroup/system.slice/snowberry.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/snowberry.service/memory.current", "262144000\n"),
            (
                "sys/fs/cgroup/system.slice/snowberry.service/memory.stat",
                "anon 104857600\nfile 157286400\nshmem 10485760\nfile_mapped 1\n",
            ),
            (
                "sys/fs/cgroup/system.slice/snowberry.service/memory.pressure",
                "some avg10=3.00 avg60=1.00 total=9\nfull avg10=1.25 avg60=0.10 total=5\n",
            ),
            ("sys/fs/cgroup/system.slice/memory.max", "419430400\n"),
            ("sys/fs/cgroup/system.slice/memory.current", "1048576\n"),
        ]);
        let look = grouped.look();
        // 250 MiB taken, of which 140 are pages of files.
        assert_eq!(look.memories, [machine, memory(256, 146), memory(400, 399)]);
        assert_eq!((look.room_bytes(), look.stalled), (Some(256 * MIB), 125));
    }

    #[test]
    fn a_kernel_that_says_nothing_bounds_nothing() {
        let nothing = Kernel { root: PathBuf::from("/nowhere") }.look();
        assert_eq!(nothing, Look::default());
        assert_eq!(nothing.room_bytes(), None);
        assert!(!Watch::default().observe(&nothing));
        let out = "0::/../../other\n";
        assert_eq!(kernel(&[("proc/self/cgroup", out)]).1.look().memories.len(), 1);
    }

    #[test]
    fn this_machine_says_something() {
        assert!(Kernel::default().look().room_bytes().is_some_and(|bytes| bytes > 16 * MIB));
    }

    #[test]
    fn short_is_an_eighth_or_64_mib_and_well_again_half_as_much_more() {
        let mut watch = Watch::default();
        let mut is_short = |mib, free_mib, stalled| {
            watch.observe(&Look { memories: vec![memory(mib, free_mib)], stalled })
        };
        for (mib, free_mib, stalled, expected) in [
            (400, 50, 0, false),
            (400, 49, 0, true),
            (400, 74, 0, true),
            (400, 75, 0, false),
            (400, 50, 0, false),
            (8192, 64, 0, false),
            (8192, 63, 0, true),
            (8192, 95, 0, true),
            (8192, 96, 0, false),
            (8192, 4096, 999, false),
            (8192, 4096, 1000, true),
            (8192, 4096, 200, true),
            (8192, 4096, 199, false),
        ] {
            assert_eq!(is_short(mib, free_mib, stalled), expected, "{mib} {free_mib} {stalled}");
        }
    }
}
