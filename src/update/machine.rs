//! The appliance as an update finds it: which slot runs, which is booted, whose signatures count, what
//! each slot holds.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::error::{Error, io_error};
use super::fat;
use super::record::{Folder, Record};
use super::version::Version;
use crate::appliance::{
    CONFIG_LEN_MAX, Layout, Slot, UpdateNote, read_bounded, running_slot, slot_of,
};
use crate::nix::{PublicKey, TrustedKeys};

/// What the firmware reads.
pub(super) const CONFIG: &str = "config.txt";

/// What it reads instead of that, once, when it is asked to.
pub(super) const TRYBOOT: &str = "tryboot.txt";

/// Longest file of keys: a line each, and few keys at once.
const KEYS_LEN_MAX: u64 = 64 * 1024;

/// Longest command line of the kernel.
const COMMAND_LINE_LEN_MAX: u64 = 64 * 1024;

/// Begin of a slot that tells one image from another: squashfs has its time, size and counts there.
const PRINT_LEN: u64 = 4096;

/// Bytes of the print, as hexadecimal digits: nobody makes collisions on their own card.
const PRINT_BYTES: usize = 16;

/// Which machines an update must be for.
pub const ARCH: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else if cfg!(target_arch = "x86_64") {
    "amd64"
} else {
    std::env::consts::ARCH
};

/// The appliance.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Where things lie.
    pub layout: Layout,
    /// The slot that runs.
    pub running: Slot,
    /// The version that runs.
    pub version: Version,
    /// The format of the stores that this version makes.
    pub store_format: u64,
    /// `/proc`, or a folder that stands for it.
    pub proc: PathBuf,
}

impl Machine {
    /// As layout and kernel say it.
    pub fn read(layout: Layout, proc: &Path, store_format: u64) -> Result<Self, Error> {
        let command_line = proc.join("cmdline");
        let text = read_bounded(&command_line, COMMAND_LINE_LEN_MAX)
            .map_err(io_error("read", &command_line))?;
        let running = running_slot(&text).ok_or(Error::NoSlot(command_line))?;
        let version = layout.version.parse().map_err(|source| Error::OwnVersion { source })?;
        Ok(Self { layout, running, version, store_format, proc: proc.to_path_buf() })
    }

    /// The keys whose signatures count.
    pub fn keys(&self) -> Result<TrustedKeys, Error> {
        let path = &self.layout.keys;
        let text = read_bounded(path, KEYS_LEN_MAX).map_err(io_error("read", path))?;
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let key = |(index, line): (usize, &str)| {
            let wrong = |source| Error::Key { path: path.clone(), line: index + 1, source };
            PublicKey::parse(line).map_err(wrong)
        };
        let keys: Vec<PublicKey> = lines.map(key).collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err(Error::NoKeys(path.clone()));
        }
        Ok(TrustedKeys::new(keys))
    }

    /// `config.txt`, and the slot that it boots.
    pub fn config(&self) -> Result<(String, Slot), Error> {
        self.boot_config(CONFIG)
    }

    /// A file like `config.txt`.
    pub(super) fn boot_config(&self, name: &str) -> Result<(String, Slot), Error> {
        let path = self.layout.boot.join(name);
        let text = read_bounded(&path, CONFIG_LEN_MAX).map_err(io_error("read", &path))?;
        let slot = slot_of(&text).ok_or(Error::NoPrefix(path))?;
        Ok((text, slot))
    }

    /// The folder of updates.
    pub fn folder(&self) -> Result<Folder, Error> {
        Folder::open(&self.layout.data)
    }

    /// The kernel's name of this boot; empty where it says none.
    pub(super) fn boot_id(&self) -> String {
        let path = self.proc.join("sys/kernel/random/boot_id");
        let id = read_bounded(&path, COMMAND_LINE_LEN_MAX).unwrap_or_default();
        id.trim().to_owned()
    }

    /// What a slot looks like, without reading all of it: the begin of its partition, and its files
    /// on the boot partition by name and length.
    pub(super) fn print(&self, slot: Slot) -> Result<String, Error> {
        let partition = self.layout.partition(slot);
        let mut start = Vec::new();
        File::open(partition)
            .and_then(|file| file.take(PRINT_LEN).read_to_end(&mut start))
            .map_err(io_error("read", partition))?;
        let mut hash = Sha256::new();
        hash.update(&start);
        let folder = self.layout.boot_of(slot);
        for (path, len) in fat::files(&folder)? {
            let name = path.strip_prefix(&folder).unwrap_or(&path);
            hash.update(format!("\n{}\n{len}", name.display()));
        }
        let bytes = hash.finalize();
        let digits: Vec<String> =
            bytes.iter().take(PRINT_BYTES).map(|byte| format!("{byte:02x}")).collect();
        Ok(digits.concat())
    }

    /// Tells the daemon how it stands. Notes are for people: nothing depends on them.
    pub fn tell(&self, record: &Record, trial: bool, next: Option<&Version>) {
        let note = UpdateNote {
            slot: Some(self.running),
            version: self.version.to_string(),
            trial,
            state: record.state,
            next: next.map(ToString::to_string),
            last_error: record.last_error.clone(),
            since: record.since,
        };
        if let Err(error) = note.write(&self.layout.notes) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, path = %self.layout.notes.display(), "cannot tell the daemon how the update stands");
        }
    }
}
