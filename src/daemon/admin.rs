//! The admin socket: where it is, and what its commands work on.

use std::error::Error;
use std::sync::Arc;

use tracing::{info, warn};

use super::{OwnKeys, signer_of_fetched};
use crate::cache::Cache;
use crate::config::Config;
use crate::http::{Admin, AdminSocket, PublicKeys};
use crate::push::Push;

/// Opens it. Without it the cache goes on: it serves clients, and only commands miss it.
pub(super) fn open(
    config: &Config,
    (push, cache, public_keys): (&Push, &Cache, &PublicKeys),
) -> Option<(AdminSocket, Arc<Admin>)> {
    let path = config.admin.socket.clone();
    let socket = match AdminSocket::bind(path) {
        Ok(socket) => socket,
        Err(error) => {
            let path = config.admin.socket.display();
            warn!(%path, error = &error as &dyn Error, "there is no admin socket");
            return None;
        }
    };
    info!(path = %config.admin.socket.display(), "admin socket");
    let (state_dir, sign) = (config.state_dir.clone(), config.push.sign);
    let (push_of_keys, public_keys) = (push.clone(), public_keys.clone());
    let cache_of_keys = cache.clone();
    let reload_keys = move || {
        let keys = OwnKeys::read(&state_dir).map_err(|error| format!("{error:#}"))?;
        let signer = signer_of_fetched(sign, &keys);
        let public = keys.public();
        let Some(secret) = keys.secret else {
            return Err("the key of this cache is gone: restore it from its backup".to_owned());
        };
        // Trusted before it signs.
        cache_of_keys.set_own_keys(public.clone(), signer);
        public_keys.set(public.clone());
        push_of_keys.set_own_key(secret);
        Ok(public)
    };
    let (cache, push) = (cache.clone(), push.clone());
    Some((socket, Arc::new(Admin { cache, push, reload_keys: Box::new(reload_keys) })))
}
