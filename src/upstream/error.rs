//! What an upstream says when it is neither "here it is" nor "I have it not".

use std::{error::Error as _, fmt, io, sync::Arc};

use super::credentials::CredentialsError;
use super::encoding::EncodingError;
use super::health::HealthState;
use super::put::Setback;
use crate::nix::cache_info::CacheInfoError;

/// What was asked, of whom. Never with user data or a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The upstream's URL without user data.
    pub upstream: Arc<str>,
    /// The object's name there.
    pub object: Arc<str>,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.object, self.upstream)
    }
}

/// What an upstream says when it is neither "here it is" nor "I have it not".
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The breaker is open: not asked at all.
    #[error("{upstream} is resting after failures")]
    Resting {
        /// The upstream's URL without user data.
        upstream: Arc<str>,
    },
    /// Too many questions are on their way to it.
    #[error("{upstream} has too many questions of ours to answer")]
    Busy {
        /// The upstream's URL without user data.
        upstream: Arc<str>,
    },
    /// No connection, no TLS, or the answer broke off before its head was whole.
    #[error("ask for {asked}")]
    Transport {
        /// What was asked.
        asked: Asked,
        /// Why.
        source: Arc<hyper_util::client::legacy::Error>,
    },
    /// Nothing came in time.
    #[error("ask for {asked}: no answer within {waited_s} s")]
    Silent {
        /// What was asked.
        asked: Asked,
        /// How long we waited.
        waited_s: u64,
    },
    /// The clock, here or there, is wrong: certificates or signatures do not hold.
    #[error("ask for {asked}: the clock here may be wrong: {detail}")]
    Clock {
        /// What was asked.
        asked: Asked,
        /// What shows it.
        detail: Arc<str>,
    },
    /// The upstream does not want us: credentials, bucket, region.
    #[error("ask for {asked}: refused with status {status} {code}")]
    Refused {
        /// What was asked.
        asked: Asked,
        /// The status.
        status: u16,
        /// The error code of S3, or empty.
        code: Arc<str>,
    },
    /// Any other status than the ones with a meaning for a cache.
    #[error("ask for {asked}: answered with status {status} {code}")]
    Status {
        /// What was asked.
        asked: Asked,
        /// The status.
        status: u16,
        /// The error code of S3, or empty.
        code: Arc<str>,
    },
    /// A redirect that is not followed.
    #[error("ask for {asked}: redirect not followed: {why}")]
    Redirect {
        /// What was asked.
        asked: Asked,
        /// Why not.
        why: &'static str,
    },
    /// A URL (of a narinfo) or a name that is not followed.
    #[error("ask for {asked}: not asked: {why}")]
    Url {
        /// What was to be asked.
        asked: Asked,
        /// Why not.
        why: &'static str,
    },
    /// Longer than anything of its kind may be.
    #[error("read {asked}: longer than {len_max} bytes")]
    TooLong {
        /// What was asked.
        asked: Asked,
        /// The bound.
        len_max: usize,
    },
    /// A Content-Encoding that cannot be undone.
    #[error("read {asked}")]
    Encoding {
        /// What was asked.
        asked: Asked,
        /// Why.
        source: EncodingError,
    },
    /// The body broke off.
    #[error("read {asked}")]
    Body {
        /// What was asked.
        asked: Asked,
        /// Why.
        source: Arc<hyper::Error>,
    },
    /// The body ended before the length that it promised.
    #[error("read {asked}: {missing} bytes short of its length")]
    Short {
        /// What was asked.
        asked: Asked,
        /// Bytes that did not come.
        missing: u64,
    },
    /// A transfer cannot be resumed: the upstream sends another object, or from its start.
    #[error("resume {asked}: it cannot be continued where it broke off")]
    Changed {
        /// What was asked.
        asked: Asked,
    },
    /// A folder that cannot be read.
    #[error("read {asked}")]
    Io {
        /// What was asked.
        asked: Asked,
        /// Why.
        source: Arc<io::Error>,
    },
    /// It has no nix-cache-info: a mount point without its disk, a bucket that denies us
    /// everything, or no cache at all.
    #[error("{upstream} has no nix-cache-info: is it mounted, may we read it, is it a Nix cache?")]
    NotACache {
        /// The upstream's URL without user data.
        upstream: Arc<str>,
    },
    /// Its nix-cache-info does not parse.
    #[error("read nix-cache-info of {upstream}")]
    CacheInfo {
        /// The upstream's URL without user data.
        upstream: Arc<str>,
        /// Why.
        source: CacheInfoError,
    },
    /// Its paths lie in another store directory.
    #[error("{upstream} is a cache for {theirs}, not for {ours}")]
    StoreDir {
        /// The upstream's URL without user data.
        upstream: Arc<str>,
        /// Its store directory.
        theirs: Arc<str>,
        /// Ours.
        ours: Arc<str>,
    },
    /// A write that the upstream answered with anything but success.
    #[error("put {asked}: answered with status {status} {code}")]
    NotTaken {
        /// What was put.
        asked: Asked,
        /// The status.
        status: u16,
        /// The error code of S3, or empty.
        code: Arc<str>,
    },
    /// A write whose bytes were not taken in time.
    #[error("put {asked}: no byte taken for {waited_s} s")]
    Stalled {
        /// What was put.
        asked: Asked,
        /// How long we waited.
        waited_s: u64,
    },
    /// What is to be put cannot be read.
    #[error("read what is to be put as {asked}")]
    Source {
        /// What was to be put.
        asked: Asked,
        /// Why.
        source: Arc<io::Error>,
    },
    /// A folder that cannot be written.
    #[error("write {asked}")]
    Write {
        /// What was put.
        asked: Asked,
        /// Why.
        source: Arc<io::Error>,
    },
    /// It is of a kind that nothing can be put to.
    #[error("{upstream} is neither a bucket nor a folder: nothing can be put there")]
    NoTarget {
        /// The upstream's URL without user data.
        upstream: Arc<str>,
    },
    /// The credentials cannot be had.
    #[error("credentials for {upstream}")]
    Credentials {
        /// The upstream's URL without user data.
        upstream: Arc<str>,
        /// Why.
        source: CredentialsError,
    },
}

