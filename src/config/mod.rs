//! Puts together each floor's own `Config`: load, check, freeze. Every problem is told at once, with
//! its file and line. Knows nothing of sockets or tasks.

mod check;
mod forward;
mod keys;
mod mdns;
mod page;
mod push;
mod scrub;
mod source;
mod spool;
mod tls;
mod update;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::nix::StoreDir;
use crate::{mdns as speaking, store, upstream};

use source::Source;

pub use keys::{KEYS, Key};
pub use page::Page;
pub use push::{Admin, Push, SYSTEM_ADMIN_SOCKET, Sign};
pub use scrub::Scrub;
pub use spool::SYSTEM_SPOOL;
pub use tls::{Tls, TlsFiles};

/// Where the configuration is looked for when neither `--config` nor `$SNOWBERRY_CONFIG` names one.
pub const DEFAULT_FILE: &str = "/etc/snowberry/snowberry.toml";

/// Where `serve` listens unless it is configured or handed sockets: on this machine only.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8500";

/// The upstream of a configuration that names none.
pub const DEFAULT_UPSTREAM: &str = "https://cache.nixos.org";

/// The key of [`DEFAULT_UPSTREAM`], as Nix itself ships it.
pub const DEFAULT_UPSTREAM_KEY: &str =
    "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// The cache's name unless configured.
pub const DEFAULT_NAME: &str = "snowberry";

/// The zstd level of what is stored. Level 1 takes two thirds of the CPU and stores an eighth more.
pub const DEFAULT_COMPRESSION_LEVEL: i32 = 3;

/// The state directory of root's own cache.
const SYSTEM_STATE_DIR: &str = "/var/lib/snowberry";

/// The checked and frozen configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that was read, when there was one.
    pub file: Option<PathBuf>,
    /// Where to listen, when configured; else inherited sockets, else [`DEFAULT_LISTEN`].
    pub listen: Option<Vec<SocketAddr>>,
    /// The cache's name: in its key's name, on its page.
    pub name: String,
    /// Host names besides addresses, `localhost` and `*.local` under which the page may be asked.
    pub names: Vec<String>,
    /// Address prefixes that may ask besides the LAN's own.
    pub allow: Vec<String>,
    /// Our own key and what else must not be lost, apart from the store.
    pub state_dir: PathBuf,
    /// Nix's store directory.
    pub store_dir: StoreDir,
    /// The store's own, with its path and marker filled in.
    pub store: store::Config,
    /// The upstreams in the order in which they are asked.
    pub upstreams: Vec<upstream::Config>,
    /// How often what is stored is read again.
    pub scrub: Scrub,
    /// Who may write, and what is carried up.
    pub push: Push,
    /// Who may command.
    pub admin: Admin,
    /// How the cache is found in the house, and the caches of the house from here.
    pub mdns: speaking::Config,
    /// Where this machine's builds wait until they are pushed.
    pub spool: crate::spool::Config,
    /// Where TLS is spoken.
    pub tls: Tls,
    /// What the page shows.
    pub page: Page,
    /// The client's side.
    pub forward: crate::forward::Config,
    /// Where updates of the appliance come from.
    pub update: crate::update::Config,
    /// Where the parts of the appliance tell the daemon how they are.
    pub appliance_notes: PathBuf,
}

/// Why there is no configuration. Exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What it says is wrong.
    #[error("{0}")]
    Wrong(Problems),
}

/// Everything that is wrong with a configuration, one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `file:line`, `--set KEY=VALUE`, or empty when it is about the whole.
    pub place: String,
    /// What is wrong, in a sentence that says what to do.
    pub message: String,
}

impl Problem {
    pub(crate) fn of_the_whole(message: impl Into<String>) -> Self {
        Self { place: String::new(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            write!(f, "{}", self.message)
        } else {
            write!(f, "{}: {}", self.place, self.message)
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{problem}")?;
        }
        Ok(())
    }
}

/// What of the process's surroundings decides where things are; an argument, so that tests choose.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `$SNOWBERRY_CONFIG`.
    pub config_file: Option<PathBuf>,
    /// The file that is read when nothing names one, if it exists.
    pub default_file: Option<PathBuf>,
    /// `$STATE_DIRECTORY`, which systemd sets for `StateDirectory=`.
    pub state_directory: Option<String>,
    /// `$RUNTIME_DIRECTORY`, which systemd sets for `RuntimeDirectory=`.
    pub runtime_directory: Option<String>,
    /// `$CREDENTIALS_DIRECTORY`, where systemd puts what `LoadCredential=` names.
    pub credentials_directory: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `$XDG_STATE_HOME`.
    pub xdg_state_home: Option<PathBuf>,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// `$NIX_STATE_DIR`.
    pub nix_state_dir: Option<PathBuf>,
    /// Whether the process runs as root.
    pub is_root: bool,
    /// Whether the files that the configuration names are looked for.
    pub files: Files,
}

