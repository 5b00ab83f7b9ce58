//! Other caches, as a client sees them: http(s), S3, a folder. Knows no disk of ours.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Deserialize;

use crate::metrics::Metrics;
use crate::nix::{CacheInfo, StoreDir, StorePathHash, TrustedKeys};

/// One `[[upstream]]` table of the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// `https://…`, `http://…`, `s3://bucket?endpoint=…`, `file:///…`.
    pub url: String,
    /// Keys whose signatures count for this upstream, `name:base64`.
    #[serde(default)]
    pub trusted_public_keys: Vec<String>,
    /// Takes what this upstream says without any signature.
    #[serde(default)]
    pub unsigned: bool,
    /// PEM file of a private certificate authority, trusted beside the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// AWS credentials file.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// netrc file with name and password for this host.
    #[serde(default)]
    pub netrc_file: Option<PathBuf>,
    /// File of header lines (`Authorization: Bearer …`) sent with each request.
    #[serde(default)]
    pub headers_file: Option<PathBuf>,
}

/// What an upstream says when it is neither "here it is" nor "I have it not".
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The breaker is open: not asked at all.
    #[error("{upstream} is resting after failures")]
    Resting {
        /// The upstream's URL without user data.
        upstream: Arc<str>,
    },
}

impl Error {
    /// Whether asking again later may help.
    pub fn is_transient(&self) -> bool {
        todo!()
    }
}

/// How an upstream is, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthState {
    /// It answers.
    Up,
    /// It does not answer, or with trouble.
    Down,
    /// It answers that it does not want us (credentials, clock, wrong bucket).
    Refusing,
}

/// How an upstream is and since when.
#[derive(Debug, Clone)]
pub struct Health {
    /// Up, down or refusing.
    pub state: HealthState,
    /// For how long.
    pub since: Duration,
    /// The last trouble, in words without secrets.
    pub last_error: Option<String>,
}

/// Where to go on in a NAR file.
#[derive(Debug, Clone)]
pub struct Resume {
    /// Bytes that came already.
    pub offset: u64,
    /// The strong ETag of what came; the answer must be the same object.
    pub etag: Option<String>,
}

/// One other cache. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {}

impl Upstream {
    /// Checks the configuration; opens nothing.
    pub fn new(_config: &Config, _store_dir: &StoreDir, _metrics: &Metrics) -> Result<Self, Error> {
        todo!()
    }
    /// Its URL without user data: for people, for records.
    pub fn url(&self) -> &Arc<str> {
        todo!()
    }
    /// The keys whose signatures count; `None` when it is `unsigned = true`.
    pub fn trusted_keys(&self) -> Option<&TrustedKeys> {
        todo!()
    }
    /// How it is.
    pub fn health(&self) -> Health {
        todo!()
    }
    /// Whether the breaker would let a question through now.
    pub fn is_resting(&self) -> bool {
        todo!()
    }
    /// Its `nix-cache-info`; a StoreDir that is not ours is an error.
    pub async fn cache_info(&self) -> Result<CacheInfo, Error> {
        todo!()
    }
    /// The narinfo's text (at most `NARINFO_LEN_MAX` bytes, any Content-Encoding undone), `None`
    /// when the upstream has it not. The caller bounds the time.
    pub async fn narinfo(&self, _key: StorePathHash) -> Result<Option<Bytes>, Error> {
        todo!()
    }
    /// The NAR file at a narinfo's URL (relative, absolute, with query), as it is stored there.
    pub async fn nar(&self, _url: &str, _resume: Option<Resume>) -> Result<Option<NarBody>, Error> {
        todo!()
    }
    /// A small document (`<hash>.ls`, `log/…`), any Content-Encoding undone, bounded.
    pub async fn document(&self, _path: &str) -> Result<Option<Bytes>, Error> {
        todo!()
    }
}

/// A NAR file on its way. Dropping it ends the transfer.
pub struct NarBody {}

impl NarBody {
    /// Bytes still to come, where the upstream said so.
    pub fn len_bytes(&self) -> Option<u64> {
        todo!()
    }
    /// The object's strong ETag, where there is one.
    pub fn etag(&self) -> Option<&str> {
        todo!()
    }
    /// The next bytes; `None` after the last. A body shorter than it promised is an error. The
    /// caller watches for stalls.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        todo!()
    }
}
