//! AWS credentials: environment, then profile files, in the order of facts that Nix users know.
//! Values are never printed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;

/// Longest profile file: thousands of profiles.
const FILE_LEN_MAX: u64 = 1024 * 1024;

/// How long files are taken to be as they were: keys change by hand, and a closure is hundreds of
/// questions.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why credentials that should be there cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialsError {
    /// A file that was named cannot be read.
    #[error("cannot read {}: is it there, and may snowberry read it?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// The file that was named has not the profile, or not its keys.
    #[error(
        "{} has no aws_access_key_id and aws_secret_access_key in [{profile}]: add them, or name \
         another profile with ?profile= in the URL",
        path.display()
    )]
    Profile {
        /// The file.
        path: PathBuf,
        /// The profile.
        profile: String,
    },
    /// The keys cannot be used: they have characters that no key has.
    #[error("the keys cannot sign: are they whole, and nothing but the keys?")]
    Sign,
}

/// Where the keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// The configuration's credentials-file: its keys or none.
    Named(PathBuf),
    /// The environment's own keys, which do not change.
    Environment,
    /// The files that AWS tools share: credentials, config.
    Shared { credentials: Option<PathBuf>, config: Option<PathBuf> },
}

/// Finds keys, and finds them again when their file changes.
pub(super) struct Provider {
    source: Source,
    profile: String,
    seen: Mutex<Option<Seen>>,
}

/// What was found last.
struct Seen {
    looked_at: Instant,
    stamps: Vec<Option<(SystemTime, u64)>>,
    found: Result<Option<Credentials>, CredentialsError>,
}

impl Provider {
    /// `profile` is the URL's; `var` reads the environment.
    pub(super) fn new(
        file: Option<&Path>,
        profile: Option<&str>,
        var: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let profile = profile.map(str::to_owned).or_else(|| var("AWS_PROFILE"));
        let profile = profile.unwrap_or_else(|| "default".to_owned());
        let keys = || {
            let (key, secret) = (var("AWS_ACCESS_KEY_ID")?, var("AWS_SECRET_ACCESS_KEY")?);
            Some(credentials(key, secret, var("AWS_SESSION_TOKEN")))
        };
        let at_home = |name: &str| Some(PathBuf::from(var("HOME")?).join(".aws").join(name));
        let at = |name: &str, usual: &str| var(name).map(PathBuf::from).or_else(|| at_home(usual));
        let mut seen = None;
        let source = if let Some(file) = file {
            Source::Named(file.to_owned())
        } else if let Some(keys) = keys() {
            let found = Ok(Some(keys));
            seen = Some(Seen { looked_at: Instant::now(), stamps: Vec::new(), found });
            Source::Environment
        } else {
            Source::Shared {
                credentials: at("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
                config: at("AWS_CONFIG_FILE", "config"),
            }
        };
        Self { source, profile, seen: Mutex::new(seen) }
    }

    /// The keys as they are now; `None` means: ask anonymously. Reads files: not for the reactor.
    pub(super) fn read(&self) -> Result<Option<Credentials>, CredentialsError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps: Vec<_> = self.files().map(stamp).collect();
        if let Some(seen) = seen.as_mut()
            && seen.stamps == stamps
            && (seen.found.is_ok() || self.source == Source::Environment)
        {
            seen.looked_at = Instant::now();
            return seen.found.clone();
        }
        let found = self.find();
        *seen = Some(Seen { looked_at: Instant::now(), stamps, found: found.clone() });
        found
    }

