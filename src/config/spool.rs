//! The `[spool]` table: where builds wait until they are pushed, and for how long.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Problem, Surroundings};
use crate::nix::StoreDir;
use crate::spool::{Config, Pattern, Target};
use crate::units::{ByteSize, Span};

/// The spool of the whole machine's builds.
pub const SYSTEM_SPOOL: &str = "/var/lib/snowberry-spool";

/// Where `snowberry forward` listens unless configured.
const DEFAULT_TO: &str = "http://127.0.0.1:8501/push";

/// Where the token is unless configured.
const DEFAULT_TOKEN_FILE: &str = "/etc/snowberry/token";

/// What stands in for a credential that is not there: systemd takes no empty one.
const EMPTY_LEN: u64 = 1;

/// How long a build waits at most unless configured: longer than a holiday of the cache's owner.
const DEFAULT_AGE_MAX: Span = Span(std::time::Duration::from_hours(14 * 24));

/// What builds that wait take at most unless configured: a tenth of a common builder's disk.
const DEFAULT_BYTES_MAX: ByteSize = ByteSize(20 << 30);

/// Patterns at most: each is held against each build.
const EXCLUDE_MAX: usize = 256;

/// The `[spool]` table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SpoolTable {
    path: Option<PathBuf>,
    exclude: Vec<String>,
    age_max: Option<Span>,
    bytes_max: Option<ByteSize>,
    to: Option<String>,
    token_file: Option<PathBuf>,
}

impl SpoolTable {
    pub(super) fn freeze(
        self,
        store_dir: &StoreDir,
        surroundings: &Surroundings,
        told: &mut Vec<Problem>,
    ) -> Config {
        let mut tell = |message: String| told.push(Problem::of_the_whole(message));
        if self.exclude.len() > EXCLUDE_MAX {
            tell(format!("spool.exclude: more than {EXCLUDE_MAX} patterns"));
        }
        let mut exclude: Vec<Pattern> = Vec::new();
        for pattern in &self.exclude {
            match pattern.parse() {
                Ok(pattern) => exclude.push(pattern),
                Err(error) => tell(format!("spool.exclude: {error}")),
            }
        }
        let default: Target = DEFAULT_TO.parse().expect("a constant that is a URL");
        let to = match self.to.as_deref().map(str::parse) {
            None => default,
            Some(Ok(to)) => to,
            Some(Err(error)) => {
                tell(format!("spool.to: {error}"));
                default
            }
        };
        let path = self.path.unwrap_or_else(|| default_path(surroundings));
        // What systemd read as root for a service that is not: that one could not read the file.
        let handed = handed_token(surroundings);
        let needs_token_file = self.token_file.is_some() && handed.is_none();
        let token_file = handed.or(self.token_file).unwrap_or_else(|| DEFAULT_TOKEN_FILE.into());
        for (key, path) in [("path", &path), ("token-file", &token_file)] {
            if !path.is_absolute() {
                tell(format!("spool.{key}: {} is not absolute", path.display()));
            }
        }
        Config {
            path,
            exclude,
            age_max: self.age_max.unwrap_or(DEFAULT_AGE_MAX).0,
            bytes_max: self.bytes_max.unwrap_or(DEFAULT_BYTES_MAX),
            to,
            token_file,
            needs_token_file,
            store_dir: store_dir.clone(),
            nix_state_dir: nix_state_dir(store_dir, surroundings),
        }
    }
}

/// The same as systemd has it for a service whose user is made for it.
const PRIVATE_SPOOL: &str = "/var/lib/private/snowberry-spool";

/// A service that is not root's own is told by systemd that the machine's spool is its.
fn default_path(surroundings: &Surroundings) -> PathBuf {
    let is_of_service = surroundings.state_directory.as_deref().is_some_and(|list| {
        list.split(':').any(|path| [SYSTEM_SPOOL, PRIVATE_SPOOL].contains(&path))
    });
    let own = surroundings.state_home().filter(|_| !surroundings.is_root && !is_of_service);
    own.map_or_else(|| SYSTEM_SPOOL.into(), |home| home.join("snowberry/spool"))
}

/// The token that the unit hands over to whoever is not root, or an empty line for none.
fn handed_token(surroundings: &Surroundings) -> Option<PathBuf> {
    let handed = surroundings.credentials_directory.as_deref().map(|folder| folder.join("token"));
    handed.filter(|file| file.metadata().is_ok_and(|it| it.len() > EMPTY_LEN))
}

