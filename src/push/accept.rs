//! A narinfo that binds an upload: checked, signed, published and queued in one durable step.

use bytes::Bytes;

use super::Push;
use crate::nix::StorePathHash;

/// Why an upload is not taken: always for good, never "try again" (5xx and 202 hang old clients).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The store cannot be used now.
    #[error("this cache's disk cannot be used now ({0})")]
    Degraded(String),
}

impl Push {
    /// Takes a narinfo put at `/<key>.narinfo`. It is durable and queued when this returns.
    pub async fn narinfo(&self, _key: StorePathHash, _text: Bytes) -> Result<(), Refusal> {
        todo!()
    }
}
