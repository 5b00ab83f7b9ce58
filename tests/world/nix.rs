//! A real Nix of one Debian release, with a store and a cache of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::parts;

/// No command of any test takes longer; what does is a hang.
const COMMAND_LIMIT: Duration = Duration::from_mins(5);

/// The Debian releases whose Nix the tests use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// Nix 2.8.
    Bookworm,
    /// Nix 2.26.
    Trixie,
    /// What Debian has today, at least 2.34.
    Sid,
}

impl Release {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

/// One machine with Nix: what is substituted stays for the next command.
pub(crate) struct NixClient {
    release: Release,
    folder: TempDir,
    config: String,
    home: Option<String>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ran {
    /// Its standard output, if it succeeded.
    #[track_caller]
    pub(crate) fn expect_success(&self) -> &str {
        assert!(self.success, "the command failed after {:?}:\n{}", self.took, self.stderr);
        &self.stdout
    }
}

impl NixClient {
    /// A machine with an empty store that trusts one key and asks these substituters, in order.
    /// None: the test was noted as skipped and must return.
    pub(crate) fn new(release: Release, substituters: &[&str], key: &str) -> Option<Self> {
        parts::part(&format!("nix-{}", release.name()))?;
        let config = format!(
            "substituters = {}\ntrusted-public-keys = {key}\nrequire-sigs = true\nmax-jobs = 0\n",
            substituters.join(" ")
        );
        Some(Self { release, folder: TempDir::new().unwrap(), config, home: None })
    }

    /// One more line of nix.conf.
    pub(crate) fn setting(mut self, line: &str) -> Self {
        self.config.push_str(line);
        self.config.push('\n');
        self
    }

    /// `/root` is a file system of its own for each command: a tmpfs with these options.
    pub(crate) fn home(mut self, options: &str) -> Self {
        std::fs::create_dir_all(self.folder().join("root")).unwrap();
        self.home = Some(options.to_owned());
        self
    }

    /// The folder that the commands see as `/world`.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a copy of a file into `/world`.
    pub(crate) fn bring(&self, file: &Path) -> PathBuf {
        let name = file.file_name().unwrap();
        fs::copy(file, self.folder().join(name)).unwrap();
        Path::new("/world").join(name)
    }

    /// Runs a command to its end, in bounded time.
    pub(crate) async fn run(&self, command: &[&str]) -> Ran {
        let mut enter = Command::new("timeout");
        enter.args(["-s", "KILL", &COMMAND_LIMIT.as_secs().to_string()]);
        if let Some(options) = &self.home {
            let script = "mount -t tmpfs -o \"$0\" none \"$1\"; shift; exec \"$@\"";
            enter.args(["unshare", "--mount", "--", "/bin/sh", "-ec", script, options]);
            enter.arg(self.folder().join("root"));
        }
        enter.arg(parts::script("enter")).arg(self.release.name()).arg(self.folder());
        enter.args(command).env("NIX_CONFIG", &self.config);
        enter.env("SNOWBERRY_TEST_CACHE", parts::cache());
        let started = Instant::now();
        let output = tokio::task::spawn_blocking(move || enter.output().unwrap()).await.unwrap();
        Ran {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: started.elapsed(),
        }
    }

    /// A line of shell.
    pub(crate) async fn shell(&self, script: &str) -> Ran {
        self.run(&["/bin/bash", "-euo", "pipefail", "-c", script]).await
    }

    /// Such as `2.26.3`.
    pub(crate) async fn version(&self) -> String {
        let ran = self.run(&["nix", "--version"]).await;
        ran.expect_success().trim().rsplit(' ').next().unwrap().to_owned()
    }
}
