//! Writing the other slot, and having it booted once.
//!
//! The order is what makes a power cut harmless. `config.txt` names the slot that runs, and nothing
//! here changes it, that slot's partition or its folder: until the very end whatever is written is read
//! by nobody, and the firmware boots what it booted before. So:
//!
//! 1. The file is verified whole, and all room measured, before the first write.
//! 2. The record forgets what the other slot held: no way back into a slot that is half written.
//! 3. `tryboot.txt` goes: no trial of it either.
//! 4. The slot's partition is written, made durable, and read back from the card.
//! 5. So are the slot's files on the boot partition.
//! 6. The record says what the slot holds, and that it is to be tried.
//! 7. `tryboot.txt` comes last: it is read only after a restart that asks for it, and then what it
//!    names is whole.
//!
//! A stop before 7 leaves a record of a trial without one, which the next boot takes for a trial that
//! failed: too careful by one version, never the other way round.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::Watcher;
use super::error::{Error, io_error};
use super::fat::{self, Writable};
use super::machine::{ARCH, Machine, TRYBOOT};
use super::manifest::{Manifest, ManifestError};
use super::network;
use super::package::{Package, hash_of};
use super::record::{Holds, Trial};
use crate::appliance::{Slot, UpdateState, running_slot, with_slot};
use crate::units::ByteSize;

/// Written to a partition before it is made durable: more would pile up in a Pi's memory and then
/// stand still for a minute.
const DURABLE_EVERY: u64 = 16 << 20;

/// What a file takes on a FAT beyond its length: the rest of its last cluster, 32 KiB at most, and
/// its names.
const FILE_SURPLUS: u64 = 36 * 1024;

/// Longest command line of the kernel, as a file.
const COMMAND_LINE_LEN_MAX: u64 = 2048;

/// The file with the kernel's command line, which names the slot.
const COMMAND_LINE: &str = "cmdline.txt";

/// Whether a version may be installed that is not newer than what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Downgrade {
    /// Only by a file and a word of the user.
    Allowed,
    /// Else never.
    Refused,
}

/// Whether a manifest is for this machine, and newer than what it runs.
pub fn admit(manifest: &Manifest, machine: &Machine, downgrade: Downgrade) -> Result<(), Error> {
    let version = manifest.version.clone();
    if manifest.arch != ARCH {
        return Err(Error::Arch { version, arch: manifest.arch.clone(), own: ARCH });
    }
    let ours = machine.store_format;
    let (theirs, theirs_min) = (manifest.store_format, manifest.store_format_min);
    // The same, although a newer program could take an older store over: after that the slot that we
    // fall back to would have none. See docs/updates.md for how a format may change.
    if theirs != ours || theirs_min > ours {
        return Err(Error::StoreFormat { version, theirs, theirs_min, ours });
    }
    if version <= machine.version && downgrade == Downgrade::Refused {
        return Err(Error::NotNewer { version, running: machine.version.clone() });
    }
    Ok(())
}

/// Writes the package into the slot that does not run, and has the firmware boot it once at the next
/// restart that asks for it. Whatever stops it leaves what runs as it is.
pub fn install(
    machine: &Machine,
    package: &Package,
    downgrade: Downgrade,
    now: u64,
    watcher: &mut dyn Watcher,
) -> Result<(), Error> {
    let (config, booted) = machine.config()?;
    if booted != machine.running {
        return Err(Error::OnTrial(machine.running));
    }
    let slot = machine.running.other();
    let manifest = &package.head().manifest;
    admit(manifest, machine, downgrade)?;
    package.verify(watcher)?;
    let command_line = command_line(machine, package, slot)?;
    let tryboot = with_slot(&config, slot).ok_or_else(|| Error::NoPrefix(TRYBOOT.into()))?;
    check_room(machine, manifest, slot)?;
    let folder = machine.folder()?;
    let installing = |error| {
        move |record: &mut super::Record| {
            record.stands(UpdateState::Installing, now, error);
        }
    };
    watcher.step("verified")?;
    let record = folder.change(|record| {
        installing(None)(record);
        record.set_holds(slot, None);
        record.trial = None;
    })?;
    machine.tell(&record, false, Some(&manifest.version));
    watcher.step("way back forgotten")?;
    let boot = Writable::open(&machine.layout.boot)?;
    fat::remove(&machine.layout.boot.join(TRYBOOT))?;
    fat::sync(&machine.layout.boot)?;
    watcher.step("no trial")?;
    write_root(machine, package, slot, watcher)?;
    watcher.step("slot written")?;
    write_boot(machine, package, (slot, &command_line), watcher)?;
    watcher.step("boot files written")?;
    let print = machine.print(slot)?;
    let version = manifest.version.clone();
    let holds = Holds { version: version.clone(), confirmed: false, print };
    let trial = trial(machine, holds.version.clone());
    let record = folder.change(|record| {
        record.set_holds(slot, Some(holds));
        record.trial = Some(trial);
        record.refused.retain(|refused| *refused != version);
        record.stands(UpdateState::Installed, now, None);
    })?;
    watcher.step("trial recorded")?;
    fat::replace(&machine.layout.boot, TRYBOOT, &tryboot)?;
    boot.close()?;
    machine.tell(&record, false, Some(&manifest.version));
    watcher.step("installed")
}

