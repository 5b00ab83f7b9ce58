//! Answers that need no cache: what never changes, what is refused, what is nothing of ours.

use bytes::Bytes;
use hyper::Request;

use super::host_rule;
use super::public_keys::PublicKeys;
use super::refusal::Refusal;
use super::reply::{Media, Reply};
use super::route::{Object, Route};
use crate::metrics::Ended;
use crate::nix::{CacheInfo, StoreDir};

/// Lower is asked earlier: before cache.nixos.org, which has 40.
pub const PRIORITY: u32 = 30;

/// What is said without asking anybody.
pub(super) struct Front {
    cache_info: Bytes,
    public_keys: PublicKeys,
    names: Vec<String>,
}

impl Front {
    /// Prepares what never changes.
    pub(super) fn new(store_dir: StoreDir, public_keys: PublicKeys, names: Vec<String>) -> Self {
        let cache_info = CacheInfo { store_dir, want_mass_query: true, priority: Some(PRIORITY) };
        Self { cache_info: cache_info.to_string().into(), public_keys, names }
    }

    /// The answer, where no cache is needed for it.
    pub(super) fn answer(
        &self,
        route: &Route<'_>,
        request: &Request<()>,
    ) -> Option<(Reply, Ended)> {
        match route {
            Route::Object(Object::CacheInfo) | Route::Pushed(Object::CacheInfo) => {
                Some((Reply::Found(Media::CacheInfo, self.cache_info.clone()), Ended::Hit))
            }
            Route::PublicKey => Some(match self.public_keys.lines() {
                Some(lines) => (Reply::Found(Media::Text, lines.into()), Ended::Hit),
                None => (Reply::Absent, Ended::Absent),
            }),
            Route::Page | Route::Status | Route::Metrics if !self.is_ours(request) => {
                Some((Reply::Refused { why: Refusal::Host, drained: true }, Ended::Refused))
            }
            Route::Object(Object::OtherNar) | Route::Pushed(Object::OtherNar) | Route::Unknown => {
                Some((Reply::Absent, Ended::Absent))
            }
            Route::Object(_)
            | Route::Pushed(_)
            | Route::Put(_)
            | Route::Write
            | Route::CaPem
            | Route::Page
            | Route::Status
            | Route::Metrics
            | Route::Healthz => None,
        }
    }

    /// Whether the request's Host is one of ours.
    pub(super) fn is_ours(&self, request: &Request<()>) -> bool {
        host_rule::host_of(request).is_some_and(|host| host_rule::is_ours(host, &self.names))
    }
}
