//! `demo`: the whole story on one machine, without a network and without Nix: a cache in front of a
//! small upstream, a miss, a hit, an upstream that is gone, a push, and the page.

mod made;

use std::fs;
use std::io::IsTerminal as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Ended, exchange, out, runtime};
use crate::config::{self, Surroundings};
use crate::daemon::{self, Given};
use crate::nix::{NarHash, NarInfo, SecretKey, StoreDir};
use crate::push::tokens::Tokens;
use crate::units::ByteSize;

use made::Made;

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry demo
      the whole story in a few seconds; then the page stays open until Enter
  snowberry demo --quick
      without waiting for anybody

Needs no network, no Nix, no rights and no configuration: everything is in a folder of its own below
$TMPDIR, which is gone afterwards, and listens on this machine only.";

/// The paths of the upstream: name and length. Small enough for any machine, large enough that a
/// miss can be told from a hit.
const PATHS: [(&str, usize); 6] = [
    ("demo-libc-1.0", 1_500_000),
    ("demo-zlib-1.0", 120_000),
    ("demo-openssl-1.0", 900_000),
    ("demo-curl-1.0", 400_000),
    ("demo-git-1.0", 1_200_000),
    ("demo-desktop-1.0", 30_000),
];

/// What the house builds.
const BUILT: (&str, usize) = ("demo-built-here-1.0", 300_000);

/// From the start to the first answer; from the push to the bucket. Both take milliseconds, unless the
/// disk stands still.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How often it is looked whether the bucket has it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// End at once, without leaving the page open.
    #[arg(long)]
    quick: bool,
}

pub(super) fn run(args: &DemoArgs) -> anyhow::Result<Ended> {
    let runtime = runtime::started(&mut Builder::new_multi_thread())?;
    let folder = Folder::make()?;
    let told = runtime::wait(&runtime, async {
        tokio::select! {
            told = tell(&folder.0, args.quick) => told,
            interrupted = tokio::signal::ctrl_c() => interrupted.context("listen for SIGINT"),
        }
    });
    // A codec that still runs must not hold up the end.
    runtime.shutdown_background();
    told.map(|()| Ended::Well)
}

/// A folder that goes with us.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("snowberry-demo-{}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            out::note(&format!("{} stays: {error}", self.0.display()));
        }
    }
}

/// The cache of the demonstration, as its clients see it.
struct Shop {
    authority: String,
}

async fn tell(folder: &Path, is_quick: bool) -> anyhow::Result<()> {
    let (upstream, bucket) = (folder.join("upstream"), folder.join("bucket"));
    let key = new_key()?;
    let paths = closure()?;
    let bytes: usize = paths.iter().map(|made| made.nar.len()).sum();
    made::cache(&upstream, &paths, &key)?;
    made::cache(&bucket, &[], &key)?;
    say(
        "upstream",
        &format!(
            "a folder with {} signed store paths, {}, where you would have cache.nixos.org",
            paths.len(),
            size(bytes)
        ),
    )?;
    let config = config(folder, &key)?;
    let tokens = Tokens::new(config.push.tokens_file.clone());
    let stop = CancellationToken::new();
    let (listening, address) = oneshot::channel();
    let serving = daemon::run(config, Given::default(), stop.clone(), |addresses| {
        drop(listening.send(addresses));
    });
    let story = async {
        let address =
            tokio::time::timeout(WAIT_MAX, address).await.context("wait for the start")?;
        let address = address.context("start")?.first().copied().context("listen")?;
        let shop = Shop { authority: address.to_string() };
        shop.story(&paths, (&upstream, &bucket), &tokens).await?;
        if !is_quick {
            stay(&shop.authority).await?;
        }
        stop.cancel();
        anyhow::Ok(())
    };
    tokio::try_join!(serving, story).map(|_| ())
}

impl Shop {
    async fn story(
        &self,
        paths: &[Made],
        (upstream, bucket): (&Path, &Path),
        tokens: &Tokens,
    ) -> anyhow::Result<()> {
        let authority = &self.authority;
        say("cache", &format!("listens at http://{authority}, with an empty store"))?;
        let began = Instant::now();
        let bytes = self.fetch(paths).await?;
        say(
            "miss",
            &format!(
                "a client takes all of it through the cache, which fetches, checks and keeps it: {} in {}",
                size(bytes),
                millis(began)
            ),
        )?;
        let began = Instant::now();
        let bytes = self.fetch(paths).await?;
        say(
            "hit",
            &format!(
                "the next one gets it from the cache's own disk: {} in {}",
                size(bytes),
                millis(began)
            ),
        )?;
        fs::rename(upstream, upstream.with_extension("gone")).context("take the upstream away")?;
        self.fetch(paths).await?;
        let began = Instant::now();
        let unknown = self.status(&format!("/{}.narinfo", "0".repeat(32))).await?;
        anyhow::ensure!(unknown == StatusCode::NOT_FOUND, "{unknown} for what nobody has");
        say(
            "offline",
            &format!(
                "the upstream is gone: what is here is served as before, what is not is a 404 after {}, \
             and Nix goes on to its next substituter",
                millis(began)
            ),
        )?;
        self.push(tokens, bucket).await?;
        let status = exchange::get(authority, "/api/status").await.context("ask for the status")?;
        let status: serde_json::Value =
            serde_json::from_slice(&status).context("read the status")?;
        let figure =
            |path| status.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or_default();
        say(
            "figures",
            &format!(
                "{} hits, {} misses, {} served, {} of them fetched",
                figure("/traffic/hits"),
                figure("/traffic/misses"),
                ByteSize(figure("/traffic/served_bytes")),
                ByteSize(figure("/traffic/fetched_bytes"))
            ),
        )
    }

