//! Where the files of a joined machine are: of the whole machine, of a single user, or below a root
//! that is not this machine's own.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::Surroundings;
use crate::forward::joined::{SYSTEM_JOINED_FILE, USER_JOINED_FILE};

/// Where Nix's daemon listens: with it, what a single user configures counts for nothing.
const DAEMON_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

/// The files of one kind of installation, below `root`.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// `/`, or the folder of an image.
    root: PathBuf,
    /// Of a single user.
    pub(super) is_user: bool,
    nix_folder: PathBuf,
    joined: PathBuf,
    units: PathBuf,
    hook: PathBuf,
}

impl Place {
    pub(super) fn new(root: Option<&Path>, surroundings: &Surroundings) -> anyhow::Result<Self> {
        if root.is_some() || surroundings.is_root {
            return Ok(Self::of_machine(root.unwrap_or(Path::new("/"))));
        }
        anyhow::ensure!(
            !Path::new(DAEMON_SOCKET).exists(),
            "Nix runs with a daemon here, which reads /etc/nix/nix.conf alone: run this as root"
        );
        let home = surroundings.home.clone().context("find the home folder ($HOME is not set)")?;
        let config_home = surroundings.xdg_config_home.clone();
        Ok(Self::of_user(&home, &config_home.unwrap_or_else(|| home.join(".config"))))
    }

    fn of_machine(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            is_user: false,
            nix_folder: "/etc/nix".into(),
            joined: SYSTEM_JOINED_FILE.into(),
            units: "/etc/systemd/system".into(),
            hook: "/usr/local/bin/snowberry-hook".into(),
        }
    }

    fn of_user(home: &Path, config_home: &Path) -> Self {
        Self {
            root: "/".into(),
            is_user: true,
            nix_folder: config_home.join("nix"),
            joined: config_home.join(USER_JOINED_FILE),
            units: config_home.join("systemd/user"),
            hook: home.join(".local/bin/snowberry-hook"),
        }
    }

    /// Whether the files are those of the system that runs.
    pub(super) fn is_here(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where a path of the machine is from here.
    pub(super) fn on_disk(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(super) fn nix_conf(&self) -> PathBuf {
        self.nix_folder.join("nix.conf")
    }

    /// What nix.conf includes.
    pub(super) fn own_conf(&self) -> PathBuf {
        self.nix_folder.join("snowberry.conf")
    }

    pub(super) fn joined(&self) -> PathBuf {
        self.joined.clone()
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.joined.with_file_name("ca.pem")
    }

    pub(super) fn token(&self) -> PathBuf {
        self.joined.with_file_name("token")
    }

    pub(super) fn unit(&self, name: &str) -> PathBuf {
        self.units.join(name)
    }

    pub(super) fn hook(&self) -> PathBuf {
        self.hook.clone()
    }
}
