//! The `[push]` and `[admin]` tables: who may write, what is carried up, and who may command.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Problem, Surroundings};
use crate::units::ByteSize;

/// The longest NAR that is taken by upload, decoded, unless configured: larger than any compiler or
/// game, smaller than most disks.
const DEFAULT_NAR_SIZE_MAX: ByteSize = ByteSize(64 << 30);

/// Below this much a second a push of one compiler takes days.
const LIMIT_MIN: ByteSize = ByteSize(1 << 10);

/// What a path of a socket may have in `sockaddr_un` of Linux, without its end.
const SOCKET_PATH_LEN_MAX: usize = 107;

/// Where the admin socket of the machine's own cache is.
pub const SYSTEM_ADMIN_SOCKET: &str = "/run/snowberry/admin.sock";

/// What gets this cache's own signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// What was pushed, and nothing else.
    #[default]
    Pushed,
    /// Also what was fetched, where a signature that its upstream is trusted for held.
    Verified,
}

/// The checked `[push]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Where the tokens of writers are.
    pub tokens_file: PathBuf,
    /// Whether a token is taken over plain HTTP from other machines.
    pub plain: bool,
    /// Whether what another upstream has is carried up as well.
    pub everything: bool,
    /// Bytes a second that all targets together get; `None` is no bound.
    pub limit: Option<ByteSize>,
    /// Longest NAR that is taken, decoded.
    pub nar_size_max: ByteSize,
    /// What gets our own signature.
    pub sign: Sign,
}

/// The checked `[admin]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The socket of those who may command.
    pub socket: PathBuf,
    /// Whether the configuration names it; else it is where such a socket is by custom.
    pub is_configured: bool,
}

/// The `[push]` table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct PushTable {
    tokens_file: Option<PathBuf>,
    plain: bool,
    everything: bool,
    limit: Option<ByteSize>,
    nar_size_max: Option<ByteSize>,
    sign: Sign,
}

impl PushTable {
    pub(super) fn freeze(self, state_dir: &Path) -> Push {
        Push {
            tokens_file: self.tokens_file.unwrap_or_else(|| state_dir.join("tokens")),
            plain: self.plain,
            everything: self.everything,
            limit: self.limit,
            nar_size_max: self.nar_size_max.unwrap_or(DEFAULT_NAR_SIZE_MAX),
            sign: self.sign,
        }
    }
}

/// The `[admin]` table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct AdminTable {
    socket: Option<PathBuf>,
}

impl AdminTable {
    /// Without a path: in systemd's runtime directory, or `/run/snowberry` for the cache of the
    /// whole machine, else with the state. Two caches on one machine have two state directories.
    pub(super) fn freeze(self, state_dir: &Path, surroundings: &Surroundings) -> Admin {
        let is_configured = self.socket.is_some();
        let is_system = surroundings.is_root && state_dir == Path::new(super::SYSTEM_STATE_DIR);
        let first = surroundings.runtime_directory.as_deref().and_then(|it| it.split(':').next());
        let socket = match (self.socket, first.filter(|first| first.starts_with('/'))) {
            (Some(socket), _) => socket,
            (None, Some(folder)) => Path::new(folder).join("admin.sock"),
            (None, None) if is_system => PathBuf::from(SYSTEM_ADMIN_SOCKET),
            (None, None) => state_dir.join("admin.sock"),
        };
        Admin { socket, is_configured }
    }
}

pub(super) fn problems(push: &Push, admin: &Admin) -> Vec<Problem> {
    let mut told = Vec::new();
    let mut tell = |message: String| told.push(Problem::of_the_whole(message));
    if !push.tokens_file.is_absolute() {
        tell(format!("push.tokens-file: {} is not absolute", push.tokens_file.display()));
    }
    if push.limit.is_some_and(|limit| limit < LIMIT_MIN) {
        tell(format!("push.limit: less than {LIMIT_MIN} a second; leave it out for no bound"));
    }
    if push.nar_size_max == ByteSize(0) {
        tell("push.nar-size-max: nothing could be pushed; leave it out for 64 GiB".to_owned());
    }
    let socket = admin.socket.display();
    if !admin.socket.is_absolute() {
        tell(format!("admin.socket: {socket} is not absolute"));
    }
    if admin.is_configured && admin.socket.as_os_str().len() > SOCKET_PATH_LEN_MAX {
        tell(format!("admin.socket: {socket} is longer than {SOCKET_PATH_LEN_MAX} characters"));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_socket_is_found_where_each_kind_of_cache_has_it() {
        let check = |state_dir: &str, surroundings: &Surroundings, socket: &str| {
            let admin = AdminTable::default().freeze(Path::new(state_dir), surroundings);
            assert_eq!(admin.socket, Path::new(socket));
        };
        let root = Surroundings { is_root: true, ..Surroundings::default() };
        check("/var/lib/snowberry", &root, "/run/snowberry/admin.sock");
        check("/srv/second", &root, "/srv/second/admin.sock");
        check("/ada/state", &Surroundings::default(), "/ada/state/admin.sock");
        let unit = Surroundings { runtime_directory: Some("/run/a:/run/b".into()), ..root };
        check("/var/lib/snowberry", &unit, "/run/a/admin.sock");
        let configured = AdminTable { socket: Some("/x.sock".into()) };
        assert_eq!(configured.freeze(Path::new("/s"), &unit).socket, Path::new("/x.sock"));
    }
}
