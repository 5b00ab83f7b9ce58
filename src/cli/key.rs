//! `key`: keys in Nix's format.

use anyhow::Context;

use super::{ConfigArgs, Ended, out};
use crate::daemon;
use crate::nix::SecretKey;

/// Prints a new secret key; Nix itself makes the public one of it (`nix key convert-secret-to-public`).
pub(super) fn generate(name: &str) -> anyhow::Result<Ended> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("draw random bytes for a key")?;
    let key = SecretKey::from_seed(name, seed).context("make a key")?;
    out::line(&key.to_secret_text())?;
    Ok(Ended::Well)
}

/// Prints the public key of the cache that has this configuration.
pub(super) fn show(args: &ConfigArgs) -> anyhow::Result<Ended> {
    let config = args.load()?;
    let path = daemon::own_key_file(&config.state_dir);
    let key = daemon::read_own_key(&config.state_dir)?.with_context(|| {
        format!(
            "there is no key at {} yet: `snowberry serve` makes it at its first start",
            path.display()
        )
    })?;
    out::line(&key.public().to_string())?;
    Ok(Ended::Well)
}
