//! The admin socket: where it is, and what its commands work on.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use tracing::{info, warn};

use super::reload::Reloader;
use crate::cache::Cache;
use crate::http::{Admin, AdminSocket};
use crate::push::Push;

/// Opens it. Without it the cache goes on: it serves clients, and only commands miss it.
pub(super) fn open(
    path: &Path,
    (cache, push): (&Cache, &Push),
    reloader: &Arc<Reloader>,
) -> Option<(AdminSocket, Arc<Admin>)> {
    let socket = match AdminSocket::bind(path.to_path_buf()) {
        Ok(socket) => socket,
        Err(error) => {
            let error = &error as &dyn Error;
            warn!(path = %path.display(), error, "there is no admin socket");
            return None;
        }
    };
    info!(path = %path.display(), "admin socket");
    let (of_keys, of_all) = (Arc::clone(reloader), Arc::clone(reloader));
    let admin = Admin {
        cache: cache.clone(),
        push: push.clone(),
        reload_keys: Box::new(move || of_keys.reload_keys()),
        reload: Box::new(move || of_all.tell()),
    };
    Some((socket, Arc::new(admin)))
}
