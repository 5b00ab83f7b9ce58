//! Making a cache of a folder: the only place where a folder without nix-cache-info is written to.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::Step;
use crate::nix::cache_info::CACHE_INFO_LEN_MAX;
use crate::upstream::folder::{CACHE_INFO, Folder};
use crate::upstream::{Asked, Error};

/// Creates the folder.
pub(super) async fn create(folder: &Folder, asked: &Asked) -> Result<Step, Error> {
    let root = folder.root.clone();
    blocking(asked, move || {
        if root.is_dir() {
            return Ok(Step::WasThere);
        }
        std::fs::create_dir_all(&root)?;
        Ok(Step::Done)
    })
    .await
}

/// What its nix-cache-info says, where it has one.
pub(super) async fn cache_info(folder: &Folder, asked: &Asked) -> Result<Option<Bytes>, Error> {
    match folder.read(CACHE_INFO, CACHE_INFO_LEN_MAX, asked).await {
        Err(Error::NotACache { .. }) => Ok(None),
        read => read,
    }
}

async fn blocking<T: Send + 'static>(
    asked: &Asked,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let trouble = |error| Error::Write { asked: asked.clone(), source: Arc::new(error) };
    let ended = spawn_blocking(act).await;
    ended.map_err(|error| trouble(io::Error::other(error)))?.map_err(trouble)
}
