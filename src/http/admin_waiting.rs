//! The commands of a backup on the admin socket: what waits for the push targets, in answers that are
//! short each, so that a card that stands still costs one question and not the whole.
//!
//! `GET /waiting/targets`, `/waiting/rows?target=URL&after=SEQ`, `/waiting/path?key=HASH`,
//! `/waiting/nar?nar-hash=HASH&offset=BYTES`,
//! `/waiting/document?name=NAME&offset=BYTES`.

use std::error::Error;

use serde_json::{Value, json};
use tracing::warn;

use super::reply::{Media, Reply};
use crate::nix::{NarHash, StorePathHash};
use crate::push::{Waiting, WaitingFor, WaitingPath, WaitingRow};

/// Rows of one answer: 200 bytes each, of 1 MiB that are taken.
const ROWS_MAX: usize = 1000;

/// Answers one of them; `path` is what follows `/waiting/`.
pub(super) async fn answer(waiting: &Waiting, path: &str, query: &str) -> Reply {
    let find = |wanted: &str| {
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
    };
    let answered = match path {
        "targets" => Ok(shown(&json!({"targets": waiting.targets()}))),
        "rows" => {
            let after = find("after").and_then(|after| after.parse().ok()).unwrap_or_default();
            let rows = waiting.rows(&find("target").unwrap_or_default(), after, ROWS_MAX).await;
            rows.map(|rows| shown(&json!({"rows": rows.iter().map(row).collect::<Vec<_>>()})))
        }
        "path" => match find("key").and_then(|key| StorePathHash::parse(&key).ok()) {
            Some(key) => waiting.path(key).await.map(|found| shown(&path_of(found.as_ref()))),
            None => return Reply::Absent,
        },
        "nar" => {
            let nar_hash = find("nar-hash").and_then(|hash| NarHash::from_nix32(&hash).ok());
            let offset = find("offset").and_then(|offset| offset.parse().ok());
            match (nar_hash, offset) {
                (Some(nar_hash), Some(offset)) => waiting.piece(nar_hash, offset).await.map(octets),
                _ => return Reply::Absent,
            }
        }
        "document" => {
            let offset = find("offset").and_then(|it| it.parse().ok()).unwrap_or_default();
            waiting.document(&find("name").unwrap_or_default(), offset).await.map(octets)
        }
        _ => return Reply::Absent,
    };
    answered.unwrap_or_else(|error| unread(&error))
}

fn unread(error: &(dyn Error + 'static)) -> Reply {
    warn!(error, "what waits cannot be read for a backup");
    let sentence = "the store cannot be read now, its log says why";
    Reply::Undone(json!({"error": sentence}).to_string().into())
}

fn shown(value: &Value) -> Reply {
    Reply::Shown(Media::Json, value.to_string().into())
}

fn octets(found: Option<bytes::Bytes>) -> Reply {
    found.map_or(Reply::Absent, |bytes| Reply::Shown(Media::Octets, bytes))
}

fn row(row: &WaitingRow) -> Value {
    let (path, document) = match &row.what {
        WaitingFor::Path(key) => (Some(key.to_string()), None),
        WaitingFor::Document(name) => (None, Some(name.as_str())),
    };
    json!({"seq": row.seq, "path": path, "document": document, "lost": row.lost})
}

fn path_of(found: Option<&WaitingPath>) -> Value {
    match found {
        None => json!({"path": null}),
        Some(found) => json!({"path": {
            "narinfo": found.narinfo,
            "nar_hash": found.nar_hash.to_nix32(),
            "file_name": found.file_name,
            "file_size": found.file_size,
        }}),
    }
}
