//! A cache that is a folder: `file:///...`, a mounted disk or a USB stick.
//!
//! A folder without nix-cache-info is trouble and never empty: a stick that was pulled out leaves
//! its mount point behind.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use url::Url;

use super::error::{Asked, Error};
use super::location;

/// Bytes read at once: a card and a USB disk reach their speed with this.
const CHUNK_LEN: usize = 256 * 1024;

/// The file that makes a folder a cache.
pub(super) const CACHE_INFO: &str = "nix-cache-info";

/// A folder.
pub(super) struct Folder {
    pub(super) root: PathBuf,
    /// Sub-folders that were looked through for what a crash left.
    pub(super) swept: Arc<Swept>,
}

/// Names that were seen since the start.
#[derive(Default)]
pub(super) struct Swept(Mutex<HashSet<String>>);

impl Swept {
    /// Whether a name was not seen yet; all are forgotten when they are `max`.
    pub(super) fn first_time(&self, name: &str, max: usize) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= max {
            seen.clear();
        }
        seen.insert(name.to_owned())
    }
}

impl Folder {
    /// From a `file:` URL; nothing is looked at.
    pub(super) fn new(url: &Url) -> Result<Self, &'static str> {
        if url.host().is_some() {
            return Err("a folder's URL has three slashes: file:///path");
        }
        let root = url.to_file_path().map_err(|()| "the URL names no folder")?;
        Ok(Self { root, swept: Arc::default() })
    }

    /// A small file whole; `None` when the folder has it not.
    pub(super) async fn read(
        &self,
        name: &str,
        len_max: usize,
        asked: &Asked,
    ) -> Result<Option<Bytes>, Error> {
        let found = self.blocking(name, asked, move |mut file, len| {
            let bound = u64::try_from(len_max).unwrap_or(u64::MAX);
            if len > bound {
                return Ok(None);
            }
            let mut text = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
            (&mut file).take(bound + 1).read_to_end(&mut text)?;
            Ok((text.len() <= len_max).then(|| Bytes::from(text)))
        });
        match found.await? {
            None => Ok(None),
            Some(Some(text)) => Ok(Some(text)),
            Some(None) => Err(Error::TooLong { asked: asked.clone(), len_max }),
        }
    }

    /// A NAR file and its length, by the URL of a narinfo.
    pub(super) async fn open_nar(
        &self,
        url: &str,
        asked: &Asked,
    ) -> Result<Option<(File, u64)>, Error> {
        let name = url.split_once('?').map_or(url, |(name, _)| name);
        self.blocking(name, asked, |file, len| Ok((file, len))).await
    }

    /// Opens a file of the folder and does something with it, all on a thread that may block.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        name: &str,
        asked: &Asked,
        act: impl FnOnce(File, u64) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let trouble = |error| Error::Io { asked: asked.clone(), source: Arc::new(error) };
        location::plain_name(name).map_err(|why| Error::Url { asked: asked.clone(), why })?;
        let (root, path) = (self.root.clone(), self.root.join(name));
        let work = tokio::task::spawn_blocking(move || match open(&path) {
            Ok(Some((file, len))) => act(file, len).map(Found::Here),
            Ok(None) if is_cache(&root)? => Ok(Found::Absent),
            Ok(None) => Ok(Found::NoCache),
            Err(error) => Err(error),
        });
        let found = work.await.map_err(|error| trouble(io::Error::other(error)))?;
        match found.map_err(trouble)? {
            Found::Here(thing) => Ok(Some(thing)),
            Found::Absent => Ok(None),
            Found::NoCache => Err(Error::NotACache { upstream: Arc::clone(&asked.upstream) }),
        }
    }
}

/// What a look into the folder shows.
enum Found<T> {
    Here(T),
    Absent,
    NoCache,
}

/// A regular file and its length.
fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    // A named pipe would block when opened: looked at first.
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !metadata.is_file() {
        return Ok(None);
    }
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    Ok(Some((file, len)))
}

fn is_cache(root: &Path) -> io::Result<bool> {
    root.join(CACHE_INFO).try_exists()
}

/// The next bytes of a file from an offset; `None` at its end.
pub(super) async fn chunk(
    file: &Arc<File>,
    offset: u64,
    asked: &Asked,
) -> Result<Option<Bytes>, Error> {
    let trouble = |error| Error::Io { asked: asked.clone(), source: Arc::new(error) };
    let file = Arc::clone(file);
    let work = tokio::task::spawn_blocking(move || {
        let mut chunk = vec![0; CHUNK_LEN];
        loop {
            match file.read_at(&mut chunk, offset) {
                Ok(len) => {
                    chunk.truncate(len);
                    return Ok(chunk);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    });
    let read = work.await.map_err(|error| trouble(io::Error::other(error)))?;
    let chunk = read.map_err(trouble)?;
    Ok((!chunk.is_empty()).then(|| chunk.into()))
}