/// What Nix itself does: `/nix/var/nix` beside `/nix/store`.
fn nix_state_dir(store_dir: &StoreDir, surroundings: &Surroundings) -> PathBuf {
    let beside =
        || Path::new(store_dir.as_str()).parent().unwrap_or(Path::new("/")).join("var/nix");
    surroundings.nix_state_dir.clone().unwrap_or_else(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_systemd_hands_over_is_used_unless_it_is_an_empty_line() {
        let folder = tempfile::tempdir().unwrap();
        let surroundings = Surroundings {
            credentials_directory: Some(folder.path().into()),
            home: Some("/ada".into()),
            ..Surroundings::default()
        };
        let token_file = || frozen(SpoolTable::default(), &surroundings).0.token_file;
        assert_eq!(token_file(), Path::new(DEFAULT_TOKEN_FILE));
        std::fs::write(folder.path().join("token"), "\n").unwrap();
        assert_eq!(token_file(), Path::new(DEFAULT_TOKEN_FILE));
        std::fs::write(folder.path().join("token"), "snow_x\n").unwrap();
        assert_eq!(token_file(), folder.path().join("token"));
    }

    fn frozen(table: SpoolTable, surroundings: &Surroundings) -> (Config, Vec<Problem>) {
        let mut told = Vec::new();
        (table.freeze(&StoreDir::default(), surroundings, &mut told), told)
    }

    #[test]
    fn each_kind_of_user_has_a_spool_of_its_own() {
        let check = |surroundings: &Surroundings, path: &str| {
            let (config, told) = frozen(SpoolTable::default(), surroundings);
            assert_eq!((config.path.as_path(), told.len()), (Path::new(path), 0));
            assert_eq!(config.nix_state_dir, Path::new("/nix/var/nix"));
        };
        let root = Surroundings { is_root: true, ..Surroundings::default() };
        check(&root, SYSTEM_SPOOL);
        let ada = Surroundings { home: Some("/ada".into()), ..Surroundings::default() };
        check(&ada, "/ada/.local/state/snowberry/spool");
        let elsewhere = Surroundings { xdg_state_home: Some("/x".into()), ..ada.clone() };
        check(&elsewhere, "/x/snowberry/spool");
        for given in [SYSTEM_SPOOL, PRIVATE_SPOOL] {
            let state_directory = Some(format!("/var/lib/snowberry-forward:{given}"));
            check(&Surroundings { state_directory, ..ada.clone() }, SYSTEM_SPOOL);
        }
        let nix_state_dir = Some(PathBuf::from("/n"));
        let (config, _) = frozen(SpoolTable::default(), &Surroundings { nix_state_dir, ..root });
        assert_eq!(config.nix_state_dir, Path::new("/n"));
    }

    #[test]
    fn a_service_has_its_token_from_systemd() {
        let folder = tempfile::tempdir().unwrap();
        let credentials_directory = Some(folder.path().to_path_buf());
        let service = Surroundings { credentials_directory, ..Surroundings::default() };
        let check = |configured: Option<&str>, file: &Path, needed: bool| {
            let token_file = configured.map(PathBuf::from);
            let table = SpoolTable { token_file, ..SpoolTable::default() };
            let (config, _) = frozen(table, &service);
            assert_eq!((config.token_file.as_path(), config.needs_token_file), (file, needed));
        };
        check(None, Path::new(DEFAULT_TOKEN_FILE), false);
        check(Some("/etc/t"), Path::new("/etc/t"), true);
        let credential = folder.path().join("token");
        std::fs::write(&credential, "snow_x\n").unwrap();
        check(None, &credential, false);
        check(Some("/etc/t"), &credential, false);
    }

    #[test]
    fn what_cannot_work_is_told_and_leaves_the_defaults() {
        let table = SpoolTable {
            path: Some("spool".into()),
            exclude: vec!["*-source".into(), "a b".into()],
            to: Some("s3://bucket".into()),
            token_file: Some("token".into()),
            ..SpoolTable::default()
        };
        let (config, told) = frozen(table, &Surroundings::default());
        let starts = ["spool.exclude: ", "spool.to: ", "spool.path: spool", "spool.token-file: t"];
        assert_eq!(told.len(), starts.len(), "{told:?}");
        for (told, start) in told.iter().zip(starts) {
            assert!(told.message.starts_with(start), "{told}");
        }
        assert_eq!((config.exclude.len(), config.to.to_string().as_str()), (1, DEFAULT_TO));
    }
}
