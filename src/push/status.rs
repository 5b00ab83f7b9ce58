//! How each target is, for page, status and the admin socket.

use super::Push;

/// What a target's worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetState {
    /// Nothing waits.
    Idle,
    /// It is carrying.
    Sending,
    /// It waits before it tries again.
    Waiting,
    /// The target refuses; tried now and then, and goes on when it is mended.
    Stopped,
    /// It is not in the configuration any more: its rows stay until they are forgotten.
    Gone,
}

/// How a target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetStatus {
    /// Its URL without user data.
    pub target: String,
    /// What its worker does.
    pub state: TargetState,
    /// Rows that wait.
    pub waiting: u64,
    /// Bytes of those.
    pub waiting_bytes: u64,
    /// Age of the oldest, in seconds.
    pub oldest_s: Option<u64>,
    /// Rows that are parked: the target does not take them, or what they refer to.
    pub parked: u64,
    /// Rows whose bytes are damaged.
    pub lost: u64,
    /// Objects and bytes that it was given since start.
    pub pushed: u64,
    /// Bytes of those.
    pub pushed_bytes: u64,
    /// What is being carried now, by name.
    pub sending: Vec<String>,
    /// The last trouble, in a sentence.
    pub last_error: Option<String>,
    /// Seconds until it tries again.
    pub retry_in_s: Option<u64>,
}

impl Push {
    /// Every target that is configured or has rows.
    pub fn status(&self) -> Vec<TargetStatus> {
        todo!()
    }

    /// Forgets the rows of a target (or only its lost ones). Says how many.
    pub async fn forget(
        &self,
        _target: &str,
        _only_lost: bool,
    ) -> Result<u64, crate::store::Error> {
        todo!()
    }
}
