//! Small documents that are put: `.ls`, logs, realisations, debuginfo.

use bytes::Bytes;
use hyper::HeaderMap;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Push, Refusal, now_s};
use crate::nix::{CacheInfo, NarName, StorePathHash, UploadName};
use crate::units::ByteSize;
use crate::upstream::{Encoding, EncodingError};

/// Longest document, as it is taken from upstreams: the `.ls` of the biggest packages has some MiB,
/// logs have fewer.
pub const DOCUMENT_LEN_MAX: usize = 16 * 1024 * 1024;

/// How a small body is wrapped on its way: new Nix sends narinfos, listings and logs with a
/// `Content-Encoding` when it is told to.
#[derive(Debug, Clone, Copy)]
pub struct Wrapping(Option<Encoding>);

impl Wrapping {
    /// What the headers say; refused before the body when it is not known.
    pub fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        Encoding::of(headers).map(Self).map_err(|error| Refusal::Encoding(sentence(&error)))
    }

    /// The body as it was before, at most `len_max` bytes.
    pub async fn undo(self, body: Bytes, len_max: usize) -> Result<Bytes, Refusal> {
        let Some(encoding) = self.0 else { return Ok(body) };
        // A decoder may take milliseconds for a megabyte: not on the reactor.
        let undone = tokio::task::spawn_blocking(move || encoding.undo(&body, len_max)).await;
        match undone {
            Ok(Ok(Some(plain))) => Ok(plain),
            Ok(Ok(None)) => {
                let max = ByteSize(u64::try_from(len_max).unwrap_or(u64::MAX));
                Err(Refusal::TooLong { max, hint: "" })
            }
            Ok(Err(error)) => Err(Refusal::Encoding(sentence(&error))),
            Err(_) => Err(Refusal::Busy),
        }
    }
}

/// The error with its cause, for the one line that the client shows.
fn sentence(error: &EncodingError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What a document must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Any text.
    Text,
    /// JSON of any kind.
    Json,
    /// `{"archive":"../nar/<file>","member":"..."}`
    DebugInfo,
}

/// Where the debug information of a build id is.
#[derive(Deserialize)]
struct DebugInfo {
    archive: String,
    #[serde(rename = "member")]
    _member: String,
}

impl Push {
    /// `nix-cache-info` that is put: nothing to keep, but it must be for the same store.
    pub fn cache_info(&self, text: &[u8]) -> Result<(), Refusal> {
        let info = CacheInfo::parse(text).map_err(|_| Refusal::CacheInfo)?;
        let ours = &self.inner.config.store_dir;
        if info.store_dir == *ours { Ok(()) } else { Err(Refusal::StoreDir(ours.clone())) }
    }

    /// Takes the `.ls` of a path. Where the NAR is held there is one of our own.
    pub async fn listing(&self, key: StorePathHash, body: Bytes) -> Result<(), Refusal> {
        self.check_open()?;
        let store = &self.inner.store;
        if let Some((stored, Some(_))) = store.lookup(key).await?
            && store.listing(stored.narinfo.nar_hash).await?.is_some()
        {
            return Ok(());
        }
        self.document(&format!("{key}.ls"), Shape::Json, body).await
    }

    /// Takes a document by its path. It is durable and queued when this returns.
    pub async fn document(&self, name: &str, shape: Shape, body: Bytes) -> Result<(), Refusal> {
        self.check_open()?;
        // Reading JSON may take milliseconds for a megabyte: not on the reactor.
        let checked = tokio::task::spawn_blocking(move || check(shape, &body).map(|()| body)).await;
        let body = checked.map_err(|_| Refusal::Busy)??;
        let inner = &self.inner;
        inner.store.accept_document(name, body, inner.target_urls(), now_s()).await?;
        inner.cache.document_came(name);
        self.tell_queued();
        Ok(())
    }
}

fn check(shape: Shape, body: &[u8]) -> Result<(), Refusal> {
    match shape {
        Shape::Text => Ok(()),
        Shape::Json => serde_json::from_slice::<IgnoredAny>(body)
            .map(drop)
            .map_err(|_| Refusal::Document("JSON document")),
        Shape::DebugInfo => {
            const WHAT: &str =
                "debuginfo redirect: {\"archive\":\"../nar/...\",\"member\":\"...\"}";
            let wrong = |_| Refusal::Document(WHAT);
            let found: DebugInfo = serde_json::from_slice(body).map_err(wrong)?;
            let file = found.archive.strip_prefix("../nar/").unwrap_or_default();
            if UploadName::parse(file).is_none() && NarName::parse(file).is_none() {
                return Err(Refusal::Document(WHAT));
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::CONTENT_ENCODING;

    use super::*;

    #[test]
    fn documents_are_what_their_names_say() {
        let file = "0s266z35rvqgdz0nisk38kb5xbivg3s0z6fs9p93x8rbgfaj8qkp.nar.xz";
        let redirect = format!(r#"{{"archive":"../nar/{file}","member":"lib/x.debug"}}"#);
        for (shape, body, fits) in [
            (Shape::Text, "anything", true),
            (Shape::Json, "{\"a\":[1]}", true),
            (Shape::Json, "{\"a\":[1]", false),
            (Shape::Json, "", false),
            (Shape::DebugInfo, &redirect, true),
            (Shape::DebugInfo, &redirect.replace("../nar/", "nar/"), false),
            (Shape::DebugInfo, &redirect.replace("../nar/", "../nar/../"), false),
            (Shape::DebugInfo, &redirect.replace("member", "x"), false),
            (Shape::DebugInfo, "[]", false),
        ] {
            assert_eq!(check(shape, body.as_bytes()).is_ok(), fits, "{shape:?} {body}");
        }
    }

    #[tokio::test]
    async fn what_is_wrapped_is_undone_within_its_bound() {
        let mut headers = HeaderMap::new();
        assert!(Wrapping::of(&headers).unwrap().0.is_none());
        headers.insert(CONTENT_ENCODING, "zstd".parse().unwrap());
        let wrapping = Wrapping::of(&headers).unwrap();
        let body = Bytes::from(zstd::encode_all(&[b'a'; 1000][..], 3).unwrap());
        assert_eq!(wrapping.undo(body.clone(), 1000).await.unwrap().len(), 1000);
        let long = wrapping.undo(body, 999).await;
        assert!(matches!(long, Err(Refusal::TooLong { .. })), "{long:?}");
        let wrong = wrapping.undo(Bytes::from_static(b"x"), 999).await;
        assert!(matches!(wrong, Err(Refusal::Encoding(_))), "{wrong:?}");
        headers.insert(CONTENT_ENCODING, "lzip".parse().unwrap());
        assert!(matches!(Wrapping::of(&headers), Err(Refusal::Encoding(_))));
    }
}
