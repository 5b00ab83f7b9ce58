//! Answers that need no cache: what never changes, what is refused, what is nothing of ours.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::Request;
use hyper::body::{Body as _, Incoming};
use hyper::header::EXPECT;

use super::host_rule;
use super::public_keys::PublicKeys;
use super::reply::{Media, Refusal, Reply};
use super::route::Route;
use crate::metrics::Ended;
use crate::nix::{CacheInfo, StoreDir};

/// Lower is asked earlier: before cache.nixos.org, which has 40.
const PRIORITY: u32 = 30;

/// Bytes of a refused upload that are read and dropped, so that its connection can go on: newer
/// Nix announces bodies over 1 MiB with `Expect`, and is refused before it sends them.
const REFUSED_BODY_LEN_MAX: usize = 1024 * 1024;

/// How long those may take: a second or two on the slowest Wi-Fi.
const REFUSED_BODY_WAIT: Duration = Duration::from_secs(10);

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
    pub(super) async fn answer(
        &self,
        route: &Route<'_>,
        request: &Request<()>,
        body: Incoming,
    ) -> Option<(Reply, Ended)> {
        match route {
            Route::CacheInfo => {
                Some((Reply::Found(Media::CacheInfo, self.cache_info.clone()), Ended::Hit))
            }
            Route::PublicKey => Some(match self.public_keys.lines() {
                Some(lines) => (Reply::Found(Media::Text, lines.into()), Ended::Hit),
                None => (Reply::Absent, Ended::Absent),
            }),
            Route::Write => {
                let why = if self.is_ours(request) { Refusal::NoWriter } else { Refusal::Host };
                let drained = drained(request, body).await;
                Some((Reply::Refused { why, drained }, Ended::Refused))
            }
            Route::Page | Route::Status | Route::Metrics if !self.is_ours(request) => {
                Some((Reply::Refused { why: Refusal::Host, drained: true }, Ended::Refused))
            }
            // An uploader's name for a NAR: there are no uploaders yet.
            Route::NarFile | Route::Unknown => Some((Reply::Absent, Ended::Absent)),
            Route::Narinfo(_)
            | Route::Listing(_)
            | Route::Nar(_)
            | Route::Document(..)
            | Route::Page
            | Route::Status
            | Route::Metrics
            | Route::Healthz => None,
        }
    }

    fn is_ours(&self, request: &Request<()>) -> bool {
        host_rule::host_of(request).is_some_and(|host| host_rule::is_ours(host, &self.names))
    }
}

/// Takes the body of a refused upload off the connection, when it is small and not held back for
/// a `100 Continue`, which reading it would send.
async fn drained(request: &Request<()>, body: Incoming) -> bool {
    if body.is_end_stream() {
        return true;
    }
    let len_max = u64::try_from(REFUSED_BODY_LEN_MAX).unwrap_or(u64::MAX);
    if body.size_hint().lower() > len_max || request.headers().contains_key(EXPECT) {
        return false;
    }
    let mut body = Limited::new(body, REFUSED_BODY_LEN_MAX);
    let read = async {
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(REFUSED_BODY_WAIT, read).await.unwrap_or(false)
}
