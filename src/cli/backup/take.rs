//! `backup`: reads what must not be lost, and writes it sealed, never as it is.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::json;
use tokio::runtime::Builder;

use super::super::progress::{At, Progress};
use super::super::runtime;
use super::passphrase::{self, Asked};
use super::source::Source;
use super::state::Places;
use super::{BackupArgs, CACHE, FORM, MANIFEST};
use crate::backup::{Packed, Sealer, Seeds, WORK_FACTOR};
use crate::cli::{Ended, out};
use crate::config::Config;
use crate::push::WaitingFor;
use crate::units::ByteSize;

/// What was left out, in a backup without NARs.
const LEFT_BEHIND: &str = "left-behind.txt";

type Output = Packed<Sealer<BufWriter<File>>>;

/// What a backup has.
#[derive(Debug, Default)]
struct Summary {
    files: usize,
    paths: usize,
    documents: usize,
    nar_bytes: u64,
    left_behind: Vec<String>,
    lost: usize,
}

pub(super) fn run(args: &BackupArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    let passphrase = passphrase::read(args.passphrase_file.as_deref(), Asked::ForANewOne)?;
    let files = Places::new(&config, &args.appliance).read()?;
    let runtime = runtime::started(Builder::new_multi_thread().worker_threads(1))?;
    let new = new_name(&args.file);
    let written = runtime::wait(&runtime, write(args, &config, (&files, &passphrase), &new));
    let summary = match written {
        Ok(summary) => summary,
        Err(error) => {
            // Half of one is of no use.
            drop(std::fs::remove_file(&new));
            return Err(error);
        }
    };
    put_in_place(&new, &args.file)?;
    tell(args, &summary)
}

fn new_name(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

async fn write(
    args: &BackupArgs,
    config: &Config,
    (files, passphrase): (&[(String, Vec<u8>)], &str),
    new: &Path,
) -> anyhow::Result<Summary> {
    let act = || format!("write {}", new.display());
    drop(std::fs::remove_file(new));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new);
    let file = BufWriter::new(file.with_context(act)?);
    let sealer = Sealer::new(file, passphrase, &seeds()?, WORK_FACTOR).with_context(act)?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let progress = Progress::new(args.quiet);
    let packed = Packed::new(sealer);
    let mut writer = Writer { packed, now_s, summary: Summary::default(), progress };
    writer.packed.file(MANIFEST, manifest(config, now_s).as_bytes(), now_s).with_context(act)?;
    for (name, content) in files {
        writer.packed.file(name, content, now_s).with_context(act)?;
    }
    writer.summary.files = files.len();
    let source = Source::open(config).await?;
    let waiting = writer.waiting(&source, args.without_nars).await;
    source.close().await;
    waiting?;
    let Writer { packed, summary, .. } = writer;
    let sealer = packed.finish().with_context(act)?;
    let mut file = sealer.finish().with_context(act)?;
    file.flush().with_context(act)?;
    file.get_ref().sync_all().with_context(act)?;
    Ok(summary)
}

fn seeds() -> anyhow::Result<Seeds> {
    let mut seeds = Seeds { salt: [0; 16], file_key: [0; 16], nonce: [0; 16] };
    for seed in [&mut seeds.salt, &mut seeds.file_key, &mut seeds.nonce] {
        getrandom::fill(seed).context("draw random bytes for a key")?;
    }
    Ok(seeds)
}

fn manifest(config: &Config, now_s: u64) -> String {
    format!(
        "form = {FORM}\nversion = \"{}\"\nname = \"{}\"\nmade-at = {now_s}\n",
        env!("CARGO_PKG_VERSION"),
        config.name
    )
}

struct Writer {
    packed: Output,
    now_s: u64,
    summary: Summary,
    progress: Progress,
}

