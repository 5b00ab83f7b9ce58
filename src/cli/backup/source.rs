//! What waits for the push targets: asked of the running cache, or read from the store of one that
//! does not run.

use anyhow::Context;
use bytes::BytesMut;
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::cli::admin::{self, NotGiven, Reach};
use crate::config::Config;
use crate::daemon::Still;
use crate::nix::{NarHash, StorePathHash};
use crate::push::{DOCUMENT_LEN_MAX, Waiting, WaitingFor, WaitingPath, WaitingRow};

/// Rows that are asked for at once.
const ROWS_MAX: usize = 1000;

/// Who is asked.
pub(super) enum Source<'a> {
    /// The running cache of this configuration.
    Running(&'a Config),
    /// Its store, opened here.
    Own(Box<Still>, Waiting),
    /// There is no store yet.
    Nothing,
}

#[derive(Deserialize)]
struct RowSaid {
    seq: u64,
    path: Option<String>,
    document: Option<String>,
    lost: bool,
}

#[derive(Deserialize)]
struct PathSaid {
    narinfo: String,
    nar_hash: String,
    file_name: String,
    file_size: u64,
}

impl<'a> Source<'a> {
    pub(super) async fn open(config: &'a Config) -> anyhow::Result<Self> {
        match admin::ask(config, Reach::Own, Method::GET, "/waiting/targets").await {
            Ok(_) => return Ok(Self::Running(config)),
            Err(error) => match error.downcast_ref::<NotGiven>() {
                Some(NotGiven::NobodyRuns(_)) => {}
                Some(NotGiven::NotAllowed(_)) | None => return Err(error),
            },
        }
        let was_begun = config.store.marker.as_deref().is_some_and(std::path::Path::exists);
        if !was_begun {
            return Ok(Self::Nothing);
        }
        let still = Still::open(config).await?;
        let waiting = still.push.waiting();
        Ok(Self::Own(Box::new(still), waiting))
    }

    pub(super) async fn close(self) {
        match self {
            Self::Own(still, waiting) => {
                drop(waiting);
                still.close().await;
            }
            Self::Running(_) | Self::Nothing => {}
        }
    }

    pub(super) async fn targets(&self) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Nothing => Ok(Vec::new()),
            Self::Own(_, waiting) => Ok(waiting.targets()),
            Self::Running(config) => {
                let said = json(config, "/waiting/targets").await?;
                serde_json::from_value(said.get("targets").cloned().unwrap_or_default())
                    .context("read what the running cache says")
            }
        }
    }

    /// Rows behind `after`; none at the end.
    pub(super) async fn rows(&self, target: &str, after: u64) -> anyhow::Result<Vec<WaitingRow>> {
        match self {
            Self::Nothing => Ok(Vec::new()),
            Self::Own(_, waiting) => {
                waiting.rows(target, after, ROWS_MAX).await.context("read the queue")
            }
            Self::Running(config) => {
                let after = after.to_string();
                let query = query(&[("target", target), ("after", &after)]);
                let said = json(config, &format!("/waiting/rows?{query}")).await?;
                let rows: Vec<RowSaid> =
                    serde_json::from_value(said.get("rows").cloned().unwrap_or_default())
                        .context("read what the running cache says")?;
                rows.into_iter().map(row_said).collect()
            }
        }
    }

    pub(super) async fn path(&self, key: StorePathHash) -> anyhow::Result<Option<WaitingPath>> {
        match self {
            Self::Nothing => Ok(None),
            Self::Own(_, waiting) => {
                waiting.path(key).await.with_context(|| format!("read the narinfo of {key}"))
            }
            Self::Running(config) => {
                let said = json(config, &format!("/waiting/path?key={key}")).await?;
                let said: Option<PathSaid> =
                    serde_json::from_value(said.get("path").cloned().unwrap_or_default())
                        .context("read what the running cache says")?;
                said.map(path_said).transpose()
            }
        }
    }

    /// The stored file's bytes from `offset`; none at its end.
    pub(super) async fn piece(&self, nar_hash: NarHash, offset: u64) -> anyhow::Result<Bytes> {
        let piece = match self {
            Self::Nothing => None,
            Self::Own(_, waiting) => waiting.piece(nar_hash, offset).await.context("read a NAR")?,
            Self::Running(config) => {
                let (hash, offset) = (nar_hash.to_nix32(), offset.to_string());
                let query = query(&[("nar-hash", &hash), ("offset", &offset)]);
                bytes(config, &format!("/waiting/nar?{query}")).await?
            }
        };
        piece.context("a NAR was carried up and evicted while it was read: run the backup again")
    }

    pub(super) async fn document(&self, name: &str) -> anyhow::Result<Option<Bytes>> {
        let mut whole = BytesMut::new();
        loop {
            let piece = match self {
                Self::Nothing => None,
                Self::Own(_, waiting) => {
                    waiting.document(name, whole.len()).await.context("read a document")?
                }
                Self::Running(config) => {
                    let offset = whole.len().to_string();
                    let query = query(&[("name", name), ("offset", &offset)]);
                    bytes(config, &format!("/waiting/document?{query}")).await?
                }
            };
            match piece {
                None => return Ok(None),
                Some(piece) if piece.is_empty() => return Ok(Some(whole.freeze())),
                Some(piece) => whole.extend_from_slice(&piece),
            }
            anyhow::ensure!(whole.len() <= DOCUMENT_LEN_MAX, "{name} is too long");
        }
    }
}

fn query(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

async fn json(config: &Config, target: &str) -> anyhow::Result<Value> {
    admin::ask(config, Reach::Own, Method::GET, target).await
}

async fn bytes(config: &Config, target: &str) -> anyhow::Result<Option<Bytes>> {
    let (status, body) = admin::exchange(config, Reach::Own, Method::GET, target).await?;
    match status {
        StatusCode::OK => Ok(Some(body)),
        StatusCode::NOT_FOUND => Ok(None),
        _ => anyhow::bail!("the running cache cannot read its store now, its log says why"),
    }
}

fn row_said(said: RowSaid) -> anyhow::Result<WaitingRow> {
    let what = match (said.path, said.document) {
        (Some(path), _) => {
            WaitingFor::Path(StorePathHash::parse(&path).context("read a queue's row")?)
        }
        (None, Some(name)) => WaitingFor::Document(name),
        (None, None) => anyhow::bail!("the running cache queues what this version does not know"),
    };
    Ok(WaitingRow { seq: said.seq, what, lost: said.lost })
}

fn path_said(said: PathSaid) -> anyhow::Result<WaitingPath> {
    let nar_hash = NarHash::from_nix32(&said.nar_hash).context("read a path that waits")?;
    let PathSaid { narinfo, file_name, file_size, .. } = said;
    Ok(WaitingPath { narinfo, nar_hash, file_name, file_size })
}
