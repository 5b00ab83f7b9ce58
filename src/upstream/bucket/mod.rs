//! Setting up a bucket or a folder as a cache: what the guides do by hand with `mc`. Each step may
//! be done again; what is there and differs is never overwritten.

use super::{Config, ConfigError, Error};
use crate::nix::StoreDir;

/// A bucket or a folder that is to become a cache, with its owner's credentials.
pub struct BucketAdmin;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was done now.
    Done,
    /// It was so before.
    WasThere,
}

/// Why a step was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StepError {
    /// The server did not answer, or it refused.
    #[error("{act}")]
    Failed {
        /// What was tried.
        act: &'static str,
        /// What to do instead.
        hint: String,
        /// Why not.
        source: Error,
    },
    /// Something else is there, and it is left as it is.
    #[error("{act}: left as it is: {what}")]
    Differs {
        /// What was tried.
        act: &'static str,
        /// What is there.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// A folder has no such thing.
    #[error("{act}: a folder has no such thing")]
    Folder {
        /// What was tried.
        act: &'static str,
        /// What to do instead.
        hint: String,
    },
}

impl StepError {
    /// The status that the server answered with.
    pub fn status(&self) -> Option<u16> {
        todo!()
    }

    /// S3's code of the error, or empty.
    pub fn code(&self) -> &str {
        todo!()
    }

    /// What to do instead: a sentence for people, with the command where there is one.
    pub fn hint(&self) -> &str {
        match self {
            Self::Failed { hint, .. } | Self::Differs { hint, .. } | Self::Folder { hint, .. } => {
                hint
            }
        }
    }
}

impl BucketAdmin {
    /// From the table of an upstream, whose keys do not matter here; only for `s3://` and
    /// `file:///`. Asks nobody.
    pub fn new(_config: &Config) -> Result<Self, ConfigError> {
        todo!()
    }

    /// The bucket's name; `None` for a folder.
    pub fn bucket(&self) -> Option<&str> {
        todo!()
    }

    /// Creates the bucket or the folder.
    pub async fn create(&self) -> Result<Step, StepError> {
        todo!()
    }

    /// Writes `nix-cache-info`, which makes it a cache.
    pub async fn put_cache_info(&self, _store_dir: &StoreDir) -> Result<Step, StepError> {
        todo!()
    }

    /// Lets anybody read. Not for a folder.
    pub async fn allow_public_read(&self) -> Result<Step, StepError> {
        todo!()
    }

    /// Lets objects expire so many days after they were written. Not for a folder.
    pub async fn expire_after(&self, _days: u32) -> Result<Step, StepError> {
        todo!()
    }
}

/// The policy of the user that pushes into a bucket: the seven actions of the Nix manual, and no
/// right to delete.
pub fn user_policy(_bucket: &str) -> String {
    todo!()
}
