//! `backup` and `restore`: what must not be lost, as one file that only its passphrase opens.

mod passphrase;
mod restore;
mod source;
mod state;
mod take;

use std::path::PathBuf;

use clap::Args;

use super::{ConfigArgs, Ended};
use crate::firstboot::LAYOUT_FILE;

/// Says what a backup is and of which form. First in it.
const MANIFEST: &str = "snowberry-backup.toml";

/// The form that is written and read.
const FORM: i64 = 1;

/// Below it are the files of the state directory.
const STATE: &str = "state/";

/// The daemon's configuration.
const CONFIG: &str = "config/snowberry.toml";

/// Below it is what an appliance keeps of its settings.
const SETTINGS: &str = "settings/";

/// Below it is what waits, laid out as a cache: Nix reads it there too.
const CACHE: &str = "cache/";

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry backup pi.backup
      asks for a passphrase twice
  snowberry backup pi.backup --passphrase-file /etc/backup.passphrase --without-nars
      for a timer, without what waits to be carried up
  age --decrypt pi.backup | tar --list
      without snowberry

In it: the keys of this cache, the CA and certificates, the tokens of who may write, the
configuration, what an appliance keeps of its settings, and every path that waits for a push target,
with its NAR. Not in it: what is merely cached. Works whether the cache runs or not.

It is an archive of tar in a file of age: who has it and the passphrase is this cache.";

pub(super) const RESTORE_EXAMPLES: &str = "\
Examples:
  systemctl stop snowberry.service snowberry.socket snowberry-tls.socket
  snowberry restore pi.backup
  systemctl start snowberry.socket snowberry-tls.socket snowberry.service

The whole file is read and verified before anything is written. Into a state directory that has a
key of its own it goes only with --force. What waited is taken as a push is: it is on the disk and in
the queue of each push target of the configuration when the command ends.";

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// Where to write it. An older one of that name is replaced once the new one is whole.
    file: PathBuf,
    /// A file whose first line is the passphrase, instead of asking for it.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Leave out what waits to be carried up, and list it.
    #[arg(long)]
    without_nars: bool,
    /// What says where an appliance has its partitions.
    #[arg(long, value_name = "FILE", default_value = LAYOUT_FILE)]
    appliance: PathBuf,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The backup.
    file: PathBuf,
    /// A file whose first line is the passphrase, instead of asking for it.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Replace keys, tokens and settings that are there.
    #[arg(long)]
    force: bool,
    /// What says where an appliance has its partitions.
    #[arg(long, value_name = "FILE", default_value = LAYOUT_FILE)]
    appliance: PathBuf,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn backup(args: &BackupArgs) -> anyhow::Result<Ended> {
    take::run(args)
}

pub(super) fn restore(args: &RestoreArgs) -> anyhow::Result<Ended> {
    restore::run(args)
}