/// Where the files are that a configuration names: certificates, credentials.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Files {
    /// On this machine: one that cannot be read is a mistake.
    #[default]
    Here,
    /// The configuration is for another machine, or for later.
    Elsewhere,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let folder = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        Self {
            config_file: std::env::var_os("SNOWBERRY_CONFIG")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
            default_file: Some(PathBuf::from(DEFAULT_FILE)),
            state_directory: std::env::var("STATE_DIRECTORY").ok(),
            runtime_directory: std::env::var("RUNTIME_DIRECTORY").ok(),
            credentials_directory: folder("CREDENTIALS_DIRECTORY"),
            xdg_config_home: folder("XDG_CONFIG_HOME"),
            xdg_state_home: folder("XDG_STATE_HOME"),
            home: folder("HOME"),
            nix_state_dir: folder("NIX_STATE_DIR"),
            // The owner of a process's own folder there is its effective user.
            is_root: std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0),
            files: Files::Here,
        }
    }

    /// The state directory of a configuration that names none.
    fn state_dir(&self) -> Option<PathBuf> {
        // systemd separates several by colons; the first is the main one.
        let systemd = self.state_directory.as_deref().and_then(|list| list.split(':').next());
        if let Some(first) = systemd.filter(|first| first.starts_with('/')) {
            return Some(PathBuf::from(first));
        }
        if self.is_root {
            return Some(PathBuf::from(SYSTEM_STATE_DIR));
        }
        self.state_home().map(|state_home| state_home.join("snowberry"))
    }

    /// Where the state of a user's programs is.
    fn state_home(&self) -> Option<PathBuf> {
        let state_home = self.xdg_state_home.clone();
        state_home.or_else(|| self.home.as_ref().map(|home| home.join(".local/state")))
    }
}

/// The file as it is written. `config/keys.rs` documents each key; a test holds the two together.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    listen: Option<Vec<SocketAddr>>,
    name: Option<String>,
    names: Vec<String>,
    allow: Vec<String>,
    state_dir: Option<PathBuf>,
    store_dir: Option<String>,
    store: store::Config,
    scrub: scrub::ScrubTable,
    upstream: Option<Vec<upstream::Config>>,
    push: push::PushTable,
    admin: push::AdminTable,
    mdns: speaking::Config,
    spool: spool::SpoolTable,
    tls: tls::TlsTable,
    page: Page,
    forward: forward::ForwardTable,
    update: update::UpdateTable,
    appliance: update::ApplianceTable,
}

/// Reads the file (`--config`, else `$SNOWBERRY_CONFIG`, else the default one if it exists, else
/// none), lays the `--set KEY=TOML-VALUE` over it in their order, and checks the whole.
pub fn load(
    file: Option<&Path>,
    sets: &[String],
    surroundings: &Surroundings,
) -> Result<Config, Error> {
    let named = file.or(surroundings.config_file.as_deref());
    let text = match (named, surroundings.default_file.as_deref()) {
        (Some(path), _) => Some((path, read(path)?)),
        (None, Some(path)) if path.exists() => Some((path, read(path)?)),
        (None, _) => None,
    };
    let file = text.as_ref().map(|(path, _)| path.to_path_buf());
    let mut sources = Vec::new();
    if let Some((path, text)) = text {
        sources.push(Source::file(path, text));
    }
    sources.extend(sets.iter().map(|set| Source::set(set)));
    freeze(source::merge(&sources)?, file, surroundings)
}

/// The configuration that a text is which no file has yet.
pub fn parse(text: &str, surroundings: &Surroundings) -> Result<Config, Error> {
    let source = Source::file(Path::new("snowberry.toml"), text.to_owned());
    freeze(source::merge(&[source])?, None, surroundings)
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}

fn freeze(
    document: Document,
    file: Option<PathBuf>,
    surroundings: &Surroundings,
) -> Result<Config, Error> {
    let mut problems = Vec::new();
    let state_dir = document.state_dir.or_else(|| surroundings.state_dir()).unwrap_or_else(|| {
        let message = "state-dir: no default can be found without $HOME; set it";
        problems.push(Problem::of_the_whole(message));
        PathBuf::new()
    });
    let store_dir = match document.store_dir.as_deref().map(StoreDir::parse) {
        None => StoreDir::default(),
        Some(Ok(store_dir)) => store_dir,
        Some(Err(error)) => {
            problems.push(Problem::of_the_whole(format!("store-dir: {error}")));
            StoreDir::default()
        }
    };
    let mut store = document.store;
    store.path.get_or_insert_with(|| state_dir.join("store"));
    store.marker = Some(state_dir.join("store-begun"));
    let push = document.push.freeze(&state_dir);
    let admin = document.admin.freeze(&state_dir, surroundings);
    let spool = document.spool.freeze(&store_dir, surroundings, &mut problems);
    let tls = document.tls.freeze(&mut problems);
    let beside = (document.mdns.clone(), spool.clone());
    let forward = document.forward.freeze(store_dir.clone(), beside, surroundings, &mut problems);
    let update = document.update.freeze(surroundings.files, &mut problems);
    let appliance_notes = document.appliance.freeze(&mut problems);
    let config = Config {
        file,
        listen: document.listen,
        name: document.name.unwrap_or_else(|| DEFAULT_NAME.to_owned()),
        names: document.names,
        allow: document.allow,
        state_dir,
        store_dir,
        store,
        scrub: document.scrub.freeze(),
        upstreams: document.upstream.unwrap_or_else(|| vec![default_upstream()]),
        push,
        admin,
        mdns: document.mdns,
        spool,
        tls,
        page: document.page,
        forward,
        update,
        appliance_notes,
    };
    if !config.state_dir.as_os_str().is_empty() {
        problems.extend(check::problems(&config, surroundings.files));
    }
    if problems.is_empty() { Ok(config) } else { Err(Error::Wrong(Problems(problems))) }
}

/// What an upstream says of its own configuration, with its causes, as a problem among the others.
pub(crate) fn upstream_problem(error: &upstream::ConfigError) -> Problem {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    Problem::of_the_whole(text)
}

fn default_upstream() -> upstream::Config {
    upstream::Config {
        url: DEFAULT_UPSTREAM.to_owned(),
        trusted_public_keys: vec![DEFAULT_UPSTREAM_KEY.to_owned()],
        unsigned: false,
        ca_file: None,
        credentials_file: None,
        netrc_file: None,
        headers_file: None,
        push: false,
        limit: None,
    }
}

#[cfg(test)]
mod tests;
