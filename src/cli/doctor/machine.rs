//! What of this machine decides what Nix does: who asks, the files with secrets, the spool.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use super::advice::Asker;
use crate::cli::status::span;
use crate::spool::{self, View};

/// Where Nix's daemon listens.
const DAEMON_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

/// Where Nix looks for names and passwords unless it is told.
const NETRC: &str = "/etc/nix/netrc";

/// A certificate or a signed S3 request is refused with a clock further off.
const CLOCK_OFF_MAX: Duration = Duration::from_mins(5);

/// What waits longer in the spool than a night away from home deserves a look.
const SPOOL_OLD_S: u64 = 3 * 24 * 3600;

/// Bits of a file's mode by which others may read it.
const READ_BY_OTHERS: u32 = 0o004;

/// Who runs this.
pub(super) fn asker() -> Asker {
    let id = |option: &str| {
        let told = Command::new("id").arg(option).stdin(Stdio::null()).output();
        let text = told.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
        text.unwrap_or_default().trim().to_owned()
    };
    let groups = id("-Gn").split_whitespace().map(ToOwned::to_owned).collect();
    Asker { user: id("-un"), groups, has_daemon: Path::new(DAEMON_SOCKET).exists() }
}

/// Our clock against the cache's.
pub(super) fn clock(own: SystemTime, its: Option<SystemTime>) -> Result<String, String> {
    let Some(its) = its else { return Ok("the cache does not say what time it is".to_owned()) };
    let (off, who) = match own.duration_since(its) {
        Ok(off) => (off, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    if off <= CLOCK_OFF_MAX {
        return Ok("this machine and the cache agree".to_owned());
    }
    Err(format!(
        "this machine is {} {who} the cache: certificates are refused so. Set the clock that is \
         wrong, or let it be set (timedatectl set-ntp true)",
        span(off.as_secs())
    ))
}

/// The netrc of Nix: reading needs none, and what is there is a secret.
pub(super) fn netrc(file: Option<&str>, asker: &Asker) -> Result<String, String> {
    let file = Path::new(file.unwrap_or(NETRC));
    let shown = file.display();
    let metadata = match file.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(format!("there is no {shown}, and reading needs none"));
        }
        Err(error) => return Err(format!("{shown}: {error}")),
    };
    if metadata.permissions().mode() & READ_BY_OTHERS != 0 {
        return Err(format!("everybody may read the passwords in {shown}: chmod 600 {shown}"));
    }
    // The daemon is root; without one, Nix is who runs this.
    if !asker.has_daemon && std::fs::File::open(file).is_err() {
        return Err(format!("{shown} cannot be read by {}, as Nix here would", asker.user));
    }
    Ok(format!("{shown} can be read by Nix, and not by everybody"))
}

/// What waits to be pushed.
pub(super) fn spool(config: &spool::Config, now_s: u64) -> Result<String, String> {
    if !config.path.exists() {
        return Ok("none: nothing that is built here is pushed by a hook".to_owned());
    }
    let view = spool::view(config).map_err(|error| super::reach::with_causes(&error))?;
    spool_of(&view, now_s)
}

fn spool_of(view: &View, now_s: u64) -> Result<String, String> {
    let status = &view.status;
    let Some(oldest) = view.entries.first() else {
        return Ok("nothing waits".to_owned());
    };
    let waits =
        format!("{} paths wait, the oldest for {}", view.entries.len(), span(oldest.age_s(now_s)));
    if let Some(trouble) = &status.trouble {
        return Err(format!("{waits}: {}", trouble.message));
    }
    if !view.is_drained {
        return Err(format!(
            "{waits}, and nobody pushes them: start `snowberry forward`, or run `snowberry spool run`"
        ));
    }
    if !status.parked.is_empty() {
        return Err(format!(
            "{waits}, {} of them were refused: snowberry spool status",
            status.parked.len()
        ));
    }
    if oldest.age_s(now_s) > SPOOL_OLD_S {
        return Err(format!("{waits}: look why with `snowberry spool status`"));
    }
    Ok(waits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_with_the_direction() {
        let at = |s: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        assert!(clock(at(1_000_000), Some(at(1_000_100))).is_ok());
        assert!(clock(at(1_000_000), None).is_ok());
        let told = clock(at(1_000_000), Some(at(1_007_200))).unwrap_err();
        assert!(told.contains("2 h 0 min behind the cache"), "{told}");
        let told = clock(at(1_007_200), Some(at(1_000_000))).unwrap_err();
        assert!(told.contains("ahead of the cache"), "{told}");
    }

    #[test]
    fn a_netrc_for_all_eyes_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("netrc");
        let text = file.to_str().unwrap();
        assert!(netrc(Some(text), &Asker::default()).unwrap().contains("there is no"));
        std::fs::write(&file, "machine snowberry.local password x").unwrap();
        let mode =
            |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        let told = netrc(Some(text), &Asker::default()).unwrap_err();
        assert!(told.contains("chmod 600"), "{told}");
        mode(0o600);
        assert!(netrc(Some(text), &Asker::default()).is_ok());
    }
}
