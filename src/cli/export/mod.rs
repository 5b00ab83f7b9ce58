//! `export`: writes paths of a running cache, and all that they refer to, into a folder that is a
//! binary cache itself. It asks as a client does, and compares what it gets with its hash.

mod closure;
mod folder;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::progress::{At, Progress};
use super::{ConfigArgs, Ended, out, paths, runtime, status};
use crate::metrics::Metrics;
use crate::nix::{Compression, FileHash, NarHash, NarInfo, StoreDir};
use crate::units::ByteSize;
use crate::upstream::{self, Upstream};
use closure::Closure;
use folder::{Folder, Making};

/// How long the next bytes of a NAR may take: a miss at the cache is a fetch from its upstream.
const BYTES_WAIT: Duration = Duration::from_mins(2);

/// How often a NAR is begun that breaks off.
const TRIES_MAX: usize = 3;

/// Paths that are named on a terminal.
const NAMED_MAX: usize = 20;

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Store paths, links to them such as ./result, or hashes; - reads lines of stdin. All that they
    /// refer to goes with them.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// The folder. It is made when it is missing, and goes on being a cache when it is one.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// The cache; without it the one that the configuration describes.
    #[arg(long, value_name = "http://HOST[:PORT]")]
    url: Option<String>,
    /// Print what came of it as JSON.
    #[arg(long)]
    json: bool,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry export ./result --to /mnt/stick
  nix path-info -r nixpkgs#hello | snowberry export - --to /mnt/stick --url http://snowberry.local
  nix copy --from file:///mnt/stick ./result
      on the machine that has no network; it must trust the keys that signed the paths
  snowberry import /mnt/stick
      into another cache

It may be interrupted: given again it copies only what is not there whole. A path lies there only with
all that it refers to.

Exit codes: 0 all of it is there, 1 something was not to be had and is named.";

/// What became of it.
#[derive(Debug, Default)]
struct Exported {
    copied: u64,
    copied_bytes: u64,
    there: u64,
    /// Not to be had, each with the reason.
    left: Vec<(String, String)>,
}

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    let authority = match &args.url {
        Some(url) => status::authority(url)?,
        None => status::of_config(&config)?,
    };
    let named = paths::named(&args.paths, &config.store_dir)?;
    anyhow::ensure!(!named.is_empty(), "no path is named");
    let source = source(&format!("http://{authority}"), &config.store_dir)?;
    let mut progress = Progress::new(args.quiet);
    let exported = runtime::alone(async {
        let info = source.cache_info().await;
        info.with_context(|| {
            format!("ask http://{authority} (is `snowberry serve` running there?)")
        })?;
        let closure = closure::walk(&source, named, &config.store_dir, &mut progress).await?;
        let folder = Folder::open(&args.to, &config.store_dir).await?;
        let exported = copy_all(&source, &folder, closure, &mut progress).await;
        exported.with_context(|| format!("write to {}", args.to.display()))
    })??;
    drop(progress);
    tell(&exported, args.json)?;
    Ok(if exported.left.is_empty() { Ended::Well } else { Ended::Badly })
}

/// The cache as a client sees it. What it says is compared with its hashes, and signatures are for
/// whoever reads the folder.
fn source(url: &str, store_dir: &StoreDir) -> anyhow::Result<Upstream> {
    let config = upstream::Config {
        url: url.to_owned(),
        trusted_public_keys: Vec::new(),
        unsigned: true,
        ca_file: None,
        credentials_file: None,
        netrc_file: None,
        headers_file: None,
        push: false,
        limit: None,
    };
    Ok(Upstream::new(&config, store_dir, &Metrics::new())?)
}

async fn copy_all(
    source: &Upstream,
    folder: &Folder,
    closure: Closure,
    progress: &mut Progress,
) -> anyhow::Result<Exported> {
    let mut exported = Exported { left: closure.left, ..Exported::default() };
    let len = |narinfo: &NarInfo| narinfo.file_size.unwrap_or(narinfo.nar_size);
    let of_bytes: u64 = closure.paths.iter().map(len).sum();
    let of = u64::try_from(closure.paths.len()).unwrap_or(u64::MAX);
    let (mut done, mut done_bytes) = (0, 0);
    // Two paths of one NAR share its file.
    let mut files = HashMap::new();
    let mut lacking = HashSet::new();
    for narinfo in &closure.paths {
        let what = "copying".to_owned();
        let mut tell = |more: u64| {
            let bytes = Some((done_bytes + more, Some(of_bytes.max(done_bytes + more))));
            progress.at(&At { what: what.clone(), bytes, things: Some((done, Some(of))) });
        };
        tell(0);
        let name = || folder.full_path(narinfo);
        let mut references = narinfo.references.iter();
        let lacks = references.find(|reference| lacking.contains(&reference.hash()));
        let copied = match lacks {
            Some(lacks) => Copied::Not(format!("it refers to {lacks}, which is not there")),
            None => {
                copy(source, folder, narinfo, &mut files, &mut tell).await.with_context(name)?
            }
        };
        match copied {
            Copied::Now(bytes) => {
                exported.copied += 1;
                exported.copied_bytes += bytes;
            }
            Copied::Before => exported.there += 1,
            Copied::Not(why) => {
                lacking.insert(narinfo.store_path.hash());
                exported.left.push((name(), why));
            }
        }
        done += 1;
        done_bytes += len(narinfo);
    }
    Ok(exported)
}