impl Error {
    /// Whether asking again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resting { .. }
            | Self::Busy { .. }
            | Self::Transport { .. }
            | Self::Silent { .. }
            | Self::Clock { .. }
            | Self::Body { .. }
            | Self::Short { .. }
            | Self::Changed { .. }
            | Self::Io { .. }
            | Self::Stalled { .. }
            | Self::Source { .. }
            | Self::Write { .. }
            | Self::NotACache { .. } => true,
            Self::NotTaken { .. } => matches!(self.setback(), Setback::Passing | Setback::Clock),
            // 408 and 429 ask for a later question, 5xx other than 501 and 505 pass.
            Self::Status { status, .. } => {
                matches!(status, 408 | 429) || (*status >= 500 && !matches!(status, 501 | 505))
            }
            Self::Refused { .. }
            | Self::Redirect { .. }
            | Self::Url { .. }
            | Self::TooLong { .. }
            | Self::Encoding { .. }
            | Self::CacheInfo { .. }
            | Self::StoreDir { .. }
            | Self::NoTarget { .. }
            | Self::Credentials { .. } => false,
        }
    }

    /// What it says about the upstream as a whole; `None` when nothing: it was not asked, or it
    /// did not end with an answer.
    pub(super) fn verdict(&self) -> Option<HealthState> {
        match self {
            // Reads are asked all the same when writes fail.
            Self::Resting { .. }
            | Self::Busy { .. }
            | Self::Url { .. }
            | Self::NotTaken { .. }
            | Self::Stalled { .. }
            | Self::Source { .. }
            | Self::Write { .. }
            | Self::NoTarget { .. } => None,
            // One object is bad; whoever sent it is there.
            Self::TooLong { .. } | Self::Encoding { .. } | Self::Changed { .. } => {
                Some(HealthState::Up)
            }
            Self::Transport { .. }
            | Self::Silent { .. }
            | Self::Status { .. }
            | Self::Redirect { .. }
            | Self::Body { .. }
            | Self::Short { .. }
            | Self::Io { .. }
            | Self::NotACache { .. }
            | Self::CacheInfo { .. } => Some(HealthState::Down),
            Self::Clock { .. }
            | Self::Refused { .. }
            | Self::StoreDir { .. }
            | Self::Credentials { .. } => Some(HealthState::Refusing),
        }
    }

    /// The error and its causes on one line, for people.
    pub(super) fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}
