//! `key`: keys in Nix's format, and those of this cache.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use hyper::Method;

use super::admin::{self, Reach};
use super::{CONFIG_HELP, ConfigArgs, Ended, out};
use crate::config::Config;
use crate::daemon::{self, Imported, OwnKeys};
use crate::http::tls::{self, CaState};
use crate::nix::SecretKey;

/// A key file is one line of about 130 bytes; what is longer is another file.
const KEY_FILE_LEN_MAX: u64 = 4096;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Print a new secret key of this name, as `nix key generate-secret` does.
    Generate {
        /// Its name, such as cache.example-1: clients know keys by their names.
        name: String,
    },
    /// Print the public keys of this machine's cache: the one that signs, then those before it.
    ///
    /// The fingerprint of its CA, where it has one, is told on stderr.
    #[command(after_help = CONFIG_HELP)]
    Show(ConfigArgs),
    /// Make a new key for this machine's cache; the old one stays trusted.
    #[command(after_help = ROTATE_HELP)]
    Rotate(ConfigArgs),
    /// Take a secret key, made by Nix or kept as a backup, as this cache's own.
    #[command(after_help = IMPORT_HELP)]
    Import {
        /// The file of the secret key; `-` is standard input.
        file: PathBuf,
        /// Let it sign instead of the key that is there; that one stays trusted.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

const ROTATE_HELP: &str = "\
The public key of the new one is printed: add it to trusted-public-keys on the clients before the
next push, and leave the old line there, because what was signed before keeps its signature. A
running cache signs with the new key at once, a stopped one from its next start.";

const IMPORT_HELP: &str = "\
Examples:
  nix key generate-secret --key-name s3.homelab.local-1 > house.secret
  snowberry key import house.secret
      what is pushed here is signed with that key
  snowberry key import backup/secret-key
      after a lost card";

pub(super) fn run(command: &KeyCommand) -> anyhow::Result<Ended> {
    match command {
        KeyCommand::Generate { name } => generate(name),
        KeyCommand::Show(config) => show(&config.load()?),
        KeyCommand::Rotate(config) => rotate(&config.load()?),
        KeyCommand::Import { file, replace, config } => import(&config.load()?, file, *replace),
    }
}

/// Prints a new secret key; Nix itself makes the public one of it (`nix key convert-secret-to-public`).
fn generate(name: &str) -> anyhow::Result<Ended> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("draw random bytes for a key")?;
    let key = SecretKey::from_seed(name, seed).context("make a key")?;
    out::line(&key.to_secret_text())?;
    Ok(Ended::Well)
}

fn show(config: &Config) -> anyhow::Result<Ended> {
    let keys = OwnKeys::read(&config.state_dir)?;
    anyhow::ensure!(
        keys.secret.is_some(),
        "there is no key at {} yet: `snowberry serve` makes it at its first start",
        daemon::own_key_file(&config.state_dir).display()
    );
    for key in keys.public() {
        out::line(&key.to_string())?;
    }
    show_ca(config)
}

/// The fingerprint that a machine which joins shows, to be compared. On stderr: what is printed is
/// for `trusted-public-keys`.
fn show_ca(config: &Config) -> anyhow::Result<Ended> {
    match tls::ca_state(&config.state_dir).context("read the CA of this cache")? {
        CaState::There(ca) => out::note(&format!("CA of this cache, SHA-256: {ca}")),
        CaState::Gone => out::note("the CA of this cache is gone: restore it from its backup"),
        CaState::NotYet => {}
    }
    Ok(Ended::Well)
}

fn rotate(config: &Config) -> anyhow::Result<Ended> {
    let keys = daemon::rotate(&config.state_dir, &config.name)?;
    tell_running(config, &keys)
}

fn import(config: &Config, file: &Path, replace: bool) -> anyhow::Result<Ended> {
    let key = read(file)?;
    match daemon::import(&config.state_dir, &key, replace)? {
        Imported::Taken(keys) => tell_running(config, &keys),
        Imported::WasThere => {
            out::note("it is this cache's key already");
            out::line(&key.public().to_string())?;
            Ok(Ended::Well)
        }
    }
}

fn read(file: &Path) -> anyhow::Result<SecretKey> {
    use std::io::Read as _;
    let act = || format!("read the secret key {}", file.display());
    let source: Box<dyn std::io::Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).with_context(act)?)
    };
    let mut text = String::new();
    source.take(KEY_FILE_LEN_MAX).read_to_string(&mut text).with_context(act)?;
    SecretKey::parse(&text).with_context(act).context(
        "wanted is the secret half, as `nix key generate-secret` or `snowberry key generate` \
         print it",
    )
}

/// The key is on the disk by now: a cache that does not run takes it at its next start, and one
/// that cannot be told must be told by somebody.
fn tell_running(config: &Config, keys: &OwnKeys) -> anyhow::Result<Ended> {
    if let Some(first) = keys.public().first() {
        out::line(&first.to_string())?;
    }
    match admin::command(config, Reach::Own, Method::POST, "/keys/reload") {
        Ok(_) => Ok(Ended::Well),
        Err(error) => match error.downcast_ref::<admin::NotGiven>() {
            Some(admin::NotGiven::NobodyRuns(_)) => {
                out::note("no cache runs here: the key signs from its next start");
                Ok(Ended::Well)
            }
            Some(admin::NotGiven::NotAllowed(_)) | None => Err(error.context(
                "the key is kept, but the running cache was not told: it signs from the next start",
            )),
        },
    }
}
