//! `nix copy` with what it takes to be believed.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::{Error, Target, token};

/// Seconds until Nix takes a cache for unreachable; left to itself Nix 2.8 waits for minutes.
const CONNECT_WAIT_S: &str = "15";

/// How long one copy may take: the largest batch over a slow line. What takes longer hangs.
const COPY_WAIT: Duration = Duration::from_hours(24);

/// What is kept of what Nix said, from its end: the reason stands last.
const SAID_LEN_MAX: usize = 4096;

/// Where nix is on the systems that we know, when the PATH of a service does not say it.
const NIX_PLACES: [&str; 5] = [
    "/run/current-system/sw/bin",
    "/nix/var/nix/profiles/default/bin",
    "/usr/bin",
    "/usr/local/bin",
    "/bin",
];

/// A prepared `nix copy`. Keep it until Nix has ended: it holds the token.
#[derive(Debug)]
pub struct NixCopy {
    /// What to run.
    pub command: Command,
    _netrc: Option<File>,
}

/// Prepares to push these paths, each with its closure.
pub fn nix_copy(
    to: &Target,
    token: Option<&str>,
    paths: impl IntoIterator<Item = String>,
) -> Result<NixCopy, Error> {
    let netrc = token.map(|token| token::netrc(to, token)).transpose()?;
    let mut command = Command::new(find_nix()?);
    command.args(["copy", "--extra-experimental-features", "nix-command"]);
    // What Nix remembers of earlier pushes it would believe without asking.
    command.args(["--option", "narinfo-cache-positive-ttl", "0"]);
    command.args(["--option", "narinfo-cache-negative-ttl", "0"]);
    command.args(["--option", "connect-timeout", CONNECT_WAIT_S]);
    if let Some(netrc) = &netrc {
        let path = format!("/proc/{}/fd/{}", std::process::id(), netrc.as_raw_fd());
        command.args(["--option", "netrc-file", &path]);
    }
    command.arg("--to").arg(format!("{to}?compression=zstd"));
    command.args(paths);
    Ok(NixCopy { command, _netrc: netrc })
}

/// The PATH goes first, then a user's own profile, then where systems have it.
fn find_nix() -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::var_os("HOME").map(|home| Path::new(&home).join(".nix-profile/bin"));
    let places = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(own)
        .chain(NIX_PLACES.map(PathBuf::from));
    let found = places.map(|folder| folder.join("nix")).find(|nix| nix.is_file());
    found.ok_or_else(|| Error::NoNix { places: NIX_PLACES.join(", ") })
}

/// How a copy by the drainer ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    /// With what Nix said, from its end.
    Badly(String),
    /// The drainer is to end.
    Stopped,
}

/// Runs it to its end, or until it is to stop. `cache_dir` is where Nix remembers what it saw: a
/// service has no home for that.
pub(super) async fn run(
    prepared: NixCopy,
    cache_dir: &Path,
    stop: &CancellationToken,
) -> Result<Ended, Error> {
    let NixCopy { mut command, _netrc: netrc } = prepared;
    let nix = PathBuf::from(command.get_program());
    let failed = |source| Error::RunNix { nix: nix.clone(), source };
    command.env("XDG_CACHE_HOME", cache_dir).env("NIX_CACHE_HOME", cache_dir.join("nix"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().map_err(failed)?;
    let mut stderr = child.stderr.take();
    let mut said = Vec::new();
    let work = async {
        if let Some(stderr) = &mut stderr {
            let mut piece = [0; 1024];
            while let Ok(len @ 1..) = stderr.read(&mut piece).await {
                said.extend_from_slice(piece.get(..len).unwrap_or_default());
                said.drain(..said.len().saturating_sub(SAID_LEN_MAX));
            }
        }
        child.wait().await
    };
    let ended: Option<std::io::Result<ExitStatus>> = tokio::select! {
        ended = tokio::time::timeout(COPY_WAIT, work) => ended.ok(),
        () = stop.cancelled() => return Ok(Ended::Stopped),
    };
    drop(netrc);
    match ended.transpose().map_err(failed)? {
        Some(status) if status.success() => Ok(Ended::Well),
        Some(status) => Ok(Ended::Badly(reason(&said, &status.to_string()))),
        None => Ok(Ended::Badly(format!("nix copy did not end within {COPY_WAIT:?}"))),
    }
}

/// What Nix gave as its reason: from its last `error:` on, on one line; else its last line, else
/// how it ended.
fn reason(said: &[u8], status: &str) -> String {
    let text = String::from_utf8_lossy(said);
    let from = text.rfind("error:").map(|at| at + "error:".len());
    let tail = from.and_then(|from| text.get(from..)).or_else(|| text.trim().lines().last());
    let words: Vec<&str> = tail.unwrap_or_default().split_whitespace().collect();
    if words.is_empty() { format!("nix copy: {status}") } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(token: Option<&str>) -> Option<Vec<String>> {
        let to = "http://127.0.0.1:8501".parse().unwrap();
        let prepared = nix_copy(&to, token, ["/nix/store/x".to_owned()]).ok()?;
        let all = prepared.command.get_args();
        Some(all.map(|it| it.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn nix_is_told_to_ask_again_and_never_shown_the_token() {
        // Where there is no nix there is nothing to prepare.
        let Some(arguments) = arguments(Some("secret")) else { return };
        let all = arguments.join(" ");
        assert!(all.contains("--option narinfo-cache-positive-ttl 0"), "{all}");
        assert!(all.contains("--option netrc-file /proc/"), "{all}");
        assert!(all.ends_with("--to http://127.0.0.1:8501/push?compression=zstd /nix/store/x"));
        assert!(!all.contains("secret"));
    }

    #[test]
    fn the_reason_is_what_nix_said_last() {
        let check = |said: &str, wanted: &str| {
            assert_eq!(reason(said.as_bytes(), "exit status: 1"), wanted, "{said:?}");
        };
        check("copying 2 paths...\nerror: one\nerror:\n   two\n   words\n", "two words");
        check("warning: a\nlast line\n", "last line");
        check("", "nix copy: exit status: 1");
        check("error:", "nix copy: exit status: 1");
    }

    async fn run_shell(script: &str, stop: &CancellationToken) -> Ended {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let folder = tempfile::tempdir().unwrap();
        run(NixCopy { command, _netrc: None }, folder.path(), stop).await.unwrap()
    }

    #[tokio::test]
    async fn a_copy_ends_well_or_badly_or_because_it_must() {
        let stop = CancellationToken::new();
        assert_eq!(run_shell("echo fine >&2", &stop).await, Ended::Well);
        let badly = Ended::Badly("no".to_owned());
        assert_eq!(run_shell("echo error: no >&2; exit 3", &stop).await, badly);
        let flood = "i=0; while [ $i -lt 2000 ]; do echo 'much noise' >&2; i=$((i+1)); done; \
                     echo error: no >&2; exit 1";
        assert_eq!(run_shell(flood, &stop).await, badly);
        stop.cancel();
        assert_eq!(run_shell("sleep 1000", &stop).await, Ended::Stopped);
    }
}
