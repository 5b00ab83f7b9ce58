//! `--install`: the units of `snowberry forward` and the link of the hook, and telling systemd.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::files::{Files, PUBLIC};
use super::place::Place;
use crate::cli::out;

/// A unit by its name: for the whole machine, and for a single user.
struct Unit {
    name: &'static str,
    of_machine: &'static str,
    of_user: &'static str,
}

const SOCKET: &str = "snowberry-forward.socket";
const SERVICE: &str = "snowberry-forward.service";
const PATH: &str = "snowberry-forward.path";

const UNITS: [Unit; 3] = [
    Unit {
        name: SERVICE,
        of_machine: include_str!("../../../systemd/snowberry-forward.service"),
        of_user: include_str!("../../../systemd/user/snowberry-forward.service"),
    },
    Unit {
        name: SOCKET,
        of_machine: include_str!("../../../systemd/snowberry-forward.socket"),
        of_user: include_str!("../../../systemd/user/snowberry-forward.socket"),
    },
    Unit {
        name: PATH,
        of_machine: include_str!("../../../systemd/snowberry-forward.path"),
        of_user: include_str!("../../../systemd/user/snowberry-forward.path"),
    },
];

/// The program as the units name it.
const UNIT_PROGRAM: &str = "/usr/bin/snowberry";

/// What the unit of the whole machine does not see (`ProtectHome=`, `PrivateTmp=`).
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// Whether the unit of the whole machine does not see a file.
fn is_hidden(file: &Path) -> bool {
    HIDDEN.iter().any(|folder| file.starts_with(folder))
}

/// Where systemd runs.
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// Where the units go.
pub(super) fn units(place: &Place) -> Vec<PathBuf> {
    UNITS.iter().map(|unit| place.unit(unit.name)).collect()
}

/// The program that units and hook are to run: this one, or in an image where packages put it.
pub(super) fn program(place: &Place) -> anyhow::Result<PathBuf> {
    if !place.is_here() {
        return Ok(PathBuf::from(UNIT_PROGRAM));
    }
    let own = std::env::current_exe().context("find this program")?;
    let own = own.canonicalize().unwrap_or(own);
    let fits = own.to_str().is_some_and(|it| !it.contains(|c: char| c.is_whitespace() || c == '%'));
    anyhow::ensure!(fits, "{} cannot be named in a unit: move it", own.display());
    anyhow::ensure!(
        place.is_user || !place.is_here() || !is_hidden(&own),
        "the service cannot see {}, which is in a home or temporary folder: put this program into \
         /usr/local/bin and run it from there",
        own.display()
    );
    Ok(own)
}

/// Puts the units in place.
pub(super) fn write_units(files: &Files<'_>, program: &Path) -> anyhow::Result<()> {
    for unit in &UNITS {
        let text = if files.place.is_user { unit.of_user } else { unit.of_machine };
        let text = text.replace(
            &format!("ExecStart={UNIT_PROGRAM} "),
            &format!("ExecStart={} ", program.display()),
        );
        files.write(&files.place.unit(unit.name), text.as_bytes(), PUBLIC)?;
    }
    Ok(())
}

/// Starts them, or says how.
pub(super) fn start(place: &Place, pushes: bool) -> anyhow::Result<()> {
    let mut enable = vec!["enable", "--now", SOCKET];
    if pushes {
        enable.push(PATH);
    }
    systemctl(place, &[&["daemon-reload"], &enable, &["try-restart", SERVICE]])
}

/// Ends them, or says how. What is not there any more is no failure.
pub(super) fn stop(place: &Place) {
    if let Err(error) = systemctl(place, &[&["disable", "--now", SOCKET, PATH, SERVICE]]) {
        out::note(&format!("{error:#}"));
    }
}

/// After units were taken away.
pub(super) fn forget(place: &Place) -> anyhow::Result<()> {
    systemctl(place, &[&["daemon-reload"]])
}

fn systemctl(place: &Place, commands: &[&[&str]]) -> anyhow::Result<()> {
    let runs = place.is_here() && Path::new(SYSTEMD_RUNS).exists();
    for arguments in commands {
        let user = if place.is_user { &["--user"][..] } else { &[] };
        let shown = ["systemctl"].iter().chain(user).chain(*arguments);
        let shown = shown.copied().collect::<Vec<_>>().join(" ");
        if !runs {
            out::note(&format!("systemd does not run here; where it does: {shown}"));
            continue;
        }
        let ended = Command::new("systemctl").args(user).args(*arguments).status();
        let ended = ended.with_context(|| format!("run {shown}"))?;
        anyhow::ensure!(ended.success(), "{shown}: {ended}");
        out::note(&format!("ran {shown}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_in_a_home_or_temporary_folder_is_hidden_from_the_service() {
        for hidden in ["/home/ada/snowberry", "/run/user/0/snowberry", "/tmp/x/snowberry"] {
            assert!(is_hidden(Path::new(hidden)), "{hidden}");
        }
        for seen in ["/usr/local/bin/snowberry", "/opt/home/snowberry", "/homes/snowberry"] {
            assert!(!is_hidden(Path::new(seen)), "{seen}");
        }
    }
}
