//! A folder that is a binary cache, such as a USB stick, taken into the store: as an upstream that is
//! asked for everything that it has, once. What it says is believed as an upstream is believed.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};
use url::Url;

use super::fill::{self, Whole};
use super::sources::Source;
use super::{Cache, Inner, trust};
use crate::metrics::Metrics;
use crate::nix::narinfo::NARINFO_LEN_MAX;
use crate::nix::{NarInfo, NarName, PublicKey, StorePathHash, TrustedKeys};
use crate::store::{self, Origin, StoredNarInfo};
use crate::upstream::{self, Upstream};

/// narinfos of one folder: ten times those of the largest closures.
const NARINFOS_MAX: usize = 1_000_000;

/// Paths that are named as refused, or as missing; of more the number is told.
const NAMED_MAX: usize = 1000;

/// How long a stick that failed is left alone before the next file.
const REST: Duration = Duration::from_secs(1);

/// How often in a row: a breaker opens for some seconds.
const RESTS_MAX: usize = 10;

/// What is to be taken.
#[derive(Debug, Clone)]
pub struct ImportPlan {
    /// The folder, absolute.
    pub dir: PathBuf,
    /// Keys that count besides those of the upstreams and our own.
    pub keys: Vec<PublicKey>,
    /// These and what they refer to; all that is there where none is named.
    pub paths: Vec<StorePathHash>,
}

/// How far an import has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportProgress {
    /// narinfos that were looked at.
    pub done: u64,
    /// All that are known of.
    pub of: u64,
    /// Bytes of NAR files that were taken.
    pub bytes: u64,
}

/// What came of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Paths that were taken.
    pub taken: u64,
    /// Bytes of their NAR files.
    pub taken_bytes: u64,
    /// Paths that were held before.
    pub there: u64,
    /// Paths that were refused, and why; the first of them by name.
    pub refused: Named<(String, String)>,
    /// References that are neither here nor in the folder.
    pub missing: Named<String>,
}

/// Things of which only the first are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<T> {
    /// How many there are.
    pub count: u64,
    /// The first.
    pub names: Vec<T>,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self { count: 0, names: Vec::new() }
    }
}

impl<T> Named<T> {
    fn add(&mut self, name: T) {
        self.count += 1;
        if self.names.len() < NAMED_MAX {
            self.names.push(name);
        }
    }
}

/// Why nothing, or no more, was taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The folder cannot be read by us.
    #[error(
        "this cache cannot read {} as the user that it runs as ({source}); it sees no home folders: \
         mount the stick where everybody may read it, such as /mnt/stick",
        dir.display()
    )]
    Unreadable {
        /// The folder.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder is no cache.
    #[error("{}: {why}", dir.display())]
    NoCache {
        /// The folder.
        dir: PathBuf,
        /// What is wrong, in words.
        why: String,
    },
    /// The store cannot be used.
    #[error("the store cannot be written")]
    Store(#[from] store::Error),
}

/// An import under way.
struct Import<'a> {
    inner: &'a Arc<Inner>,
    folder: Upstream,
    /// What is known to be in the folder, where all of it is taken.
    all: Option<HashSet<StorePathHash>>,
    queue: VecDeque<(StorePathHash, Option<String>)>,
    seen: HashSet<StorePathHash>,
    missing: HashSet<StorePathHash>,
    imported: Imported,
}

/// What became of one path.
enum One {
    Taken(NarInfo),
    There(NarInfo),
    Absent,
    Refused(String),
}

impl Cache {
    /// Takes what is in a folder. Dropped before its end, what was taken stays, and the next one goes
    /// on.
    pub async fn import(
        &self,
        plan: ImportPlan,
        tell: impl Fn(ImportProgress) + Send + Sync,
    ) -> Result<Imported, ImportError> {
        let inner = &self.inner;
        let folder = open(inner, &plan)?;
        let keys = list(&plan.dir).await?;
        check_info(&folder, &plan.dir).await?;
        let (all, first) = if plan.paths.is_empty() {
            (Some(keys.iter().copied().collect()), keys)
        } else {
            (None, plan.paths)
        };
        info!(dir = %plan.dir.display(), narinfos = first.len(), "import begins");
        let mut import = Import {
            inner,
            folder,
            all,
            seen: first.iter().copied().collect(),
            queue: first.into_iter().map(|key| (key, None)).collect(),
            missing: HashSet::new(),
            imported: Imported::default(),
        };
        Box::pin(import.run(&tell)).await?;
        inner.store.flush().await?;
        let Imported { taken, there, refused, .. } = &import.imported;
        info!(taken, there, refused = refused.count, "import ended");
        Ok(import.imported)
    }
}

