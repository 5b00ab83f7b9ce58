//! Writes the system's files below a root, which at the appliance is a folder in memory over the
//! image's own: made anew at each boot.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::daemon_config::{Bring, Brought};
use super::render::{self, Reader};

/// The group of the daemon, by `sysusers.d`.
const GROUP: &str = "snowberry";

/// A list of groups has some KiB.
const GROUPS_LEN_MAX: u64 = 1 << 20;

/// A certificate with its chain, or a file of headers.
const BROUGHT_LEN_MAX: u64 = 64 << 10;

/// Where files of the boot partition are for the daemon, which cannot read that.
const BROUGHT: &str = "etc/snowberry/files";

/// Where the system's files go.
pub(super) struct Root {
    folder: PathBuf,
    /// Of the daemon, when it is known here.
    group: Option<u32>,
}

impl Root {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), group: group(&folder.join("etc/group")) }
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.folder.join(relative)
    }

    pub(super) fn write(&self, file: &render::File) -> io::Result<()> {
        let path = self.folder.join(&file.path);
        let Some(text) = &file.text else { return remove(&path) };
        self.write_bytes(&path, file.reader, text.as_bytes())
    }

    fn write_bytes(&self, path: &Path, reader: Reader, text: &[u8]) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        }
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        remove(Path::new(&new))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let mode = match (reader, self.group) {
            (Reader::All, _) => 0o644,
            (Reader::Daemon, Some(group)) => {
                std::os::unix::fs::fchown(&file, None, Some(group))?;
                0o640
            }
            (Reader::Root, _) | (Reader::Daemon, None) => 0o600,
        };
        file.write_all(text)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        fs::rename(&new, path)
    }

    /// The zone's link; a sentence when there is no such zone.
    pub(super) fn link_timezone(&self, zone: Option<&str>) -> Result<(), String> {
        let link = self.folder.join("etc/localtime");
        let Some(zone) = zone else { return Ok(()) };
        if !self.folder.join(render::ZONES).join(zone).is_file() {
            return Err(format!("there is no time zone {zone:?}: such as \"Europe/Berlin\""));
        }
        let made = remove(&link).and_then(|()| {
            fs::create_dir_all(self.folder.join("etc"))?;
            std::os::unix::fs::symlink(format!("../{}/{zone}", render::ZONES), &link)
        });
        made.map_err(|error| format!("the time zone cannot be set: {error}"))
    }

    /// The running kernel's own, which the first process set from the image.
    pub(super) fn set_hostname(&self, hostname: &str) -> io::Result<()> {
        let path = self.folder.join("proc/sys/kernel/hostname");
        match fs::read_to_string(&path) {
            Ok(found) if found.trim() != hostname => fs::write(path, hostname),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn group(file: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(file).ok()?.take(GROUPS_LEN_MAX).read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(GROUP)?.strip_prefix(':'))?;
    line.split(':').nth(1)?.parse().ok()
}

/// Files that the owner laid beside the settings, copied to where the daemon can read them.
pub(super) struct Beside<'a> {
    pub(super) boot: &'a Path,
    pub(super) root: &'a Root,
}

impl Bring for Beside<'_> {
    fn bring(&mut self, named: &str) -> Result<Brought, String> {
        let path = Path::new(named);
        let inner = path.strip_prefix(self.boot).unwrap_or(path);
        if inner.is_absolute() {
            // One of the system, as its own user sees it.
            let source = self.root.path(named.trim_start_matches('/'));
            return match source.metadata() {
                Ok(found) if found.is_file() => Ok(Brought { path: named.to_owned(), source }),
                Ok(_) => Err(format!("{named} is no file")),
                Err(error) => Err(format!("{named}: {error}")),
            };
        }
        let name = inner.to_str().filter(|name| is_file_name(name));
        let Some(name) = name else {
            return Err(format!("{named:?} is not the name of a file beside the settings"));
        };
        let source = self.boot.join(name);
        let text = read_bounded(&source).map_err(|error| {
            format!("{name} is not beside the settings on the boot partition ({error})")
        })?;
        let to = format!("{BROUGHT}/{name}");
        let written = self.root.write_bytes(&self.root.path(&to), Reader::Daemon, &text);
        written.map_err(|error| format!("{name} cannot be copied: {error}"))?;
        Ok(Brought { path: format!("/{to}"), source })
    }
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    file.take(BROUGHT_LEN_MAX + 1).read_to_end(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|len| len <= BROUGHT_LEN_MAX) {
        return Ok(text);
    }
    Err(io::Error::other("it is too long"))
}
