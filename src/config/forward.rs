//! The `[forward]` table: the client's side, `snowberry forward`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Problem, Surroundings};
use crate::forward::joined::{SYSTEM_JOINED_FILE, USER_JOINED_FILE};
use crate::forward::{Config, Fixed};
use crate::mdns;
use crate::nix::StoreDir;
use crate::spool;

/// The `[forward]` table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ForwardTable {
    listen: Option<Vec<SocketAddr>>,
    cache: Option<String>,
    ca_file: Option<PathBuf>,
    plain: bool,
    joined_file: Option<PathBuf>,
}

impl ForwardTable {
    /// The checked table; what is wrong goes to `problems`.
    pub(super) fn freeze(
        self,
        store_dir: StoreDir,
        (mdns, spool): (mdns::Config, spool::Config),
        surroundings: &Surroundings,
        problems: &mut Vec<Problem>,
    ) -> Config {
        let mut tell = |message: String| problems.push(Problem::of_the_whole(message));
        let cache = self.cache.as_deref().and_then(|text| {
            Fixed::parse(text).map_err(|why| tell(format!("forward.cache: {why}"))).ok()
        });
        for address in self.listen.iter().flatten().filter(|it| !it.ip().is_loopback()) {
            tell(format!(
                "forward.listen: {address} is not of loopback; whoever else asks is to ask the \
                 cache itself"
            ));
        }
        if self.listen.as_ref().is_some_and(Vec::is_empty) {
            tell("forward.listen: an empty list; leave it out for 127.0.0.1:8501".to_owned());
        }
        let files = [("ca-file", &self.ca_file), ("joined-file", &self.joined_file)];
        for (key, path) in files {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                tell(format!("forward.{key}: {} is not absolute", path.display()));
            }
        }
        let joined_file = self.joined_file.unwrap_or_else(|| default_joined_file(surroundings));
        let (listen, ca_file, plain) = (self.listen, self.ca_file, self.plain);
        Config { listen, cache, ca_file, plain, joined_file, store_dir, mdns, spool }
    }
}

/// A single user's own, where there is one, else the machine's.
fn default_joined_file(surroundings: &Surroundings) -> PathBuf {
    let system = PathBuf::from(SYSTEM_JOINED_FILE);
    if surroundings.is_root {
        return system;
    }
    let config_home = surroundings.xdg_config_home.clone();
    let config_home =
        config_home.or_else(|| surroundings.home.as_deref().map(|home| home.join(".config")));
    let own = config_home.map(|folder| folder.join(Path::new(USER_JOINED_FILE)));
    own.filter(|own| own.exists() || !system.exists()).unwrap_or(system)
}