    /// Asks for each path as Nix does, and checks its NAR. Says how many bytes the NARs have.
    async fn fetch(&self, paths: &[Made]) -> anyhow::Result<usize> {
        let mut bytes = 0;
        for made in paths {
            let narinfo = format!("/{}.narinfo", made.store_path.hash());
            let narinfo = exchange::get(&self.authority, &narinfo).await;
            let narinfo = narinfo.with_context(|| format!("ask for {}", made.store_path))?;
            let narinfo =
                NarInfo::parse(&narinfo, &StoreDir::default()).context("read a narinfo")?;
            let file = exchange::get(&self.authority, &format!("/{}", narinfo.url)).await;
            let file = file.with_context(|| format!("fetch {}", made.store_path))?;
            let nar = zstd::decode_all(&*file).context("unpack a NAR")?;
            let nar_hash = NarHash::from_bytes(Sha256::digest(&nar).into());
            anyhow::ensure!(
                nar_hash == narinfo.nar_hash,
                "{} is not what was signed",
                made.store_path
            );
            bytes += nar.len();
        }
        Ok(bytes)
    }

    async fn status(&self, path: &str) -> anyhow::Result<StatusCode> {
        let stream = exchange::connect(&self.authority).await?;
        let request = Request::get(path).header(header::HOST, &self.authority);
        let request = request.body(Full::<Bytes>::default()).context("ask")?;
        Ok(exchange::over(stream, request).await?.0)
    }

    async fn push(&self, tokens: &Tokens, bucket: &Path) -> anyhow::Result<()> {
        let mut secret = [0; 20];
        getrandom::fill(&mut secret).context("draw random bytes for a token")?;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let token = tokens.add("demo", secret, now_s).context("make a token")?;
        let (name, len) = BUILT;
        let built = Made::new(name, len, &[])?;
        let began = Instant::now();
        let narinfo = format!("{}.narinfo", built.store_path.hash());
        self.put(&built.file_url(), built.nar.clone(), &token).await?;
        self.put(&narinfo, built.narinfo(None).into(), &token).await?;
        let acknowledged = millis(began);
        let there = bucket.join(&narinfo);
        let carried = async {
            while !there.exists() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(WAIT_MAX, carried).await.context("wait for the bucket")?;
        let text = fs::read(&there).context("look into the bucket")?;
        let signed = NarInfo::parse(&text, &StoreDir::default()).context("look into the bucket")?;
        let key = signed.signatures.first().context("it is not signed")?.key_name();
        say(
            "push",
            &format!(
                "what the house built is safe on the cache's disk after {acknowledged}, and in the bucket \
             after {}, signed by {key}",
                millis(began)
            ),
        )
    }

    async fn put(&self, name: &str, body: Vec<u8>, token: &str) -> anyhow::Result<()> {
        let basic = format!("Basic {}", STANDARD.encode(format!("demo:{token}")));
        let request = Request::put(format!("/push/{name}"))
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, basic)
            .body(Full::new(Bytes::from(body)))
            .context("ask")?;
        let stream = exchange::connect(&self.authority).await?;
        let (status, said) = exchange::over(stream, request).await.context("push")?;
        let said = String::from_utf8_lossy(&said);
        anyhow::ensure!(status.is_success(), "pushing {name} was answered {status}: {said}");
        Ok(())
    }
}

/// A closure: each path refers to those before it.
fn closure() -> anyhow::Result<Vec<Made>> {
    let mut paths: Vec<Made> = Vec::new();
    for (name, len) in PATHS {
        let made = Made::new(name, len, &paths.iter().collect::<Vec<_>>())?;
        paths.push(made);
    }
    Ok(paths)
}

fn new_key() -> anyhow::Result<SecretKey> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("draw random bytes for a key")?;
    SecretKey::from_seed("demo-upstream-1", seed).context("make a key")
}

fn config(folder: &Path, key: &SecretKey) -> anyhow::Result<config::Config> {
    let shown = folder.display();
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nname = \"demo\"\nstate-dir = \"{shown}/cache\"\n\
         [store]\nbudget = \"256 MiB\"\n\
         [[upstream]]\nurl = \"file://{shown}/upstream\"\ntrusted-public-keys = [\"{}\"]\n\
         [[upstream]]\nurl = \"file://{shown}/bucket\"\nunsigned = true\npush = true\n",
        key.public()
    );
    config::parse(&text, &Surroundings::default()).context("configure the demonstration")
}

/// Leaves the page open until Enter, where somebody can press it.
async fn stay(authority: &str) -> anyhow::Result<()> {
    say("page", &format!("http://{authority}/"))?;
    if std::io::stdin().is_terminal() {
        out::note("Enter ends it, and leaves nothing behind.");
        // On a thread that the end of the runtime does not wait for.
        let line = || std::io::stdin().read_line(&mut String::new());
        drop(tokio::task::spawn_blocking(line).await);
    }
    Ok(())
}

fn say(what: &str, text: &str) -> anyhow::Result<()> {
    out::line(&format!("{what:<9} {text}"))
}

fn size(bytes: usize) -> ByteSize {
    ByteSize(u64::try_from(bytes).unwrap_or(u64::MAX))
}

fn millis(began: Instant) -> String {
    format!("{} ms", began.elapsed().as_millis())
}
