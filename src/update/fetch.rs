//! The update server: what is newest there, and its file, gone on with where it broke off. Whatever a
//! server or a line does, what counts is the signed head and the hashes in it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Watcher;
use super::error::{Error, io_error};
use super::install::fits;
use super::manifest::Head;
use super::record::Folder;
use super::{Config, fat};
use crate::appliance::read_bounded;
use crate::metrics::Metrics;
use crate::nix::{StoreDir, TrustedKeys};
use crate::upstream::{self, DOCUMENT_LEN_MAX, NarBody, Resume, Upstream};

/// The head of the newest version's file, on the server.
const LATEST: &str = "latest";

/// What is being fetched, and the `ETag` of it.
const PART: &str = "download";
const PART_ETAG: &str = "download.etag";

/// Longest `ETag`.
const ETAG_LEN_MAX: u64 = 1024;

/// Left free on the data partition besides: the cache lives there.
const RESERVE_BYTES: u64 = 64 << 20;

/// Received before it is made durable: what a power cut can cost of a download.
const DURABLE_EVERY: u64 = 16 << 20;

/// Tries in all of one run: a line that breaks off every 200 KiB still gets 200 MB through.
const TRIES_MAX: u32 = 1000;

/// How long a download waits.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A line without a byte for so long is cut.
    pub stall: Duration,
    /// After a try that brought something.
    pub after_some: Duration,
    /// After one that brought nothing; twice as long each time.
    pub after_none: Duration,
    /// Tries that bring nothing, in a row.
    pub none_max: u32,
}

/// Half an hour of nothing in all: longer than a router takes to start, and the timer comes again.
pub const PATIENCE: Patience = Patience {
    stall: Duration::from_mins(1),
    after_some: Duration::from_millis(200),
    after_none: Duration::from_secs(5),
    none_max: 8,
};

/// The update server.
pub struct Server {
    upstream: Upstream,
    patience: Patience,
}

/// How one try ended.
enum Tried {
    /// The server had no more to give.
    Ended,
    /// It has another file now.
    Changed,
    /// It broke off.
    Trouble(Error),
}

impl Server {
    /// Of the configuration; nobody is asked.
    pub fn new(config: &Config, url: &str, patience: Patience) -> Result<Self, super::ConfigError> {
        let upstream = upstream::Config {
            url: url.to_owned(),
            trusted_public_keys: Vec::new(),
            // Signatures of narinfos are meant; those of updates are checked here.
            unsigned: true,
            ca_file: config.ca_file.clone(),
            credentials_file: None,
            netrc_file: None,
            headers_file: None,
            push: false,
            limit: config.limit,
        };
        let upstream = Upstream::new(&upstream, &StoreDir::default(), &Metrics::new())?;
        Ok(Self { upstream, patience })
    }

    /// The signed head of the newest version.
    pub async fn latest(&self, keys: &TrustedKeys) -> Result<Head, Error> {
        let fetch = |source| Error::Fetch { name: LATEST.to_owned(), source };
        let text = self.upstream.document(LATEST, DOCUMENT_LEN_MAX).await.map_err(fetch)?;
        let text = text.ok_or_else(|| Error::Absent(LATEST.to_owned()))?;
        let name = format!("{LATEST} of {}", self.upstream.url());
        let wrong = |source| Error::Manifest { name, source };
        Head::parse(&text, keys).map_err(wrong)
    }

    /// The file of this head, whole; not yet verified. What is there of it already is gone on with.
    pub async fn fetch(
        &self,
        head: &Head,
        folder: &Folder,
        watcher: &mut dyn Watcher,
    ) -> Result<PathBuf, Error> {
        let (path, name) = (folder.file(PART), &head.manifest.file);
        let (mut in_vain, mut changed) = (0, false);
        for tried in 0..TRIES_MAX {
            let there = len_of(&path);
            let had = usable(&path, head)?;
            if had == head.file_len() {
                return Ok(path);
            }
            if tried > 0 && had < there {
                if changed {
                    return Err(Error::Mismatch { name: name.clone() });
                }
                changed = true;
            }
            let needed = (head.file_len() - had).saturating_add(RESERVE_BYTES);
            fits(name, needed, folder.path(), fat::free_bytes(folder.path())?)?;
            let tried = self.once(head, folder, had, watcher).await?;
            let has = len_of(&path);
            match tried {
                Tried::Changed if changed => return Err(Error::Mismatch { name: name.clone() }),
                Tried::Changed => {
                    changed = true;
                    forget(folder)?;
                }
                Tried::Ended | Tried::Trouble(_) if has > had => {
                    in_vain = 0;
                    sleep(self.patience.after_some).await;
                }
                Tried::Trouble(error) if !may_pass(&error) => return Err(error),
                Tried::Ended | Tried::Trouble(_) => {
                    in_vain += 1;
                    if let Tried::Trouble(error) = tried
                        && in_vain >= self.patience.none_max
                    {
                        return Err(error);
                    }
                    if in_vain >= self.patience.none_max {
                        break;
                    }
                    sleep(self.patience.after_none * 2_u32.pow(in_vain - 1)).await;
                }
            }
        }
        Err(Error::Stalled { name: name.clone(), tries: self.patience.none_max })
    }