impl Writer {
    /// All that waits for any target, once, in the order of acceptance.
    async fn waiting(&mut self, source: &Source<'_>, only_list: bool) -> anyhow::Result<()> {
        let (mut seen, mut nars) = (HashSet::new(), HashSet::new());
        for target in source.targets().await? {
            let mut after = 0;
            loop {
                let rows = source.rows(&target, after).await?;
                let Some(last) = rows.last() else { break };
                after = last.seq;
                for row in rows {
                    if row.lost {
                        self.summary.lost += 1;
                    } else if seen.insert(row.what.clone()) {
                        self.one(source, &row.what, only_list, &mut nars).await?;
                    }
                }
            }
        }
        if !self.summary.left_behind.is_empty() {
            let text = self.summary.left_behind.join("\n") + "\n";
            self.packed
                .file(LEFT_BEHIND, text.as_bytes(), self.now_s)
                .context("write the backup")?;
        }
        Ok(())
    }

    /// How many wait is not known before the last of them.
    fn is_at(&mut self) {
        self.progress.at(&At {
            what: "writing what waits".to_owned(),
            bytes: Some((self.summary.nar_bytes, None)),
            things: Some((u64::try_from(self.summary.paths).unwrap_or(u64::MAX), None)),
        });
    }

    async fn one(
        &mut self,
        source: &Source<'_>,
        what: &WaitingFor,
        only_list: bool,
        nars: &mut HashSet<String>,
    ) -> anyhow::Result<()> {
        match what {
            WaitingFor::Path(key) => {
                // What is gone since was carried up.
                let Some(path) = source.path(*key).await? else { return Ok(()) };
                if only_list {
                    self.summary.left_behind.push(store_path(&path.narinfo));
                    return Ok(());
                }
                if nars.insert(path.file_name.clone()) {
                    let name = format!("{CACHE}nar/{}", path.file_name);
                    self.packed.begin(&name, path.file_size, self.now_s).context(WRITE)?;
                    let mut offset = 0;
                    while offset < path.file_size {
                        let piece = source.piece(path.nar_hash, offset).await?;
                        anyhow::ensure!(!piece.is_empty(), "a NAR changed while it was read");
                        self.packed.write_all(&piece).context(WRITE)?;
                        let len = u64::try_from(piece.len()).unwrap_or(u64::MAX);
                        offset = offset.saturating_add(len);
                        self.summary.nar_bytes = self.summary.nar_bytes.saturating_add(len);
                        self.is_at();
                    }
                }
                let name = format!("{CACHE}{key}.narinfo");
                self.packed.file(&name, path.narinfo.as_bytes(), self.now_s).context(WRITE)?;
                self.summary.paths += 1;
            }
            WaitingFor::Document(name) => {
                if only_list {
                    self.summary.left_behind.push(name.clone());
                    return Ok(());
                }
                let Some(body) = source.document(name).await? else { return Ok(()) };
                self.packed.file(&format!("{CACHE}{name}"), &body, self.now_s).context(WRITE)?;
                self.summary.documents += 1;
            }
        }
        Ok(())
    }
}

const WRITE: &str = "write the backup";

fn store_path(narinfo: &str) -> String {
    let line = narinfo.lines().find_map(|line| line.strip_prefix("StorePath: "));
    line.unwrap_or_default().to_owned()
}

fn put_in_place(new: &Path, file: &Path) -> anyhow::Result<()> {
    let act = || format!("write {}", file.display());
    std::fs::rename(new, file).with_context(act)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).with_context(act)?;
    folder.sync_all().with_context(act)
}

fn tell(args: &BackupArgs, summary: &Summary) -> anyhow::Result<Ended> {
    let Summary { files, paths, documents, nar_bytes, left_behind, lost } = summary;
    if args.json {
        let said = json!({
            "file": args.file.display().to_string(), "files": files, "paths": paths,
            "documents": documents, "nar_bytes": nar_bytes, "left_behind": left_behind,
            "lost": lost,
        });
        out::line(&said.to_string())?;
        return Ok(Ended::Well);
    }
    for left in left_behind {
        out::line(&format!("left behind: {left}"))?;
    }
    out::line(&format!(
        "{}: {files} files, {paths} paths that wait ({}), {documents} documents",
        args.file.display(),
        ByteSize(*nar_bytes)
    ))?;
    if *lost > 0 {
        out::note(&format!("{lost} that are lost here are not in it: build and push them again"));
    }
    Ok(Ended::Well)
}
