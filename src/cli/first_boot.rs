//! `first-boot` and `identity`: what the appliance does with its boot partition. The first never
//! fails, because nobody would see it: what is wrong is written where its owner can read it.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;

use super::{ConfigArgs, Ended, log, out};
use crate::daemon::OwnKeys;
use crate::firstboot::{self, Folders, IDENTITY_FILE, Identity, LAYOUT_FILE, System};
use crate::http::tls::{self, CaState};

pub(super) const EXAMPLES: &str = "\
Run as root by snowberry-firstboot.service at every boot of the appliance, before its network.

Reads snowberry.toml and the custom.toml of Raspberry Pi Imager on the boot partition; docs/settings.md
explains each key. Wi-Fi passwords and secrets of buckets are moved to the data partition. What is
wrong takes its default and is told in snowberry-errors.txt beside the settings, in the log, on the
page and in /api/status. The exit code is 0 whatever the settings are; 1 on a machine that was not
made from the image, where nothing is written.

Examples:
  snowberry first-boot
  snowberry first-boot --appliance appliance.toml --root ./root
      for a trial: plain folders stand for the partitions";

pub(super) const IDENTITY_EXAMPLES: &str = "\
Run as root by snowberry-identity.service once the cache has made its keys. Writes
snowberry-identity.txt to the boot partition: the name, the public key and the fingerprint of the CA,
to be compared with what `snowberry join` shows. Exit code 1 while there is no key yet.";

/// Where the appliance is.
#[derive(Debug, Args)]
pub(super) struct ApplianceArg {
    /// What says where the appliance has its partitions.
    #[arg(long, value_name = "FILE", default_value = LAYOUT_FILE)]
    appliance: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct FirstBootArgs {
    #[command(flatten)]
    appliance: ApplianceArg,
    /// Where the system's files are written.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct IdentityArgs {
    #[command(flatten)]
    appliance: ApplianceArg,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &FirstBootArgs) -> anyhow::Result<Ended> {
    if let Err(error) = log::start() {
        out::error(&error);
    }
    let folders = folders(&args.appliance)?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    firstboot::run(&folders, &args.root, &System, now_s);
    Ok(Ended::Well)
}

/// Its system's files are written: not for a machine that was not made from the image.
fn folders(arg: &ApplianceArg) -> anyhow::Result<Folders> {
    let read = Folders::read(&arg.appliance);
    let (folders, wrong) = read.with_context(|| {
        format!("this machine is no appliance: there is no {}", arg.appliance.display())
    })?;
    if let Some(wrong) = wrong {
        out::note(&wrong);
    }
    Ok(folders)
}

pub(super) fn identity(args: &IdentityArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    let keys = OwnKeys::read(&config.state_dir)?;
    anyhow::ensure!(
        keys.secret.is_some(),
        "there is no key in {} yet: the cache makes it at its first start",
        config.state_dir.display()
    );
    let ca = match tls::ca_state(&config.state_dir).context("read the CA of this cache")? {
        CaState::There(ca) => Some(ca.to_string()),
        CaState::Gone | CaState::NotYet => None,
    };
    let keys = keys.public().iter().map(ToString::to_string).collect();
    let identity = Identity { name: config.name, keys, ca };
    let boot = folders(&args.appliance)?.boot;
    firstboot::write_identity(&boot, &identity, &System)
        .with_context(|| format!("write {}", boot.join(IDENTITY_FILE).display()))?;
    Ok(Ended::Well)
}