/// Has the firmware boot the other slot once, when it holds a version that was well before. What runs
/// now is not tried again without being asked.
pub fn roll_back(machine: &Machine, now: u64, watcher: &mut dyn Watcher) -> Result<(), Error> {
    let (config, booted) = machine.config()?;
    if booted != machine.running {
        return Err(Error::OnTrial(machine.running));
    }
    let slot = machine.running.other();
    let folder = machine.folder()?;
    let no_way = |why| Error::NoWayBack { slot, why };
    let holds = folder.record().holds(slot).cloned().ok_or(no_way("nothing is known of it"))?;
    if !holds.confirmed {
        return Err(no_way("it never ran well"));
    }
    if machine.print(slot)? != holds.print {
        return Err(no_way("it has changed since; was the card flashed anew?"));
    }
    let tryboot = with_slot(&config, slot).ok_or_else(|| Error::NoPrefix(TRYBOOT.into()))?;
    let trial = trial(machine, holds.version.clone());
    watcher.step("looked back")?;
    let record = folder.change(|record| {
        record.trial = Some(trial);
        record.refuse(machine.version.clone());
        record.stands(UpdateState::Installed, now, None);
    })?;
    watcher.step("trial recorded")?;
    let boot = Writable::open(&machine.layout.boot)?;
    fat::replace(&machine.layout.boot, TRYBOOT, &tryboot)?;
    boot.close()?;
    machine.tell(&record, false, Some(&holds.version));
    watcher.step("installed")
}

fn trial(machine: &Machine, version: super::Version) -> Trial {
    Trial {
        version,
        slot: machine.running.other(),
        had_route: network::has_default_route(&machine.proc),
        boot_id: machine.boot_id(),
        begun: false,
    }
}

/// The kernel's command line for this slot, from the template that came with the update.
fn command_line(machine: &Machine, package: &Package, slot: Slot) -> Result<String, Error> {
    let wrong = |why: &str| Error::Manifest {
        name: COMMAND_LINE.to_owned(),
        source: ManifestError::Wrong(why.to_owned()),
    };
    let mut parts = package.head().manifest.boot_parts();
    let (part, _) = parts.find(|(_, name)| name == COMMAND_LINE).ok_or(wrong("it is missing"))?;
    if part.size > COMMAND_LINE_LEN_MAX {
        return Err(wrong("it is longer than the kernel reads"));
    }
    let template = String::from_utf8(package.small(part)?).map_err(|_| wrong("it is no text"))?;
    let root = machine.layout.root_of(slot);
    let filled = template.replace("@ROOT@", &root).replace("@SLOT@", slot.name());
    let names_root = filled.split_whitespace().any(|word| word == format!("root={root}"));
    if !names_root || running_slot(&filled) != Some(slot) {
        return Err(wrong("it must have root=@ROOT@ and snowberry.slot=@SLOT@"));
    }
    Ok(filled)
}