/// What became of one path.
enum Copied {
    Now(u64),
    Before,
    Not(String),
}

async fn copy(
    source: &Upstream,
    folder: &Folder,
    narinfo: &NarInfo,
    files: &mut HashMap<NarHash, (FileHash, u64)>,
    tell: &mut impl FnMut(u64),
) -> anyhow::Result<Copied> {
    if let Some(there) = folder.narinfo(narinfo.store_path.hash())? {
        if there.nar_hash != narinfo.nar_hash {
            let why = "the folder has it with another NAR, which is left as it is";
            return Ok(Copied::Not(why.to_owned()));
        }
        if folder.has_nar(&there)? {
            let mut merged = there.clone();
            merged.signatures.extend(narinfo.signatures.iter().cloned());
            merged.signatures.sort_unstable();
            merged.signatures.dedup();
            if merged.signatures.len() != there.signatures.len() {
                folder.put_narinfo(&merged)?;
            }
            return Ok(Copied::Before);
        }
    }
    let known = files.get(&narinfo.nar_hash).copied();
    let known = match (known, narinfo.file_hash.zip(narinfo.file_size)) {
        (Some(known), _) => Some(known),
        (None, Some(said)) if folder.has_nar(&placed(narinfo, said))? => Some(said),
        (None, _) => None,
    };
    let (file, copied) = match known {
        Some(file) => (file, 0),
        None => match fetch(source, folder, narinfo, tell).await? {
            Ok(file) => (file, file.1),
            Err(error) => return Ok(Copied::Not(format!("{error:#}"))),
        },
    };
    files.insert(narinfo.nar_hash, file);
    folder.put_narinfo(&placed(narinfo, file))?;
    Ok(Copied::Now(copied))
}

/// The narinfo with the file that lies in the folder.
fn placed(narinfo: &NarInfo, (file_hash, file_size): (FileHash, u64)) -> NarInfo {
    NarInfo {
        url: folder::nar_name(file_hash),
        compression: Compression::Zstd,
        file_hash: Some(file_hash),
        file_size: Some(file_size),
        ..narinfo.clone()
    }
}

/// Copies the NAR file, and says what it is. The outer error is the folder's, the inner one the cache's.
async fn fetch(
    source: &Upstream,
    folder: &Folder,
    narinfo: &NarInfo,
    tell: &mut impl FnMut(u64),
) -> anyhow::Result<anyhow::Result<(FileHash, u64)>> {
    anyhow::ensure!(
        narinfo.compression == Compression::Zstd,
        "its NAR is packed as {}: only a snowberry can be exported from",
        narinfo.compression.extension()
    );
    let mut tries = 1;
    loop {
        let mut making = folder.begin()?;
        match receive(source, narinfo, &mut making, tell).await? {
            Ok(()) => return making.finish(narinfo).map(Ok),
            Err(error) if tries >= TRIES_MAX => {
                return Ok(Err(error.context("its NAR could not be fetched")));
            }
            Err(_) => {
                tries += 1;
                tokio::time::sleep(closure::REST).await;
            }
        }
    }
}

/// The same of one try; the cache's error may be another one the next time.
async fn receive(
    source: &Upstream,
    narinfo: &NarInfo,
    making: &mut Making,
    tell: &mut impl FnMut(u64),
) -> anyhow::Result<anyhow::Result<()>> {
    let begun = tokio::time::timeout(BYTES_WAIT, source.nar(&narinfo.url, None)).await;
    let mut body = match begun {
        Ok(Ok(Some(body))) => body,
        Ok(Ok(None)) => return Ok(Err(anyhow::anyhow!("the cache has it not any more"))),
        Ok(Err(error)) => return Ok(Err(error.into())),
        Err(error) => return Ok(Err(error.into())),
    };
    let mut len = 0;
    loop {
        match tokio::time::timeout(BYTES_WAIT, body.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                making.write(&bytes)?;
                len += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                tell(len);
            }
            Ok(Ok(None)) => return Ok(Ok(())),
            Ok(Err(error)) => return Ok(Err(error.into())),
            Err(error) => return Ok(Err(error.into())),
        }
    }
}

fn tell(exported: &Exported, as_json: bool) -> anyhow::Result<()> {
    let Exported { copied, copied_bytes, there, left } = exported;
    if as_json {
        let left: Vec<_> =
            left.iter().map(|(path, why)| json!({"path": path, "why": why})).collect();
        let said = json!({
            "copied": copied, "copied_bytes": copied_bytes, "there": there, "left": left,
        });
        return out::line(&said.to_string());
    }
    let bytes = ByteSize(*copied_bytes);
    out::line(&format!("{copied} paths copied, {bytes}; {there} were there"))?;
    if !left.is_empty() {
        out::line(&format!("{} not copied:", left.len()))?;
    }
    for (path, why) in left.iter().take(NAMED_MAX) {
        out::line(&format!("  {path}: {why}"))?;
    }
    Ok(())
}