    /// What [`Self::read`] found a moment ago, or what the environment says.
    pub(super) fn recent(&self) -> Option<Result<Option<Credentials>, CredentialsError>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.as_ref()?;
        let fresh = self.source == Source::Environment || seen.looked_at.elapsed() < LOOK_EVERY;
        fresh.then(|| seen.found.clone())
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let (one, other) = match &self.source {
            Source::Named(path) => (Some(path), None),
            Source::Environment => (None, None),
            Source::Shared { credentials, config } => (credentials.as_ref(), config.as_ref()),
        };
        one.into_iter().chain(other).map(PathBuf::as_path)
    }

    fn find(&self) -> Result<Option<Credentials>, CredentialsError> {
        match &self.source {
            Source::Environment => Ok(None),
            Source::Named(path) => {
                let text = read_bounded(path).map_err(|source| CredentialsError::Read {
                    path: path.clone(),
                    source: Arc::new(source),
                })?;
                let found = profile(&text, &self.profile, Kind::Credentials)
                    .or_else(|| profile(&text, &self.profile, Kind::Config));
                found.map(Some).ok_or_else(|| CredentialsError::Profile {
                    path: path.clone(),
                    profile: self.profile.clone(),
                })
            }
            Source::Shared { credentials, config } => {
                let in_file = |path: &Option<PathBuf>, kind| {
                    profile(&read_bounded(path.as_ref()?).ok()?, &self.profile, kind)
                };
                Ok(in_file(credentials, Kind::Credentials)
                    .or_else(|| in_file(config, Kind::Config)))
            }
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = path.metadata().ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// A small file's text.
pub(super) fn read_bounded(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_LEN_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB"));
    }
    Ok(text)
}

fn credentials(key: String, secret: String, token: Option<String>) -> Credentials {
    Credentials::new(key, secret, token, None, "snowberry")
}

/// The two kinds of file name their sections differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `[name]`
    Credentials,
    /// `[profile name]`, and `[default]`
    Config,
}

/// The keys of a profile. Sections may come in pieces; the last value of a key counts.
fn profile(text: &str, wanted: &str, kind: Kind) -> Option<Credentials> {
    let (mut key, mut secret, mut token) = (None, None, None);
    let mut ours = false;
    for line in text.lines() {
        if line.trim().is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            let name = section.split_once(']').map(|(name, _)| name.trim());
            ours = name.is_some_and(|name| is_section(name, wanted, kind));
            continue;
        }
        // An indented line belongs to the value above it (`s3 =` and the like).
        if !ours || line.starts_with(char::is_whitespace) {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let value = Some(without_comment(value).trim().to_owned()).filter(|v| !v.is_empty());
        match name.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => key = value,
            "aws_secret_access_key" => secret = value,
            "aws_session_token" => token = value,
            _ => {}
        }
    }
    Some(credentials(key?, secret?, token))
}

fn is_section(name: &str, wanted: &str, kind: Kind) -> bool {
    let named = match kind {
        Kind::Credentials => Some(name),
        Kind::Config if name == "default" => Some(name),
        Kind::Config => name.strip_prefix("profile").filter(|n| n.starts_with(char::is_whitespace)),
    };
    named.is_some_and(|name| name.trim().trim_matches('"') == wanted)
}