/// The folder as an upstream, with the keys of all upstreams and those that were given.
fn open(inner: &Inner, plan: &ImportPlan) -> Result<Upstream, ImportError> {
    let no_cache = |why: String| ImportError::NoCache { dir: plan.dir.clone(), why };
    let url = Url::from_directory_path(&plan.dir);
    let url = url.map_err(|()| no_cache("it is no absolute path".to_owned()))?;
    let upstreams = inner.upstreams();
    let of_upstreams = upstreams.iter().filter_map(Upstream::trusted_keys);
    let keys = of_upstreams.flat_map(TrustedKeys::keys).chain(&plan.keys);
    // An upstream must have some; ours count anyway.
    let keys: Vec<String> =
        keys.chain(inner.own().trusted.keys()).map(ToString::to_string).collect();
    let config = upstream::Config {
        url: url.into(),
        trusted_public_keys: keys,
        unsigned: false,
        ca_file: None,
        credentials_file: None,
        netrc_file: None,
        headers_file: None,
        push: false,
        limit: None,
    };
    if config.trusted_public_keys.is_empty() {
        let why = "no upstream of this cache has a key, and none was given: nobody's signature \
                   would count";
        return Err(no_cache(why.to_owned()));
    }
    // Its figures are nobody's: it is gone after this.
    let folder = Upstream::new(&config, &inner.config.store_dir, &Metrics::new());
    folder.map_err(|error| no_cache(error.to_string()))
}

/// The narinfos of a folder, in the order of their names.
async fn list(dir: &Path) -> Result<Vec<StorePathHash>, ImportError> {
    let unreadable = |source| ImportError::Unreadable { dir: dir.to_path_buf(), source };
    let path = dir.to_path_buf();
    let listed = tokio::task::spawn_blocking(move || {
        let mut keys = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let name = entry?.file_name();
            let key = name.to_str().and_then(|name| name.strip_suffix(".narinfo"));
            keys.extend(key.and_then(|key| StorePathHash::parse(key).ok()));
            if keys.len() > NARINFOS_MAX {
                let why = format!("it has more than {NARINFOS_MAX} narinfos");
                return Err(io::Error::other(why));
            }
        }
        keys.sort_unstable();
        Ok(keys)
    });
    let listed = listed.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    listed.map_err(unreadable)
}