/// Whether everything fits, with what the slot's old files give free.
fn check_room(machine: &Machine, manifest: &Manifest, slot: Slot) -> Result<(), Error> {
    let partition = machine.layout.partition(slot);
    let size = open_partition(partition)?.1;
    let root = manifest.root().map_or(0, |part| part.size);
    fits("the root file system", root, partition, size)?;
    let surplus = |len: u64| len.saturating_add(FILE_SURPLUS);
    let needed: u64 = manifest.boot_parts().map(|(part, _)| surplus(part.size)).sum();
    let old: u64 = fat::files(&machine.layout.boot_of(slot))?.iter().map(|(_, len)| len).sum();
    let room = fat::free_bytes(&machine.layout.boot)?.saturating_add(old);
    // The small files beside the slot's folder: config.txt and tryboot.txt.
    let needed = needed.saturating_add(4 * FILE_SURPLUS);
    fits("kernel, initrd and device trees", needed, &machine.layout.boot, room)
}

/// Whether something fits into a room.
pub(super) fn fits(what: &str, needed: u64, path: &Path, room: u64) -> Result<(), Error> {
    if needed <= room {
        return Ok(());
    }
    Err(Error::Room {
        what: what.to_owned(),
        needed: ByteSize(needed),
        path: path.to_path_buf(),
        room: ByteSize(room),
    })
}

/// The partition (or the plain file that stands for it) and its length; never the one that `/` is on.
fn open_partition(path: &Path) -> Result<(File, u64), Error> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(io_error("open the slot", path))?;
    let about = file.metadata().map_err(io_error("look at", path))?;
    let root = fs::metadata("/").map_err(io_error("look at", Path::new("/")))?;
    if about.file_type().is_block_device() && about.rdev() == root.dev() {
        return Err(Error::Running(path.to_path_buf()));
    }
    let len = file.seek(SeekFrom::End(0)).map_err(io_error("measure", path))?;
    file.rewind().map_err(io_error("measure", path))?;
    Ok((file, len))
}

fn write_root(
    machine: &Machine,
    package: &Package,
    slot: Slot,
    watcher: &mut dyn Watcher,
) -> Result<(), Error> {
    let path = machine.layout.partition(slot);
    let Some(part) = package.head().manifest.root() else { return Ok(()) };
    let (mut file, _) = open_partition(path)?;
    let (mut written, mut durable) = (0_u64, 0_u64);
    package.unpack(part, &mut |block| {
        file.write_all(block).map_err(io_error("write", path))?;
        written += u64::try_from(block.len()).unwrap_or(u64::MAX);
        if written - durable >= DURABLE_EVERY {
            file.sync_data().map_err(io_error("make durable", path))?;
            durable = written;
        }
        watcher.progress("write", written, part.size);
        watcher.step("a block of the slot")
    })?;
    file.sync_all().map_err(io_error("make durable", path))?;
    watcher.step("slot durable")?;
    read_back(&mut file, path, part.size, part.sha256.0)
}

/// Compares what is on the card with what was to be there.
fn read_back(file: &mut File, path: &Path, len: u64, sha256: [u8; 32]) -> Result<(), Error> {
    fat::forget(file);
    file.rewind().map_err(io_error("read back", path))?;
    let found = hash_of(&*file, len).map_err(io_error("read back", path))?;
    if found == sha256 { Ok(()) } else { Err(Error::ReadBack(path.to_path_buf())) }
}

fn write_boot(
    machine: &Machine,
    package: &Package,
    (slot, command_line): (Slot, &str),
    watcher: &mut dyn Watcher,
) -> Result<(), Error> {
    let folder = machine.layout.boot_of(slot);
    fat::clear(&folder)?;
    watcher.step("boot folder empty")?;
    let mut written: Vec<(PathBuf, u64, [u8; 32])> = Vec::new();
    for (part, name) in package.head().manifest.boot_parts() {
        let path = folder.join(&name);
        let above = path.parent().unwrap_or(&folder);
        fs::create_dir_all(above).map_err(io_error("make", above))?;
        let mut file = fat::create(&path)?;
        if name == COMMAND_LINE {
            file.write_all(command_line.as_bytes()).map_err(io_error("write", &path))?;
        } else {
            package.unpack(part, &mut |block| {
                file.write_all(block).map_err(io_error("write", &path))
            })?;
            written.push((path.clone(), part.size, part.sha256.0));
        }
        file.sync_all().map_err(io_error("make durable", &path))?;
        watcher.step("a boot file")?;
    }
    fat::sync(&machine.layout.boot)?;
    for (path, len, sha256) in written {
        let mut file = File::open(&path).map_err(io_error("read back", &path))?;
        read_back(&mut file, &path, len, sha256)?;
    }
    Ok(())
}
