//! `push PATH`: `nix copy` with what it takes to be believed, and a look afterwards.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};

use crate::cli::paths::store_path;
use crate::cli::{Ended, exchange, out, runtime};
use crate::nix::{StoreDir, StorePath};
use crate::spool::{Target, nix_copy, read_token};

/// The cache of this machine.
pub(super) const DEFAULT_TO: &str = "http://127.0.0.1:8500";

/// How long the cache may take to say that it has a path: as long as any narinfo, and a slow line.
const CHECK_WAIT: Duration = Duration::from_secs(15);

pub(super) fn run(
    paths: &[PathBuf],
    to: &str,
    token_file: Option<&Path>,
    store_dir: &StoreDir,
) -> anyhow::Result<Ended> {
    let to: Target = to.parse()?;
    let paths: Vec<StorePath> =
        paths.iter().map(|path| store_path(path, store_dir)).collect::<Result<_, _>>()?;
    let token = token_file.map(read_token).transpose()?;
    let full_paths = paths.iter().map(|path| store_dir.join(path));
    let mut nix = nix_copy(&to, token.as_deref(), full_paths)?;
    let ended = nix.command.status().context("run nix")?;
    drop(nix);
    anyhow::ensure!(ended.success(), "nix copy did not succeed ({ended}); it said why above");
    if !to.is_plain() {
        out::note("not looked up afterwards: that is done over plain http only");
        return Ok(Ended::Well);
    }
    let runtime = runtime::one_thread()?;
    for path in &paths {
        let check = check(&to, path, token.as_deref());
        let status =
            runtime::wait(&runtime, async { tokio::time::timeout(CHECK_WAIT, check).await })
                .with_context(|| format!("{to} did not answer within {CHECK_WAIT:?}"))
                .and_then(|answer| answer)
                .with_context(|| format!("ask {to} whether it has {}", store_dir.join(path)))?;
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if token.is_none() => {
                out::note("not looked up afterwards: that needs --token-file");
                break;
            }
            _ => anyhow::bail!(
                "nix copy succeeded, but the cache does not have {} ({status}): its log says why",
                store_dir.join(path)
            ),
        }
    }
    Ok(Ended::Well)
}

async fn check(to: &Target, path: &StorePath, token: Option<&str>) -> anyhow::Result<StatusCode> {
    let authority = to.authority();
    let mut request = Request::get(format!("{}/{}.narinfo", to.path(), path.hash()))
        .header(header::HOST, &authority);
    if let Some(token) = token {
        let basic = format!("Basic {}", STANDARD.encode(format!("snowberry:{token}")));
        request = request.header(header::AUTHORIZATION, basic);
    }
    let request = request.body(Full::<Bytes>::default()).context("ask")?;
    let stream = exchange::connect(&authority).await?;
    exchange::over(stream, request).await.map(|(status, _)| status)
}
