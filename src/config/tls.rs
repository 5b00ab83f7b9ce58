//! The `[tls]` table: where TLS is spoken, and by whose certificate.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::check::readable;
use super::{Files, Problem};

/// The checked `[tls]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Where to listen, besides the sockets that systemd hands over for it. Without either there is
    /// no TLS.
    pub listen: Vec<SocketAddr>,
    /// A certificate from elsewhere; without it one of our own making.
    pub files: Option<TlsFiles>,
}

/// A certificate from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, its chain behind it, in PEM.
    pub certificate: PathBuf,
    /// Its key in PEM.
    pub key: PathBuf,
}

/// The `[tls]` table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct TlsTable {
    listen: Option<Vec<SocketAddr>>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

impl TlsTable {
    pub(super) fn freeze(self, problems: &mut Vec<Problem>) -> Tls {
        let mut tell = |message: &str| problems.push(Problem::of_the_whole(message));
        if self.listen.as_ref().is_some_and(Vec::is_empty) {
            tell("tls.listen: an empty list; leave it out for no TLS");
        }
        let files = match (self.certificate_file, self.key_file) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                tell("tls.key-file: missing, certificate-file needs the key that belongs to it");
                None
            }
            (None, Some(_)) => {
                tell("tls.certificate-file: missing, key-file needs the certificate it belongs to");
                None
            }
        };
        Tls { listen: self.listen.unwrap_or_default(), files }
    }
}

pub(super) fn problems(tls: &Tls, looked_for: Files) -> Vec<Problem> {
    let files = tls.files.iter().flat_map(|files| {
        [("tls.certificate-file", &files.certificate), ("tls.key-file", &files.key)]
    });
    files
        .filter_map(|(key, path)| {
            readable(path, looked_for).err().map(|error| format!("{key}: {error}"))
        })
        .map(Problem::of_the_whole)
        .collect()
}
