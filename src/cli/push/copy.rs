//! `push PATH`: `nix copy` with what it takes to be believed, and a look afterwards.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use url::Url;

use crate::cli::{Ended, exchange, out};
use crate::nix::{StoreDir, StorePath};

/// The cache of this machine.
pub(super) const DEFAULT_TO: &str = "http://127.0.0.1:8500";

/// A token has 42 characters; what is longer is another file.
const TOKEN_FILE_LEN_MAX: u64 = 4096;

/// How long the cache may take to say that it has a path: as long as any narinfo, and a slow line.
const CHECK_WAIT: Duration = Duration::from_secs(15);

pub(super) fn run(
    paths: &[PathBuf],
    to: &str,
    token_file: Option<&Path>,
    store_dir: &StoreDir,
) -> anyhow::Result<Ended> {
    let to = target(to)?;
    let paths: Vec<StorePath> =
        paths.iter().map(|path| store_path(path, store_dir)).collect::<Result<_, _>>()?;
    let token = token_file.map(read_token).transpose()?;
    // Open until Nix has ended.
    let netrc = token.as_deref().map(|token| netrc(&to, token)).transpose()?;
    let mut nix = Command::new("nix");
    nix.args(["copy", "--extra-experimental-features", "nix-command"]);
    // What Nix remembers of earlier pushes it would believe without asking.
    nix.args(["--option", "narinfo-cache-positive-ttl", "0"]);
    nix.args(["--option", "narinfo-cache-negative-ttl", "0"]);
    if let Some(netrc) = &netrc {
        let path = format!("/proc/{}/fd/{}", std::process::id(), netrc.as_raw_fd());
        nix.args(["--option", "netrc-file", &path]);
    }
    nix.arg("--to").arg(format!("{to}?compression=zstd"));
    nix.args(paths.iter().map(|path| store_dir.join(path)));
    let ended = nix.status().context("run nix (is it on the PATH?)")?;
    drop(netrc);
    anyhow::ensure!(ended.success(), "nix copy did not succeed ({ended}); it said why above");
    if to.scheme() != "http" {
        out::note("not looked up afterwards: that is done over plain http only");
        return Ok(Ended::Well);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    for path in &paths {
        let check = check(&to, path, token.as_deref());
        let status = runtime
            .block_on(async { tokio::time::timeout(CHECK_WAIT, check).await })
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

/// The `/push` side of a cache, where no upstream answers for it.
fn target(url: &str) -> anyhow::Result<Url> {
    let mut target = Url::parse(url).with_context(|| format!("{url:?} is no URL"))?;
    anyhow::ensure!(
        ["http", "https"].contains(&target.scheme()) && target.has_host(),
        "a cache is pushed to over http:// or https://; `nix copy` itself writes to the others"
    );
    anyhow::ensure!(
        target.username().is_empty() && target.password().is_none(),
        "a token in the URL would be seen by every user of this machine: give --token-file"
    );
    target.set_query(None);
    target.set_fragment(None);
    let path = target.path().trim_end_matches('/');
    let path = if path.ends_with("/push") { path.to_owned() } else { format!("{path}/push") };
    target.set_path(&path);
    Ok(target)
}

/// The store path that a path is, or lies in, or leads to.
fn store_path(path: &Path, store_dir: &StoreDir) -> anyhow::Result<StorePath> {
    let real = path.canonicalize().with_context(|| format!("look for {}", path.display()))?;
    let inside = real.strip_prefix(store_dir.as_str()).ok();
    let top = inside.and_then(|inside| inside.components().next());
    let name = top.and_then(|top| top.as_os_str().to_str());
    let name = name.with_context(|| format!("{} is not in {store_dir}", path.display()))?;
    StorePath::parse(name).with_context(|| format!("{} is no store path", path.display()))
}

fn read_token(file: &Path) -> anyhow::Result<String> {
    let act = || format!("read the token in {}", file.display());
    let mut text = String::new();
    let source = File::open(file).with_context(act)?;
    source.take(TOKEN_FILE_LEN_MAX).read_to_string(&mut text).with_context(act)?;
    let token = text.trim();
    anyhow::ensure!(
        !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c.is_control()),
        "{} does not hold one token, as `snowberry token add` prints it",
        file.display()
    );
    Ok(token.to_owned())
}

/// A netrc that lies on no disk, has no name, and is gone with this process, however it ends; only
/// this user's processes can read it. On the command line everybody could.
fn netrc(to: &Url, token: &str) -> anyhow::Result<File> {
    let host = to.host_str().context("the URL names no host")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let memory = rustix::fs::memfd_create("netrc", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = File::from(memory.context("keep the token for Nix")?);
    write!(file, "machine {host}\nlogin snowberry\npassword {token}\n")
        .context("keep the token for Nix")?;
    Ok(file)
}

async fn check(to: &Url, path: &StorePath, token: Option<&str>) -> anyhow::Result<StatusCode> {
    let host = to.host_str().context("the URL names no host")?;
    let authority = match to.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let mut request = Request::get(format!("{}/{}.narinfo", to.path(), path.hash()))
        .header(header::HOST, &authority);
    if let Some(token) = token {
        let basic = format!("Basic {}", STANDARD.encode(format!("snowberry:{token}")));
        request = request.header(header::AUTHORIZATION, basic);
    }
    let request = request.body(Empty::<Bytes>::new()).context("ask")?;
    let stream = exchange::connect(&authority).await?;
    exchange::over(stream, request).await.map(|(status, _)| status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_written_to_below_push_and_its_url_shows_no_token() {
        let check = |url: &str, wanted: &str| assert_eq!(target(url).unwrap().as_str(), wanted);
        check("http://127.0.0.1:8500", "http://127.0.0.1:8500/push");
        check("http://snowberry.local/", "http://snowberry.local/push");
        check("https://h.example/push/?compression=xz", "https://h.example/push");
        check("https://h.example/cache", "https://h.example/cache/push");
        for wrong in ["s3://nix-cache", "file:///x", "h.example", "http://me:token@h.example"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_link_leads_to_its_store_path() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let store_dir = StoreDir::parse(folder.to_str().unwrap()).unwrap();
        let name = "9d82wl65gr2phigksgzzimbdf176rx4c-wire-a-1.0";
        std::fs::create_dir_all(folder.join(name).join("bin")).unwrap();
        std::os::unix::fs::symlink(folder.join(name), folder.join("result")).unwrap();
        for path in [folder.join("result"), folder.join(name).join("bin")] {
            assert_eq!(store_path(&path, &store_dir).unwrap().base_name(), name);
        }
        assert!(store_path(&folder, &store_dir).is_err());
        assert!(store_path(Path::new("/"), &store_dir).is_err());
        assert!(store_path(&folder.join("missing"), &store_dir).is_err());
    }

    #[test]
    fn the_token_is_for_the_host_and_can_be_read_through_proc() {
        let netrc = netrc(&Url::parse("http://[::1]:8500/push").unwrap(), "secret").unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), netrc.as_raw_fd());
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text, "machine ::1\nlogin snowberry\npassword secret\n");
    }
}
