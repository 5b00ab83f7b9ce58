//! What is shown while an update is fetched and written, and what `--check` says.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use super::super::{Ended, out};
use super::runtime;
use crate::config::Config;
use crate::units::ByteSize;
use crate::update::{self, Downgrade, Error, Machine, PATIENCE, Package, Server, Watcher};

/// How often the line of a terminal is written over: each half percent can be seen.
const TERMINAL_STEPS: u64 = 200;

/// Elsewhere each is a line of a log, and ten of them say enough.
const LOG_STEPS: u64 = 10;

/// Shows how far it is.
#[derive(Debug, Default)]
pub(super) struct Shown {
    last: Option<(&'static str, u64)>,
}

impl Watcher for Shown {
    fn progress(&mut self, what: &'static str, done: u64, of: u64) {
        let is_terminal = std::io::stderr().is_terminal();
        let steps = if is_terminal { TERMINAL_STEPS } else { LOG_STEPS };
        let step = done.saturating_mul(steps) / of.max(1);
        if self.last == Some((what, step)) {
            return;
        }
        self.last = Some((what, step));
        let (shown, of_shown) = (ByteSize(done), ByteSize(of));
        let percent = done.saturating_mul(100) / of.max(1);
        let text = format!("{what}: {percent} %, {shown} of {of_shown}");
        if !is_terminal {
            return out::note(&text);
        }
        let line_end = if done == of { "\n" } else { "" };
        let mut stderr = std::io::stderr().lock();
        // Spaces cover what a longer line left there.
        let written = write!(stderr, "\r{text}          {line_end}").and_then(|()| stderr.flush());
        out::ignore_closed_pipe(written);
    }

    fn step(&mut self, step: &'static str) -> Result<(), Error> {
        tracing::debug!(step, "update");
        Ok(())
    }
}

/// What runs, what the other slot holds, what there is.
pub(super) fn check(
    file: Option<&Path>,
    config: &Config,
    machine: &Machine,
) -> anyhow::Result<Ended> {
    let record = machine.folder()?.record();
    let (running, other) = (machine.running, machine.running.other());
    let trial = machine.config().is_ok_and(|(_, booted)| booted != running);
    let trial = if trial { ", on trial" } else { "" };
    out::line(&format!("slot {running}: {}, which runs{trial}", machine.version))?;
    let held = match record.holds(other) {
        Some(holds) if holds.confirmed => format!("{}, which ran well", holds.version),
        Some(holds) => format!("{}, which never ran well", holds.version),
        None => "nothing that is known of".to_owned(),
    };
    out::line(&format!("slot {other}: {held}"))?;
    if let Some(error) = &record.last_error {
        out::line(&format!("last: {error}"))?;
    }
    let keys = machine.keys()?;
    let (from, manifest) = match (file, config.update.url.as_deref()) {
        (Some(file), _) => {
            let package = Package::open(file, &keys)?;
            package.verify(&mut Shown::default())?;
            (file.display().to_string(), package.head().manifest.clone())
        }
        (None, Some(url)) => {
            let server = Server::new(&config.update, url, PATIENCE)?;
            let head = runtime()?.block_on(server.latest(&keys))?;
            ("the server".to_owned(), head.manifest)
        }
        (None, None) => {
            out::line("no update.url is configured")?;
            return Ok(Ended::Well);
        }
    };
    let version = &manifest.version;
    let would = match update::admit(&manifest, machine, Downgrade::Refused) {
        Err(error) => format!("not to be installed: {error}"),
        Ok(()) if record.refused.contains(version) => {
            "did not come up well here, or was taken back: only by hand".to_owned()
        }
        Ok(()) => "can be installed".to_owned(),
    };
    out::line(&format!("{from}: {version}, {would}"))?;
    Ok(Ended::Well)
}