/// A folder without nix-cache-info is no cache, and one for another store directory none for us.
async fn check_info(folder: &Upstream, dir: &Path) -> Result<(), ImportError> {
    let Err(error) = folder.cache_info().await else { return Ok(()) };
    let why = if matches!(error, upstream::Error::NotACache { .. }) {
        "it is no binary cache: it has no nix-cache-info".to_owned()
    } else {
        chain(&error)
    };
    Err(ImportError::NoCache { dir: dir.to_path_buf(), why })
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

impl Import<'_> {
    async fn run(&mut self, tell: &(impl Fn(ImportProgress) + Sync)) -> Result<(), store::Error> {
        let mut done = 0;
        while let Some((key, referred)) = self.queue.pop_front() {
            let of = u64::try_from(self.seen.len()).unwrap_or(u64::MAX);
            tell(ImportProgress { done, of, bytes: self.imported.taken_bytes });
            done += 1;
            match (Box::pin(self.one(key)).await?, referred) {
                (One::Taken(narinfo), _) => {
                    self.imported.taken += 1;
                    self.imported.taken_bytes += narinfo.file_size.unwrap_or(narinfo.nar_size);
                    self.refer(&narinfo).await?;
                }
                (One::There(narinfo), _) => {
                    self.imported.there += 1;
                    self.refer(&narinfo).await?;
                }
                (One::Absent, Some(name)) => self.is_missing(key, name).await?,
                (One::Absent, None) => {
                    let why = "the folder has it not".to_owned();
                    self.imported.refused.add((key.to_string(), why));
                }
                (One::Refused(why), referred) => {
                    warn!(%key, why, "path is not imported");
                    let name = referred.unwrap_or_else(|| key.to_string());
                    self.imported.refused.add((name, why));
                }
            }
        }
        Ok(())
    }

    /// What a path refers to comes next, or should have.
    async fn refer(&mut self, narinfo: &NarInfo) -> Result<(), store::Error> {
        for reference in &narinfo.references {
            let (key, name) = (reference.hash(), reference.base_name());
            match &self.all {
                Some(all) if !all.contains(&key) => self.is_missing(key, name.to_owned()).await?,
                Some(_) => {}
                None => {
                    if self.seen.insert(key) {
                        self.queue.push_back((key, Some(name.to_owned())));
                    }
                }
            }
        }
        Ok(())
    }

    /// The folder has it not; maybe we do.
    async fn is_missing(&mut self, key: StorePathHash, name: String) -> Result<(), store::Error> {
        if self.missing.insert(key) && self.inner.store.lookup(key).await?.is_none() {
            self.imported.missing.add(name);
        }
        Ok(())
    }

    async fn one(&self, key: StorePathHash) -> Result<One, store::Error> {
        let Self { inner, folder, .. } = self;
        for _ in 0..RESTS_MAX {
            if !folder.is_resting() {
                break;
            }
            sleep(REST).await;
        }
        let text = match folder.narinfo(key).await {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(One::Absent),
            Err(upstream::Error::TooLong { .. }) => {
                let why = format!("its narinfo is longer than {NARINFO_LEN_MAX} bytes");
                return Ok(One::Refused(why));
            }
            Err(error) => return Ok(One::Refused(chain(&error))),
        };
        let (keys, own) = (folder.trusted_keys(), inner.own());
        let judged = trust::judge(&text, key, keys, &own.trusted, &inner.config.store_dir);
        let narinfo = match judged {
            Ok(narinfo) => narinfo,
            Err(distrust) => return Ok(One::Refused(distrust.to_string())),
        };
        let known = inner.store.lookup(key).await?;
        match &known {
            Some((stored, _)) if stored.narinfo.nar_hash != narinfo.nar_hash => {
                return Ok(One::Refused("it is known here with another NAR".to_owned()));
            }
            Some((_, Some(_))) => return Ok(One::There(narinfo)),
            Some((_, None)) | None => {}
        }
        if let Some(why) = self.bring(&narinfo).await? {
            return Ok(One::Refused(why.to_owned()));
        }
        if known.is_none() {
            let (upstream, origin) = (folder.url().to_string(), Origin::Upstream);
            let stored = StoredNarInfo { narinfo: narinfo.clone(), upstream, origin };
            inner.store.keep_narinfo(stored).await?;
        }
        inner.memory.absent.forget(&key);
        inner.memory.forget_ready(key);
        inner.scrub.repairs.path_came(key);
        Ok(One::Taken(narinfo))
    }

    /// The NAR of a narinfo, as a fill from this folder alone. Why not, when it does not come.
    async fn bring(&self, narinfo: &NarInfo) -> Result<Option<&'static str>, store::Error> {
        let Self { inner, folder, .. } = self;
        let nar_hash = narinfo.nar_hash;
        if inner.store.nar(nar_hash).await?.is_some() {
            return Ok(None);
        }
        let wrong = (Arc::clone(folder.url()), nar_hash);
        // What was wrong a moment ago may have been put right.
        inner.memory.wrong.forget(&wrong);
        inner.memory.no_room.forget(&nar_hash);
        let name = NarName { nar_hash, key: narinfo.store_path.hash() };
        let source = Source { upstream: folder.clone(), narinfo: narinfo.clone() };
        Ok(match fill::whole(inner, name, Some(source)).await {
            Whole::Held => None,
            Whole::NoRoom => Some("there is no room for it"),
            Whole::Not if inner.memory.wrong.holds(&wrong) => {
                Some("its NAR is not the one that was signed")
            }
            Whole::Not => Some("its NAR file is missing, ends early or cannot be read"),
            Whole::Untried => Some("it could not be taken now, the log says why"),
        })
    }
}