    async fn once(
        &self,
        head: &Head,
        folder: &Folder,
        had: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<Tried, Error> {
        let name = &head.manifest.file;
        let etag_file = folder.file(PART_ETAG);
        let etag = read_bounded(&etag_file, ETAG_LEN_MAX).ok().filter(|etag| !etag.is_empty());
        let resume = (had > 0).then_some(Resume { offset: had, etag });
        let fetch = |source| Error::Fetch { name: name.clone(), source };
        let body = match self.upstream.nar(name, resume).await {
            Ok(Some(body)) => body,
            Ok(None) => return Err(Error::Absent(name.clone())),
            Err(upstream::Error::Changed { .. }) => return Ok(Tried::Changed),
            Err(error) => return Ok(Tried::Trouble(fetch(error))),
        };
        let left = head.file_len() - had;
        if body.len_bytes().is_some_and(|len| len != left) {
            return Ok(Tried::Changed);
        }
        fs::write(&etag_file, body.etag().unwrap_or_default())
            .map_err(io_error("write", &etag_file))?;
        self.receive(body, head, (&folder.file(PART), had), watcher).await
    }

    /// Appends what comes, at most as much as the file has.
    async fn receive(
        &self,
        mut body: NarBody,
        head: &Head,
        (path, had): (&Path, u64),
        watcher: &mut dyn Watcher,
    ) -> Result<Tried, Error> {
        let name = &head.manifest.file;
        let of = head.file_len();
        let mut file = append(path)?;
        let (mut has, mut durable) = (had, had);
        loop {
            let chunk = match timeout(self.patience.stall, body.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break,
                Ok(Err(source)) => {
                    file.sync_all().map_err(io_error("make durable", path))?;
                    return Ok(Tried::Trouble(Error::Fetch { name: name.clone(), source }));
                }
                Err(_) => {
                    body.stalled(self.patience.stall);
                    break;
                }
            };
            has += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            if has > of {
                return Ok(Tried::Changed);
            }
            file.write_all(&chunk).map_err(io_error("write", path))?;
            if has - durable >= DURABLE_EVERY {
                file.sync_data().map_err(io_error("make durable", path))?;
                durable = has;
            }
            watcher.progress("fetch", has, of);
            watcher.step("a piece of the download")?;
        }
        file.sync_all().map_err(io_error("make durable", path))?;
        Ok(Tried::Ended)
    }
}

/// Whether it may be otherwise in a while.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Fetch { source, .. } if source.is_transient())
}

fn append(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).open(path).map_err(io_error("open", path))
}

fn len_of(path: &Path) -> u64 {
    path.metadata().map_or(0, |about| about.len())
}

/// How much of the file is there already: its begin must be this head, and no more may be there than
/// there is to come. What cannot be gone on with is removed.
fn usable(path: &Path, head: &Head) -> Result<u64, Error> {
    let Ok(file) = File::open(path) else { return Ok(0) };
    let len = file.metadata().map_err(io_error("look at", path))?.len();
    let mut start = Vec::new();
    file.take(head.len()).read_to_end(&mut start).map_err(io_error("read", path))?;
    if len <= head.file_len() && head.bytes.starts_with(&start) {
        return Ok(len);
    }
    fat::remove(path)?;
    Ok(0)
}

/// Removes what was fetched.
pub fn forget(folder: &Folder) -> Result<(), Error> {
    fat::remove(&folder.file(PART_ETAG))?;
    fat::remove(&folder.file(PART))
}
