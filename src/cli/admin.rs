//! Commands that a running cache is given over its admin socket.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use serde_json::Value;
use tokio::net::UnixStream;

use super::{exchange, runtime};
use crate::config::{self, Config};

/// A command may strike many rows off a slow card; the cache itself cuts it after as long.
const ANSWER_WAIT: Duration = Duration::from_mins(5);

/// Why a command was not given: a caller may do without a running cache.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotGiven {
    /// Nobody listens there.
    #[error(
        "no snowberry answers at {} (is `snowberry serve` running, with the same configuration?)",
        .0.display()
    )]
    NobodyRuns(PathBuf),
    /// The socket is for others.
    #[error(
        "this user may not use {}: run the command as root, or as its owner or a member of its \
         group (`ls -l` shows them)",
        .0.display()
    )]
    NotAllowed(PathBuf),
}

/// Whose cache is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The one of this configuration, and no other.
    Own,
    /// The machine's, where this user has none.
    Machine,
}

/// Gives a command and returns the answer. What the cache says against it is an error, and so is
/// [`NotGiven`].
pub(super) fn command(
    config: &Config,
    reach: Reach,
    method: Method,
    target: &str,
) -> anyhow::Result<Value> {
    let runtime = runtime::one_thread()?;
    runtime::wait(&runtime, ask(config, reach, method, target))
}

/// The same, where a runtime is.
pub(super) async fn ask(
    config: &Config,
    reach: Reach,
    method: Method,
    target: &str,
) -> anyhow::Result<Value> {
    let (status, body) = exchange(config, reach, method, target).await?;
    let value: Value = serde_json::from_slice(&body)
        .with_context(|| format!("the running cache answered {status}: is it an older version?"))?;
    match value.get("error").and_then(Value::as_str) {
        Some(sentence) => Err(anyhow::anyhow!("{sentence}")),
        None => Ok(value),
    }
}

/// The answer as it is.
pub(super) async fn exchange(
    config: &Config,
    reach: Reach,
    method: Method,
    target: &str,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let given = async {
        let stream = connect(config, reach).await?;
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "localhost")
            .body(Full::<Bytes>::default())
            .context("ask")?;
        exchange::over(stream, request).await.context("ask the running cache")
    };
    let answered = tokio::time::timeout(ANSWER_WAIT, given).await;
    answered.context("wait for the answer of the cache")?
}

/// Gives a command that takes long, with what it is sent along: each word of how far it is goes to
/// `told`, how it ended is returned. What the cache says against it is an error.
pub(super) async fn follow(
    config: &Config,
    reach: Reach,
    (target, sent): (&str, Bytes),
    mut told: impl FnMut(&Value),
) -> anyhow::Result<Value> {
    let stream = connect(config, reach).await?;
    let request = Request::post(target)
        .header(header::HOST, "localhost")
        .body(Full::new(sent))
        .context("ask")?;
    let mut last = None;
    let heard = |line: &[u8]| {
        let Ok(mut said) = serde_json::from_slice::<Value>(line) else {
            return ControlFlow::Continue(());
        };
        if let Some(progress) = said.get_mut("progress") {
            told(progress);
            ControlFlow::Continue(())
        } else {
            last = Some(said);
            ControlFlow::Break(())
        }
    };
    let (status, _) =
        exchange::lines(stream, request, heard).await.context("ask the running cache")?;
    let Some(mut last) = last else {
        anyhow::ensure!(
            status.is_success(),
            "the running cache answered {status}: is it an older version?"
        );
        anyhow::bail!("the running cache ended before it was done: give the command again");
    };
    if let Some(sentence) = last.get("error").and_then(Value::as_str) {
        anyhow::bail!("{sentence}");
    }
    Ok(last.get_mut("done").map(Value::take).unwrap_or(last))
}

async fn connect(config: &Config, reach: Reach) -> Result<UnixStream, NotGiven> {
    let path = &config.admin.socket;
    let system = Path::new(config::SYSTEM_ADMIN_SOCKET);
    let second = match reach {
        Reach::Machine if !config.admin.is_configured && path != system => Some(system),
        Reach::Machine | Reach::Own => None,
    };
    match (to(path).await, second) {
        (Err(NotGiven::NobodyRuns(first)), Some(system)) => match to(system).await {
            Err(NotGiven::NobodyRuns(_)) => Err(NotGiven::NobodyRuns(first)),
            other => other,
        },
        (other, _) => other,
    }
}

async fn to(path: &Path) -> Result<UnixStream, NotGiven> {
    UnixStream::connect(path).await.map_err(|error| {
        if error.kind() == io::ErrorKind::PermissionDenied {
            NotGiven::NotAllowed(path.to_path_buf())
        } else {
            NotGiven::NobodyRuns(path.to_path_buf())
        }
    })
}
