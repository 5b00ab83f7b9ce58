//! `restore`: verifies the whole backup first, then brings the small files back, then takes what
//! waited as a push is taken.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{BufReader, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use hyper::Method;
use hyper::body::Bytes;
use serde_json::json;
use tokio::runtime::Builder;

use super::super::progress::{At, Progress};
use super::super::runtime;
use super::passphrase::{self, Asked};
use super::state::{self, Places};
use super::{CACHE, CONFIG, FORM, MANIFEST, RestoreArgs, SETTINGS, STATE};
use crate::backup::{Archive, Entry, Opener};
use crate::cli::admin::{self, NotGiven, Reach};
use crate::cli::{Ended, out};
use crate::config::Config;
use crate::daemon::{self, Still};
use crate::durable;
use crate::firstboot::{self, Folders, System};
use crate::nix::{StorePathHash, UploadName};
use crate::push::{Begun, DOCUMENT_LEN_MAX, Push, Shape};

/// Bytes that go from the file to the store at once.
const PIECE_LEN: usize = 256 * 1024;

/// What stands before the name of a NAR file.
const NARS: &str = "nar/";

/// What stands behind the key of a narinfo.
const NARINFO: &str = ".narinfo";

type Opened = Archive<Opener<BufReader<File>>>;

/// What a backup has, once all of it was read.
#[derive(Debug, Default)]
struct Inside {
    files: BTreeMap<String, Vec<u8>>,
    waiting: usize,
}

/// What was brought back.
#[derive(Debug, Default)]
struct Summary {
    files: Vec<String>,
    paths: usize,
    documents: usize,
    failed: Vec<String>,
}

pub(super) fn run(args: &RestoreArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    let runtime = runtime::started(Builder::new_multi_thread().worker_threads(1))?;
    runtime::wait(&runtime, nobody_runs(&config))?;
    let passphrase = passphrase::read(args.passphrase_file.as_deref(), Asked::ForTheOneOfAFile)?;
    let mut progress = Progress::new(args.quiet);
    let inside = verify(&args.file, &passphrase, &mut progress)?;
    let places = Places::new(&config, &args.appliance);
    let plan = plan(args, &places, &inside)?;
    daemon::make_state_dir(&config.state_dir)?;
    let mut summary = Summary::default();
    write_files(&plan, &inside, &mut summary)?;
    if let Some((folders, _)) = Folders::read(&args.appliance) {
        let back = firstboot::put_back(&folders, &System).context("write to the boot partition")?;
        summary.files.extend(back.iter().map(|name| folders.boot.join(name).display().to_string()));
    }
    if inside.waiting > 0 {
        // What the configuration says now: it may have come with the backup.
        let config = args.config.load()?;
        let mut at = Taken { of: inside.waiting, summary: &mut summary, progress: &mut progress };
        let taken = runtime::wait(&runtime, take(&args.file, &passphrase, &config, &mut at));
        give_to_owner(&config)?;
        taken?;
    }
    drop(progress);
    runtime.shutdown_background();
    tell(args, &summary)
}

async fn nobody_runs(config: &Config) -> anyhow::Result<()> {
    match admin::ask(config, Reach::Own, Method::GET, "/queue").await {
        Err(error) => match error.downcast_ref::<NotGiven>() {
            Some(NotGiven::NobodyRuns(_)) => Ok(()),
            Some(NotGiven::NotAllowed(_)) | None => Err(error),
        },
        Ok(_) => anyhow::bail!(
            "the cache is running: stop it first (systemctl stop snowberry.service snowberry.socket \
             snowberry-tls.socket)"
        ),
    }
}

fn open(file: &Path, passphrase: &str) -> anyhow::Result<Opened> {
    let act = || format!("read the backup {}", file.display());
    let source = File::open(file).with_context(act)?;
    let is_file = source.metadata().with_context(act)?.is_file();
    anyhow::ensure!(is_file, "{} is no file, and is read twice", file.display());
    let opener = Opener::new(BufReader::new(source), passphrase).with_context(act)?;
    Ok(Archive::new(opener))
}

