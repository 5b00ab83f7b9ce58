//! The public keys of this cache, which change while it runs when its key is rotated.

use std::sync::{Arc, Mutex, PoisonError};

use crate::nix::PublicKey;

/// The public halves of this cache's own keys. Cheap to clone; all clones see a change.
#[derive(Debug, Clone, Default)]
pub struct PublicKeys(Arc<Mutex<Arc<[PublicKey]>>>);

impl PublicKeys {
    /// The keys, the one that signs first; none before the first start.
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self(Arc::new(Mutex::new(keys.into())))
    }

    /// Other keys hold from now on.
    pub fn set(&self, keys: Vec<PublicKey>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = keys.into();
    }

    /// A line for each; `None` without any.
    pub(super) fn lines(&self) -> Option<String> {
        let lines: Vec<String> = self.all().iter().map(ToString::to_string).collect();
        (!lines.is_empty()).then(|| lines.join("\n") + "\n")
    }

    /// All, the one that signs first.
    pub fn all(&self) -> Arc<[PublicKey]> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
