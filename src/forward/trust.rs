//! What the configuration and `joined.toml` say together: which caches are those of the house, and
//! whose word on TLS counts.

use std::error::Error as StdError;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::{ClientConfig, RootCertStore};
use tracing::{info, warn};

use super::Config;
use super::joined::Joined;
use super::place::House;
use crate::pinned::{self, CaFingerprint};

/// Longest CA file that is read: ours have less than a thousand bytes.
const CA_LEN_MAX: u64 = 64 * 1024;

/// What is known of the house, and TLS that trusts its CA alone.
pub(super) struct Trust {
    pub(super) house: House,
    pub(super) tls: ClientConfig,
}

/// When a file changed last, and how long it is: another value is another file.
pub(super) type Stamp = Option<(SystemTime, u64)>;

/// The stamp of `joined.toml`; `None` while there is none.
pub(super) fn stamp(path: &Path) -> Stamp {
    let metadata = path.metadata().ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

impl Trust {
    /// Reads `joined.toml` and the CA. What cannot be used is told in the log and left out: the
    /// forwarder answers all the same.
    pub(super) fn read(config: &Config) -> Self {
        let joined = Joined::read(&config.joined_file).unwrap_or_else(|error| {
            warn!(error = &error as &dyn StdError, "what was joined cannot be used");
            None
        });
        let ca_file = config.ca_file.clone();
        let ca_file = ca_file.or_else(|| joined.as_ref().and_then(|joined| joined.ca_file.clone()));
        let pinned = ca_file.and_then(|path| match pin(&path) {
            Ok(pinned) => Some(pinned),
            Err(error) => {
                let path = path.display();
                warn!(%path, error = &error as &dyn StdError, "the CA cannot be used");
                None
            }
        });
        let (pins, tls) = match pinned {
            Some((sum, tls)) => (vec![sum], tls),
            None => (Vec::new(), trusting_nobody()),
        };
        let house = House {
            fixed: config.cache.clone(),
            joined,
            plain: config.plain,
            pins,
            store_dir: config.store_dir.to_string(),
        };
        tell(&house, config);
        Self { house, tls }
    }
}

/// What a human is to do, where there is something to do.
fn tell(house: &House, config: &Config) {
    let joined_file = config.joined_file.display();
    match (&house.fixed, &house.joined) {
        (Some(cache), _) => {
            let (host, port) = (&cache.host, cache.port);
            info!(%host, port, tls = cache.is_tls, "the cache is configured");
            if cache.is_tls && house.pins.is_empty() {
                warn!(
                    %host,
                    "over TLS only a CA that is pinned is trusted: run `snowberry join`, or set \
                     forward.ca-file"
                );
            }
        }
        (None, Some(joined)) => {
            info!(name = joined.name, host = joined.host, file = %joined_file, "a cache was joined");
        }
        (None, None) if house.plain => info!("any cache that announces itself is asked"),
        (None, None) => warn!(
            file = %joined_file,
            "no cache is known, everything is answered with 404: run `snowberry join`, or set \
             forward.cache"
        ),
    }
}

/// Why a CA file cannot be used.
#[derive(Debug, thiserror::Error)]
enum PinError {
    #[error("read the CA file")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Use(pinned::Error),
}

fn pin(path: &Path) -> Result<([u8; 32], ClientConfig), PinError> {
    let mut pem = Vec::new();
    let read = File::open(path).and_then(|file| file.take(CA_LEN_MAX).read_to_end(&mut pem));
    read.map_err(PinError::Read)?;
    let fingerprint = CaFingerprint::of_pem(&pem).map_err(PinError::Use)?;
    let tls = pinned::client_config(&pem).map_err(PinError::Use)?;
    Ok((fingerprint.0, tls))
}

/// For plain HTTP, whose connector wants one all the same.
fn trusting_nobody() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has suites for both versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}