/// Reads all of it to its end, which proves that it is whole.
fn verify(file: &Path, passphrase: &str, progress: &mut Progress) -> anyhow::Result<Inside> {
    let act = || format!("read the backup {}", file.display());
    let file_len = file.metadata().with_context(act)?.len();
    let mut archive = open(file, passphrase)?;
    let (mut inside, mut read) = (Inside::default(), 0_u64);
    while let Some(entry) = archive.next_entry().with_context(act)? {
        let Entry { name, len } = entry;
        // What stands around an entry is little beside a NAR.
        progress.at(&At {
            what: "verifying the backup".to_owned(),
            bytes: Some((read.min(file_len), Some(file_len))),
            things: None,
        });
        read = read.saturating_add(len);
        if let Some(name) = name.strip_prefix(CACHE) {
            inside.waiting += usize::from(!name.starts_with(NARS));
            continue;
        }
        anyhow::ensure!(
            len <= state::FILE_LEN_MAX && inside.files.len() < state::FILES_MAX,
            "{name} in the backup is no file of a cache"
        );
        let mut content = Vec::new();
        archive.read_to_end(&mut content).with_context(act)?;
        inside.files.insert(name, content);
    }
    let manifest = inside.files.get(MANIFEST).and_then(|text| std::str::from_utf8(text).ok());
    let manifest: Option<toml::Table> = manifest.and_then(|text| toml::from_str(text).ok());
    let form = manifest.as_ref().and_then(|it| it.get("form")).and_then(toml::Value::as_integer);
    anyhow::ensure!(
        form == Some(FORM),
        "{} is a backup of another version of snowberry: use a newer one",
        file.display()
    );
    Ok(inside)
}

/// What goes where. Nothing was written when this fails.
fn plan(
    args: &RestoreArgs,
    places: &Places,
    inside: &Inside,
) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut plan = Vec::new();
    let mut in_the_way = Vec::new();
    for (name, content) in &inside.files {
        let Some(path) = places.place(name) else { continue };
        let there = state::read(&path).with_context(|| format!("read {}", path.display()))?;
        match there {
            Some(there) if there == *content => {}
            Some(_) if name == CONFIG && !args.force => {
                out::note(&format!("{} is there and stays as it is", path.display()));
            }
            Some(_) if !args.force => in_the_way.push(path.display().to_string()),
            Some(_) | None => plan.push((name.clone(), path)),
        }
    }
    anyhow::ensure!(
        in_the_way.is_empty(),
        "there is a cache already, nothing was changed: with --force these would be replaced: {}",
        in_the_way.join(", ")
    );
    let has_key = inside.files.contains_key("state/secret-key") || places.key_file().exists();
    if !has_key {
        out::note("the backup has no key: the cache makes one at its next start");
    }
    Ok(plan)
}

/// The key that signs comes last: without it the cache does not take this for whole.
fn write_files(
    plan: &[(String, PathBuf)],
    inside: &Inside,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let is_key = |name: &str| name == "state/secret-key";
    let (keys, others): (Vec<_>, Vec<_>) = plan.iter().partition(|(name, _)| is_key(name));
    for (name, path) in others.into_iter().chain(keys) {
        let act = || format!("write {}", path.display());
        let content = inside.files.get(name).context("a file of the backup is gone")?;
        let text = std::str::from_utf8(content).with_context(act)?;
        if let Some(folder) = path.parent() {
            let mode = if name == CONFIG { 0o755 } else { 0o700 };
            DirBuilder::new().recursive(true).mode(mode).create(folder).with_context(act)?;
            give_folder(folder, name).with_context(act)?;
        }
        let is_new = !path.exists();
        durable::write_private(path, text).with_context(act)?;
        if name == CONFIG && is_new {
            // Its secrets are in files of their own, and the cache is another user.
            let everybody_reads = Permissions::from_mode(0o644);
            std::fs::set_permissions(path, everybody_reads).with_context(act)?;
        }
        summary.files.push(path.display().to_string());
    }
    Ok(())
}

/// A folder in the state directory is whose that is.
fn give_folder(folder: &Path, name: &str) -> std::io::Result<()> {
    let inner = name.strip_prefix(STATE).is_some_and(|name| name.contains('/'));
    let (true, Some(outer)) = (inner, folder.parent()) else { return Ok(()) };
    give(folder, &outer.metadata()?)
}

fn give(path: &Path, like: &std::fs::Metadata) -> std::io::Result<()> {
    if path.symlink_metadata()?.uid() == like.uid() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(like.uid()), Some(like.gid()))
}

