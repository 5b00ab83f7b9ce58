//! `--undo`: takes back what a join wrote, the line in nix.conf first, so that nothing asks for what is
//! going. It may run again after it was interrupted.

use std::path::PathBuf;

use super::files::{Files, PUBLIC};
use super::install;
use super::nix_conf::{self, Without};
use super::own_conf;
use crate::cli::{Ended, out};

pub(super) fn run(files: &Files<'_>) -> anyhow::Result<Ended> {
    let place = files.place;
    let nix_conf = place.nix_conf();
    let conf = files.read(&place.own_conf())?.filter(|text| own_conf::is_ours(text));
    let also = conf.as_deref().map(own_conf::also_written).unwrap_or_default();
    let is_joined = conf.is_some() || files.read(&place.joined())?.is_some();
    if let Some(text) = files.read(&nix_conf)? {
        match nix_conf::without_include(&text) {
            Without::Same => {}
            Without::Nothing => files.remove(&nix_conf)?,
            Without::Text(text) => files.write(&nix_conf, &text, PUBLIC)?,
        }
    } else if !is_joined {
        out::note("this machine has not joined");
        return Ok(Ended::Well);
    }
    let units = install::units(place);
    let has_units = units.iter().any(|unit| also.contains(unit));
    if has_units {
        install::stop(place);
    }
    // What the list names, the last written first; and what every join writes.
    let always = [place.ca(), place.joined()].into_iter().filter(|_| is_joined);
    let all: Vec<PathBuf> = also.iter().rev().cloned().chain(always).collect();
    for path in &all {
        files.remove(path)?;
    }
    if has_units {
        install::forget(place)?;
    }
    if conf.is_some() {
        files.remove(&place.own_conf())?;
    }
    files.remove_folder_of(&place.joined());
    if !place.is_user {
        out::note("a Nix daemon that runs reads this when it is started again");
    }
    Ok(Ended::Well)
}
