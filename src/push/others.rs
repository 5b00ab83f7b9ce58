//! What the other upstreams say of a path: the same NAR, another one, nothing, or no answer.
//!
//! Asked with `/push/<hash>.narinfo` or at the latest when the narinfo is put, and once more by
//! the worker where nobody answered.

use super::Inner;
use crate::nix::{NarHash, Signature, StorePathHash};

/// What the other upstreams say of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// One has the same NAR; its signatures that hold.
    Same(Vec<Signature>),
    /// One has the path with another NAR.
    Differs,
    /// All answered, none has it.
    Absent,
    /// Not all answered, and those that did have it not.
    Unknown,
}

impl Inner {
    /// Asks the other upstreams, all at once, and waits for at most `wait`.
    pub(super) async fn others_say(
        &self,
        _key: StorePathHash,
        _nar_hash: NarHash,
        _wait: std::time::Duration,
    ) -> Said {
        todo!()
    }
}
