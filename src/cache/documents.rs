//! Small documents: logs, realisations, build traces, debuginfo, listings. Passed through and kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::ask::{self, Said};
use super::{Inner, Outcome};
use crate::nix::{FileHash, StorePathHash};
use crate::store::Origin;
use crate::upstream::Upstream;

/// For the upstreams together: a log may be some MiB on a slow line, and nobody's build waits.
const UPSTREAM_WAIT: Duration = Duration::from_secs(10);

/// The `.ls` of a store path: made here while its NAR passed, else the upstream's.
pub(super) async fn listing(inner: &Inner, key: StorePathHash) -> Outcome<Bytes> {
    if inner.is_degraded() {
        return Outcome::Absent;
    }
    if let Ok(Some((stored, Some(_)))) = inner.store.lookup(key).await
        && let Ok(Some(listing)) = inner.store.listing(stored.narinfo.nar_hash).await
    {
        return Outcome::Hit(listing);
    }
    document(inner, &format!("{key}.ls")).await
}

/// A document by its path.
pub(super) async fn document(inner: &Inner, path: &str) -> Outcome<Bytes> {
    if inner.is_degraded() {
        return Outcome::Absent;
    }
    match inner.store.document(path).await {
        Ok(Some(body)) => return Outcome::Hit(shown(inner, path, body)),
        Ok(None) => {}
        Err(_) => return Outcome::Absent,
    }
    let name: Arc<str> = path.into();
    if inner.memory.absent_documents.holds(&name) {
        return Outcome::Absent;
    }
    let upstreams = inner.upstreams();
    let questions = upstreams
        .iter()
        .map(|upstream| -> BoxFuture<'_, Said<Bytes>> { Box::pin(ask_one(upstream, path)) });
    let Ok(asked) = timeout(UPSTREAM_WAIT, ask::first(questions.collect::<Vec<_>>())).await else {
        return Outcome::Absent;
    };
    let Some(body) = asked.found else {
        if !asked.trouble {
            inner.memory.absent_documents.note(name, ());
        }
        return Outcome::Absent;
    };
    if let Err(error) = inner.store.keep_document(path, body.clone(), Origin::Upstream).await {
        warn!(path, error = &error as &dyn std::error::Error, "document could not be kept");
    }
    Outcome::Miss(shown(inner, path, body))
}

async fn ask_one(upstream: &Upstream, path: &str) -> Said<Bytes> {
    if upstream.is_resting() {
        return Said::Trouble;
    }
    match upstream.document(path).await {
        Ok(Some(body)) => Said::Found(body),
        Ok(None) => Said::Absent,
        Err(error) => {
            debug!(upstream = %upstream.url(), path, error = &error as &dyn std::error::Error,
                "document could not be fetched");
            Said::Trouble
        }
    }
}

/// The document as clients see it: debuginfo names a NAR file of its upstream, which is replaced by
/// our name for that NAR where it is known; other documents are passed on as they are.
fn shown(inner: &Inner, path: &str, body: Bytes) -> Bytes {
    if !path.starts_with("debuginfo/") {
        return body;
    }
    let ours = |file_hash: &FileHash| inner.memory.file_names.recall(file_hash);
    rewritten(&body, |file_hash| ours(file_hash).map(|name| format!("../{name}"))).unwrap_or(body)
}

/// `{"archive":"../nar/<file hash>.nar.xz", ...}` with another archive; `None` when it is no such
/// document or its NAR is not known.
fn rewritten(body: &[u8], archive_of: impl Fn(&FileHash) -> Option<String>) -> Option<Bytes> {
    let mut document: Value = serde_json::from_slice(body).ok()?;
    let archive = document.get_mut("archive")?;
    let file = archive.as_str()?.rsplit('/').next()?;
    let file_hash = FileHash::from_nix32(file.split('.').next()?).ok()?;
    *archive = Value::String(archive_of(&file_hash)?);
    Some(document.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_of_debuginfo_becomes_our_name_where_it_is_known() {
        let hash = FileHash::from_bytes([5; 32]);
        let body = format!(r#"{{"archive":"../nar/{}.nar.xz","member":"m"}}"#, hash.to_nix32());
        let known = rewritten(body.as_bytes(), |found| {
            (*found == hash).then(|| "../nar/ours.nar.zst".to_owned())
        });
        let expected = r#"{"archive":"../nar/ours.nar.zst","member":"m"}"#;
        assert_eq!(known.as_deref(), Some(expected.as_bytes()));
        assert_eq!(rewritten(body.as_bytes(), |_| None), None);
        assert_eq!(rewritten(b"\x7fELF", |_| Some(String::new())), None);
    }
}