/// A comment begins at `#` or `;` after white space: keys have both characters inside.
fn without_comment(value: &str) -> &str {
    let mut after_space = false;
    for (at, c) in value.char_indices() {
        if after_space && matches!(c, '#' | ';') {
            return value.get(..at).unwrap_or(value);
        }
        after_space = c.is_whitespace();
    }
    value
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn keys(found: Option<Credentials>) -> Option<Plain> {
        let found = found?;
        let token = found.session_token().map(str::to_owned);
        Some((found.access_key_id().into(), found.secret_access_key().into(), token))
    }

    type Plain = (String, String, Option<String>);

    fn plain(key: &str, secret: &str) -> Plain {
        (key.into(), secret.into(), None)
    }

    #[test]
    fn profiles_are_read_as_aws_tools_write_them() {
        let check = |text: &str, kind, wanted: Option<(&str, &str)>| {
            let wanted = wanted.map(|(key, secret)| plain(key, secret));
            assert_eq!(keys(profile(text, "me", kind)), wanted, "{text}");
        };
        let credentials = Kind::Credentials;
        let k = "aws_access_key_id=K\naws_secret_access_key=S\n";
        check(&format!("[me]\n{k}"), credentials, Some(("K", "S")));
        check(&format!("[default]\n{k}"), credentials, None);
        check(&format!("[profile me]\n{k}"), Kind::Config, Some(("K", "S")));
        check(&format!("[me]\n{k}"), Kind::Config, None);
        check(&format!("[profileme]\n{k}"), Kind::Config, None);
        check(&format!("[ me ] # c\n{k}"), credentials, Some(("K", "S")));
        check(
            "[me]\r\naws_access_key_id = K\r\nAWS_Secret_Access_Key = a/b+c=\r\n",
            credentials,
            Some(("K", "a/b+c=")),
        );
        check(
            "[me]\naws_access_key_id=K ; c\naws_secret_access_key=S#;s # c\n",
            credentials,
            Some(("K", "S#;s")),
        );
        check(
            "[me]\n# aws_access_key_id=no\n;x\naws_access_key_id=K\naws_secret_access_key=S",
            credentials,
            Some(("K", "S")),
        );
        check(
            "[me]\ns3 =\n  aws_access_key_id = no\naws_access_key_id=K\naws_secret_access_key=S\n",
            credentials,
            Some(("K", "S")),
        );
        check(
            "[me]\naws_access_key_id=old\n[x]\naws_access_key_id=x\n[me]\naws_access_key_id=K\n\
            aws_secret_access_key=S\n",
            credentials,
            Some(("K", "S")),
        );
        check("[me]\naws_access_key_id=K\n", credentials, None);
        check("", credentials, None);
    }

    #[test]
    fn a_session_token_comes_along() {
        let text = "[me]\naws_access_key_id=K\naws_secret_access_key=S\naws_session_token=T\n";
        let found = keys(profile(text, "me", Kind::Credentials)).unwrap();
        assert_eq!(found.2.as_deref(), Some("T"));
    }

    #[test]
    fn the_default_section_of_a_config_file_has_no_prefix() {
        let text = "[default]\naws_access_key_id=K\naws_secret_access_key=S\n";
        assert_eq!(keys(profile(text, "default", Kind::Config)), Some(plain("K", "S")));
    }

    #[test]
    fn the_order_is_own_file_environment_shared_files_anonymous() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let section = |head: &str, key: &str| {
            format!("[{head}]\naws_access_key_id={key}\naws_secret_access_key=S\n")
        };
        let own = file("own", &section("me", "OWN"));
        let shared = file("shared", &section("me", "SHARED"));
        let config = file("config", &section("profile other", "CONFIG"));
        let var = |env: bool| {
            let (shared, config) = (shared.clone(), config.clone());
            move |name: &str| match name {
                "AWS_ACCESS_KEY_ID" if env => Some("ENV".to_owned()),
                "AWS_SECRET_ACCESS_KEY" if env => Some("S".to_owned()),
                "AWS_SHARED_CREDENTIALS_FILE" => Some(shared.to_str()?.to_owned()),
                "AWS_CONFIG_FILE" => Some(config.to_str()?.to_owned()),
                _ => None,
            }
        };
        let read = |provider: Provider| keys(provider.read().unwrap());
        let own = Some(own.as_path());
        assert_eq!(read(Provider::new(own, Some("me"), var(true))), Some(plain("OWN", "S")));
        assert_eq!(read(Provider::new(None, Some("me"), var(true))), Some(plain("ENV", "S")));
        assert_eq!(read(Provider::new(None, Some("me"), var(false))), Some(plain("SHARED", "S")));
        assert_eq!(
            read(Provider::new(None, Some("other"), var(false))),
            Some(plain("CONFIG", "S"))
        );
        assert_eq!(read(Provider::new(None, None, var(false))), None);
        assert!(Provider::new(own, Some("other"), var(true)).read().is_err());
    }

    #[test]
    fn a_file_that_changed_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let provider = Provider::new(Some(file.path()), None, |_| None);
        assert!(provider.read().is_err());
        let text = "[default]\naws_access_key_id=K\naws_secret_access_key=S\n";
        fs::write(file.path(), text).unwrap();
        assert_eq!(keys(provider.read().unwrap()), Some(plain("K", "S")));
        fs::write(file.path(), text.replace("=K", "=KK")).unwrap();
        assert_eq!(keys(provider.read().unwrap()), Some(plain("KK", "S")));
    }
}
