//! A card made of plain files, a packer of updates, and the firmware.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use snowberry::appliance::{Layout, Slot, Slots, slot_of};
use snowberry::nix::{SecretKey, TrustedKeys};
use snowberry::store;
use snowberry::update::{ARCH, Error, Machine, Version, Watcher};
use tempfile::TempDir;

/// What is on a new card.
pub(crate) const FIRST: &str = "0.1.0";
/// What it is updated to.
pub(crate) const NEXT: &str = "0.2.0";
/// Any time.
pub(crate) const NOW: u64 = 1_795_266_000;
/// Several blocks of a decoder, and no zeros.
const ROOT_LEN: usize = 600 << 10;
/// What a slot has room for.
pub(crate) const SLOT_LEN: usize = 1 << 20;

const CONFIG: &str = "# made by the image\narm_64bit=1\nos_prefix=a/\nkernel=vmlinuz\n";

/// The routes of a Pi with a cable.
const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";

/// The root file system of a version: its name, then what does not repeat.
pub(crate) fn root_of(version: &str) -> Vec<u8> {
    let mut bytes = format!("root {version}\n").into_bytes();
    let mut state = u64::from(version.bytes().map(u32::from).sum::<u32>()) | 1;
    while bytes.len() < ROOT_LEN {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// An update file in the making; each field can be made wrong.
#[derive(Clone)]
pub(crate) struct Update {
    pub(crate) version: String,
    pub(crate) arch: String,
    pub(crate) store_format: u64,
    pub(crate) parts: Vec<(String, Vec<u8>)>,
    pub(crate) keys: Vec<SecretKey>,
}

impl Update {
    pub(crate) fn new(version: &str) -> Self {
        let part = |name: &str, bytes: Vec<u8>| (name.to_owned(), bytes);
        let command_line = b"ro root=@ROOT@ snowberry.slot=@SLOT@ quiet\n".to_vec();
        Self {
            version: version.to_owned(),
            arch: ARCH.to_owned(),
            store_format: store::FORMAT,
            parts: vec![
                part("boot/cmdline.txt", command_line),
                part("boot/initrd.img", format!("initrd {version}").into_bytes()),
                part("boot/overlays/x.dtbo", vec![7; 5000]),
                part("boot/vmlinuz", format!("kernel {version}").into_bytes()),
                part("root.squashfs", root_of(version)),
            ],
            keys: vec![release_key()],
        }
    }

    pub(crate) fn name(&self) -> String {
        format!("snowberry-{}-{ARCH}.update", self.version)
    }

    pub(crate) fn part(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.parts.iter_mut().find(|(found, _)| found == name).unwrap().1
    }

    /// The head, and the packed parts after it.
    pub(crate) fn pack(&self) -> (Vec<u8>, Vec<u8>) {
        let mut manifest = format!(
            "version = {:?}\narch = {:?}\ntime = {NOW}\nfile = {:?}\nstore-format = {}\n\
             store-format-min = 1\n",
            self.version,
            self.arch,
            self.name(),
            self.store_format
        );
        let mut packed_parts = Vec::new();
        for (name, bytes) in &self.parts {
            let packed = zstd::encode_all(&bytes[..], 1).unwrap();
            let (sha256, packed_sha256) = (hex(bytes), hex(&packed));
            write!(
                manifest,
                "[[part]]\nname = {name:?}\nsize = {}\nsha256 = \"{sha256}\"\n\
                 packed-size = {}\npacked-sha256 = \"{packed_sha256}\"\n",
                bytes.len(),
                packed.len(),
            )
            .unwrap();
            packed_parts.extend(packed);
        }
        (self.sign(&manifest), packed_parts)
    }

    pub(crate) fn sign(&self, manifest: &str) -> Vec<u8> {
        let start = format!("snowberry-update-1 {}\n{manifest}", manifest.len());
        let mut head = start.clone();
        for key in &self.keys {
            writeln!(head, "Sig: {}", key.sign(&start)).unwrap();
        }
        head.push('\n');
        head.into_bytes()
    }

    /// The whole file.
    pub(crate) fn file(&self) -> Vec<u8> {
        let (head, parts) = self.pack();
        [head, parts].concat()
    }

    /// Puts it where a server has it, with `latest`.
    pub(crate) fn publish(&self, folder: &Path) -> PathBuf {
        let (head, parts) = self.pack();
        fs::write(folder.join("latest"), &head).unwrap();
        let path = folder.join(self.name());
        fs::write(&path, [head, parts].concat()).unwrap();
        path
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// The key of the releases.
pub(crate) fn release_key() -> SecretKey {
    SecretKey::from_seed("snowberry-release-1", [1; 32]).unwrap()
}

pub(crate) fn trusted() -> TrustedKeys {
    TrustedKeys::new(vec![release_key().public()])
}

/// How the firmware is asked to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restart {
    Plain,
    Tryboot,
}

/// A card, and the machine that it is in.
pub(crate) struct Card {
    pub(crate) folder: TempDir,
    pub(crate) layout: Layout,
    boots: u32,
}

impl Card {
    /// As flashed: slot a has the first version, slot b nothing.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["boot/a", "data", "notes", "proc/net", "proc/sys/kernel/random"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        let layout = Layout {
            version: FIRST.to_owned(),
            boot: at("boot"),
            data: at("data"),
            slots: Slots { a: at("slot-a"), b: at("slot-b") },
            notes: at("notes"),
            keys: at("release-keys"),
            health: "127.0.0.1:1".to_owned(),
        };
        let mut slot = root_of(FIRST);
        slot.resize(SLOT_LEN, 0);
        fs::write(&layout.slots.a, slot).unwrap();
        fs::write(&layout.slots.b, vec![0; SLOT_LEN]).unwrap();
        fs::write(at("boot/config.txt"), CONFIG).unwrap();
        fs::write(at("boot/a/vmlinuz"), format!("kernel {FIRST}")).unwrap();
        fs::write(at("boot/a/initrd.img"), format!("initrd {FIRST}")).unwrap();
        let root = layout.root_of(Slot::A);
        let command_line = format!("ro root={root} snowberry.slot=a quiet\n");
        fs::write(at("boot/a/cmdline.txt"), command_line).unwrap();
        fs::write(&layout.keys, format!("# releases\n{}\n", release_key().public())).unwrap();
        fs::write(at("proc/net/route"), ROUTES).unwrap();
        let mut card = Self { folder, layout, boots: 0 };
        card.boot(Restart::Plain);
        card
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// What the firmware would boot: the slot, and the version of all that is in it. Anything that is
    /// not whole, or of two versions, does not boot.
    pub(crate) fn boots(&self, restart: Restart) -> Option<(Slot, String)> {
        let config = match restart {
            Restart::Tryboot if self.path("boot/tryboot.txt").exists() => "boot/tryboot.txt",
            Restart::Tryboot | Restart::Plain => "boot/config.txt",
        };
        let slot = slot_of(&fs::read_to_string(self.path(config)).ok()?)?;
        let folder = self.layout.boot_of(slot);
        let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let version = text("vmlinuz")?.strip_prefix("kernel ")?.to_owned();
        let command_line = text("cmdline.txt")?;
        let root = format!("root={}", self.layout.root_of(slot));
        let names_all = [root, format!("snowberry.slot={slot}")]
            .iter()
            .all(|word| command_line.split_whitespace().any(|found| found == word));
        let root = fs::read(self.layout.partition(slot)).ok()?;
        let is_whole = root.starts_with(&root_of(&version));
        let same = text("initrd.img")? == format!("initrd {version}");
        (names_all && is_whole && same).then_some((slot, version))
    }

    /// Restarts the machine; what boots must be whole.
    pub(crate) fn boot(&mut self, restart: Restart) -> (Slot, String) {
        let (slot, version) = self.boots(restart).expect("the card boots");
        self.boots += 1;
        let command_line = fs::read(self.layout.boot_of(slot).join("cmdline.txt")).unwrap();
        fs::write(self.path("proc/cmdline"), command_line).unwrap();
        let id = format!("boot-{}\n", self.boots);
        fs::write(self.path("proc/sys/kernel/random/boot_id"), id).unwrap();
        // What is in memory is gone; what the image says is that of the version.
        fs::remove_dir_all(&self.layout.notes).unwrap();
        fs::create_dir(&self.layout.notes).unwrap();
        self.layout.version.clone_from(&version);
        self.write_layout();
        (slot, version)
    }

    /// `appliance.toml` of what runs.
    pub(crate) fn write_layout(&self) {
        let Layout { version, boot, data, slots, notes, keys, health } = &self.layout;
        let mut text = format!("version = {version:?}\nhealth = {health:?}\n");
        for (key, path) in [("boot", boot), ("data", data), ("notes", notes), ("keys", keys)] {
            writeln!(text, "{key} = \"{}\"", path.display()).unwrap();
        }
        let (a, b) = (slots.a.display(), slots.b.display());
        writeln!(text, "slots = {{ a = \"{a}\", b = \"{b}\" }}").unwrap();
        fs::write(self.path("appliance.toml"), text).unwrap();
    }

    /// As `snowberry update` finds it.
    pub(crate) fn machine(&self) -> Machine {
        Machine::read(self.layout.clone(), &self.path("proc"), store::FORMAT).unwrap()
    }

    /// A file with this update, outside of the card.
    pub(crate) fn put(&self, update: &Update) -> PathBuf {
        let path = self.path(&update.name());
        fs::write(&path, update.file()).unwrap();
        path
    }
}

pub(crate) fn version(text: &str) -> Version {
    text.parse().unwrap()
}

/// Pulls the plug at a step, counted from 0, and notes those before it.
#[derive(Debug, Default)]
pub(crate) struct Plug {
    pub(crate) pulled_at: Option<usize>,
    pub(crate) steps: Vec<&'static str>,
}

impl Plug {
    pub(crate) fn at(step: usize) -> Self {
        Self { pulled_at: Some(step), steps: Vec::new() }
    }
}

impl Watcher for Plug {
    fn progress(&mut self, _: &'static str, done: u64, of: u64) {
        assert!(done <= of, "{done} of {of}");
    }

    fn step(&mut self, step: &'static str) -> Result<(), Error> {
        if self.pulled_at == Some(self.steps.len()) {
            return Err(Error::Stopped(step));
        }
        self.steps.push(step);
        Ok(())
    }
}
