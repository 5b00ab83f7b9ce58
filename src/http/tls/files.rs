//! A certificate and a key that somebody else makes and renews: read again when they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::{Error, pair, read_pem};

/// Two files, and what was in them when they were last read.
pub(super) struct Files {
    certificate: PathBuf,
    key: PathBuf,
    last: Option<(String, String)>,
}

impl Files {
    pub(super) fn new(certificate: &Path, key: &Path) -> Self {
        Self { certificate: certificate.to_path_buf(), key: key.to_path_buf(), last: None }
    }

    /// The pair, when it is another one than at the last look. What cannot be used is told once,
    /// and again only when it has changed: half of a pair is what a renewal looks like in between.
    pub(super) fn read_changed(&mut self) -> Result<Option<Arc<CertifiedKey>>, Error> {
        let texts = (read(&self.certificate)?, read(&self.key)?);
        if self.last.as_ref() == Some(&texts) {
            return Ok(None);
        }
        let found = pair((&self.certificate, &texts.0), (&self.key, &texts.1));
        self.last = Some(texts);
        found.map(Some)
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let absent = || std::io::Error::from(std::io::ErrorKind::NotFound);
    read_pem(path)?.ok_or_else(|| Error::Read { path: path.to_path_buf(), source: absent() })
}
