//! What is shown while an update is fetched and written, and what `--check` says.

use std::path::Path;

use super::super::progress::{At, Progress};
use super::super::runtime;
use super::super::{Ended, out};
use crate::config::Config;
use crate::update::{self, Downgrade, Error, Machine, PATIENCE, Package, Server, Watcher};

/// Shows how far it is.
#[derive(Debug)]
pub(super) struct Shown(Progress);

impl Default for Shown {
    fn default() -> Self {
        Self(Progress::new(false))
    }
}

impl Watcher for Shown {
    fn progress(&mut self, what: &'static str, done: u64, of: u64) {
        self.0.at(&At { what: what.to_owned(), bytes: Some((done, Some(of))), things: None });
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
            let head = runtime::alone(server.latest(&keys))??;
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
