//! The `[[upstream]]` tables of the configuration, and what can be wrong with them.

use std::{fmt, io, path::PathBuf, sync::Arc};

use serde::Deserialize;

use super::credentials::CredentialsError;
use crate::nix::signature::KeyError;
use crate::units::ByteSize;

/// One `[[upstream]]` table of the configuration.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where the other cache is: `https://...`, `http://...`, `s3://bucket?endpoint=...` as Nix
    /// writes it, or `file:///...` for a folder.
    pub url: String,
    /// Keys whose signatures count for this upstream, each `name:base64`.
    #[serde(default)]
    pub trusted_public_keys: Vec<String>,
    /// Takes what this upstream says without any signature. Only for a cache that is as much
    /// yours as this one.
    #[serde(default)]
    pub unsigned: bool,
    /// PEM file of a private certificate authority, trusted beside the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// AWS credentials file (`[profile]` sections with `aws_access_key_id` and
    /// `aws_secret_access_key`); read again when it changes. Only for `s3://`.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// netrc file with name and password for this host. Only for `http://` and `https://`.
    #[serde(default)]
    pub netrc_file: Option<PathBuf>,
    /// File of header lines (`Authorization: Bearer ...`) sent with each request to this host.
    /// Only for `http://` and `https://`.
    #[serde(default)]
    pub headers_file: Option<PathBuf>,
    /// Carries what the house builds there. Only for `s3://` and `file://`.
    #[serde(default)]
    pub push: bool,
    /// Bytes a second of NARs that are fetched from there, all together.
    #[serde(default)]
    pub limit: Option<ByteSize>,
}

/// Without what stands before an `@` in the URL: it may be a password.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &redact(&self.url))
            .field("trusted_public_keys", &self.trusted_public_keys)
            .field("unsigned", &self.unsigned)
            .field("ca_file", &self.ca_file)
            .field("credentials_file", &self.credentials_file)
            .field("netrc_file", &self.netrc_file)
            .field("headers_file", &self.headers_file)
            .field("push", &self.push)
            .field("limit", &self.limit)
            .finish()
    }
}

/// What is wrong with an `[[upstream]]` table, and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConfigError {
    /// The URL does not parse or names nothing that can be asked.
    #[error("upstream {url}: {why}")]
    Url {
        /// The URL without user data.
        url: String,
        /// A sentence.
        why: &'static str,
    },
    /// Neither keys nor `unsigned = true`.
    #[error(
        "upstream {url} has no trusted-public-keys: list the keys that sign its paths, or say \
         `unsigned = true` to take them without any signature"
    )]
    NoKeys {
        /// The URL without user data.
        url: String,
    },
    /// Keys and `unsigned = true`.
    #[error(
        "upstream {url} has trusted-public-keys and `unsigned = true`: take one of the two away"
    )]
    KeysAndUnsigned {
        /// The URL without user data.
        url: String,
    },
    /// One of the keys does not parse.
    #[error("upstream {url}: trusted-public-keys has a key that is not `name:base64`")]
    Key {
        /// The URL without user data.
        url: String,
        /// What is wrong with it.
        source: KeyError,
    },
    /// A key of the configuration that this kind of upstream does not read.
    #[error("upstream {url}: {key} does nothing for this kind of URL, take it away")]
    Pointless {
        /// The URL without user data.
        url: String,
        /// The configuration's key.
        key: &'static str,
    },
    /// `push = true` where nothing can be put.
    #[error(
        "upstream {url}: push = true is for s3:// and file:/// only: take it away, or push to the \
         bucket or the folder behind it"
    )]
    NoTarget {
        /// The URL without user data.
        url: String,
    },
    /// So slow that transfers would be taken for dead.
    #[error("upstream {url}: limit is less than {min} a second; leave it out for no bound")]
    Limit {
        /// The URL without user data.
        url: String,
        /// The lowest one.
        min: ByteSize,
    },
    /// A file that cannot be read.
    #[error("upstream {url}: cannot read {key} {}: is it there, and may snowberry read it?",
        path.display())]
    File {
        /// The URL without user data.
        url: String,
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// A file whose contents are not what they should be.
    #[error("upstream {url}: {key} {}: {why}", path.display())]
    Contents {
        /// The URL without user data.
        url: String,
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// A sentence without any of the file's contents.
        why: String,
    },
    /// The credentials that are named cannot be had.
    #[error("upstream {url}: credentials-file")]
    Credentials {
        /// The URL without user data.
        url: String,
        /// Why, and what to do.
        source: CredentialsError,
    },
    /// The TLS library refuses its own set-up.
    #[error("upstream {url}: set up TLS")]
    Tls {
        /// The URL without user data.
        url: String,
        /// Why.
        source: Arc<rustls::Error>,
    },
}

/// A URL without its user data, query and fragment where it is no `s3://`; whatever it is, nothing
/// between `//` and `@` is kept.
pub(super) fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at_checked(authority_end).unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let tail = if scheme.eq_ignore_ascii_case("s3") {
        tail
    } else {
        tail.find(['?', '#']).and_then(|end| tail.split_at_checked(end)).map_or(tail, |(t, _)| t)
    };
    format!("{scheme}://{host}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_url_has_no_user_data() {
        let check = |url: &str, redacted: &str| assert_eq!(redact(url), redacted);
        check("https://me:pw@h.example/a", "https://h.example/a");
        check("https://me:p@w@h.example?x=y", "https://h.example");
        check("https://h.example/a@b", "https://h.example/a@b");
        check("s3://b?endpoint=https://m", "s3://b?endpoint=https://m");
        check("no url", "no url");
    }

    #[test]
    fn debug_does_not_print_the_password() {
        let text = r#"url = "https://me:secret@h.example""#;
        let config: Config = toml::from_str(text).unwrap();
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = "url = \"https://h.example\"\ntrusted-public-key = []";
        assert!(toml::from_str::<Config>(text).is_err());
    }
}