/// What root made in the store is its owner's, who is that of the state directory.
fn give_to_owner(config: &Config) -> anyhow::Result<()> {
    let like = config.state_dir.metadata().context("look at the state directory")?;
    let mut open: Vec<PathBuf> =
        config.store.path.iter().chain(&config.store.marker).cloned().collect();
    while let Some(path) = open.pop() {
        let act = || format!("give {} to the owner of the state directory", path.display());
        if path.symlink_metadata().is_err() {
            continue;
        }
        give(&path, &like).with_context(act)?;
        if path.is_dir() {
            for entry in path.read_dir().with_context(act)? {
                open.push(entry.with_context(act)?.path());
            }
        }
    }
    Ok(())
}

/// How far taking is, of so many paths and documents.
struct Taken<'a> {
    of: usize,
    summary: &'a mut Summary,
    progress: &'a mut Progress,
}

impl Taken<'_> {
    fn tell(&mut self) {
        let Summary { paths, documents, failed, .. } = &*self.summary;
        let count = |things: usize| u64::try_from(things).unwrap_or(u64::MAX);
        self.progress.at(&At {
            what: "taking what waited".to_owned(),
            bytes: None,
            things: Some((count(paths + documents + failed.len()), Some(count(self.of)))),
        });
    }
}

/// Takes what waited.
async fn take(
    file: &Path,
    passphrase: &str,
    config: &Config,
    at: &mut Taken<'_>,
) -> anyhow::Result<()> {
    let still = Still::open(config).await?;
    let taken = take_all(file, passphrase, &still.push, at).await;
    still.close().await;
    taken
}

async fn take_all(
    file: &Path,
    passphrase: &str,
    push: &Push,
    at: &mut Taken<'_>,
) -> anyhow::Result<()> {
    let act = || format!("read the backup {}", file.display());
    let mut archive = open(file, passphrase)?;
    while let Some(entry) = archive.next_entry().with_context(act)? {
        at.tell();
        let summary = &mut *at.summary;
        let Some(name) = entry.name.strip_prefix(CACHE) else { continue };
        let (name, is_nar) = match name.strip_prefix(NARS) {
            Some(name) => (name, true),
            None => (name, false),
        };
        if is_nar {
            if let Err(error) = take_nar(push, &mut archive, name, entry.len).await {
                summary.failed.push(format!("{name}: {error:#}"));
            }
            continue;
        }
        anyhow::ensure!(
            usize::try_from(entry.len).is_ok_and(|len| len <= DOCUMENT_LEN_MAX),
            "{name} in the backup is too long"
        );
        let mut content = Vec::new();
        archive.read_to_end(&mut content).with_context(act)?;
        let key = name.strip_suffix(NARINFO).and_then(|key| StorePathHash::parse(key).ok());
        let taken = match key {
            Some(key) => push.narinfo(key, Bytes::from(content)).await,
            None => push.document(name, Shape::Text, Bytes::from(content)).await,
        };
        match (taken, key) {
            (Ok(()), Some(_)) => summary.paths += 1,
            (Ok(()), None) => summary.documents += 1,
            (Err(refusal), _) => {
                summary.failed.push(format!("{name}: {:#}", anyhow::Error::new(refusal)));
            }
        }
    }
    Ok(())
}

/// The same bounds and checks as for what comes over the network.
async fn take_nar(push: &Push, archive: &mut Opened, name: &str, len: u64) -> anyhow::Result<()> {
    let name = UploadName::parse(name).context("no name of a NAR file")?;
    let mut upload = match push.begin_nar(name, len).await? {
        Begun::Known => return Ok(()),
        Begun::Wanted(upload) => upload,
    };
    let mut left = len;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(PIECE_LEN).min(PIECE_LEN);
        let mut piece = vec![0; count];
        archive.read_exact(&mut piece).context("read the backup")?;
        left -= u64::try_from(count).unwrap_or(left);
        upload.feed(Bytes::from(piece)).await?;
    }
    upload.finish().await?;
    Ok(())
}

fn tell(args: &RestoreArgs, summary: &Summary) -> anyhow::Result<Ended> {
    let Summary { files, paths, documents, failed, .. } = summary;
    if args.json {
        let said = json!({
            "files": files, "paths": paths, "documents": documents, "failed": failed,
        });
        out::line(&said.to_string())?;
    } else {
        for file in files {
            out::line(&format!("written: {file}"))?;
        }
        out::line(&format!("{paths} paths and {documents} documents wait to be carried up"))?;
        for failed in failed {
            out::note(&format!("not taken: {failed}"));
        }
    }
    if files.iter().any(|file| file.contains(SETTINGS)) {
        out::note("the settings of the appliance hold from the next boot");
    }
    Ok(if failed.is_empty() { Ended::Well } else { Ended::Badly })
}
