//! Who the server is over TLS: a certificate of its own making, or one from files. The certificate
//! may change while connections are open; whoever shakes hands gets the one of that moment.

mod files;
mod own;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::ciphers;
use crate::pinned::CaFingerprint;

pub use own::{CaState, ca_state};

/// What is spoken, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The beginning of 2026 since 1970, before which this version did not exist: a Pi whose
/// clock says less has not heard the time yet, and what it signs is dated as if it were then.
const CLOCK_MIN: Duration = Duration::from_hours(490_896);

/// The year 2100: a clock that says more is wrong, and dates must fit what X.509 can say.
const CLOCK_MAX: Duration = Duration::from_hours(1_139_568);

/// Longest PEM file that is read: a chain of certificates has some KiB.
const PEM_LEN_MAX: u64 = 1 << 20;

/// The names and addresses that a certificate is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Host names, in lower case, without a final dot.
    pub hosts: BTreeSet<String>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// Why there is no certificate, or no newer one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file has something else in it.
    #[error("{} holds {what}", path.display())]
    Content {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Certificate and key are no pair.
    #[error("the key in {} is not that of the certificate in {}", key.display(), certificate.display())]
    NoPair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// There was a CA here.
    #[error(
        "the CA of this cache is gone, restore {} from its backup: no new one is made, because \
         the machines that joined would refuse it (to begin afresh remove {} and join again)",
        folder.display(), marker.display()
    )]
    CaGone {
        /// Where it was.
        folder: PathBuf,
        /// What says that it was.
        marker: PathBuf,
    },
    /// There is no CA yet, and this is no time to make one.
    #[error("no CA is made while the store is not open")]
    NotNow,
    /// A certificate cannot be made.
    #[error("make a certificate")]
    Make(#[source] rcgen::Error),
    /// What was made or read is not accepted by TLS.
    #[error("use a certificate")]
    Refused(#[source] rustls::Error),
}

/// What a look at the certificate led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It goes on.
    None,
    /// One that was there is used.
    Loaded,
    /// Another one was made.
    Made,
}

/// Who the server is; clones are the same one.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    source: Mutex<Source>,
    shown: Arc<Shown>,
    ca: RwLock<Option<Ca>>,
}

enum Source {
    Own(Box<own::Own>),
    Files(files::Files),
}

/// The CA of our own making, as it is handed out.
#[derive(Clone)]
struct Ca {
    pem: Bytes,
    fingerprint: CaFingerprint,
}

/// The certificate of this moment.
#[derive(Debug, Default)]
struct Shown(RwLock<Option<Arc<CertifiedKey>>>);

impl Identity {
    /// A CA and certificates of our own making, kept in this state directory.
    pub fn own(state_dir: &Path) -> Self {
        Self::new(Source::Own(Box::new(own::Own::new(state_dir))))
    }

    /// A certificate (its chain behind it) and a key from PEM files.
    pub fn of_files(certificate: &Path, key: &Path) -> Self {
        Self::new(Source::Files(files::Files::new(certificate, key)))
    }

    fn new(source: Source) -> Self {
        let (source, shown, ca) = (Mutex::new(source), Arc::default(), RwLock::default());
        Self { inner: Arc::new(Inner { source, shown, ca }) }
    }

    /// Looks whether the certificate is still right for these names and this time, and makes or
    /// reads another one where it is not. Reads and writes files, so not on the reactor. Whatever
    /// fails, the certificate before goes on.
    pub fn refresh(
        &self,
        names: &Names,
        may_make_ca: bool,
        now: SystemTime,
    ) -> Result<Change, Error> {
        let inner = &*self.inner;
        let mut source = inner.source.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *source {
            Source::Files(files) => match files.read_changed()? {
                None => Ok(Change::None),
                Some(key) => {
                    inner.shown.set(key);
                    Ok(Change::Loaded)
                }
            },
            Source::Own(own) => {
                let looked = own.refresh(names, may_make_ca, clamped(now));
                if let Some(ca) = own.ca() {
                    *inner.ca.write().unwrap_or_else(PoisonError::into_inner) = Some(ca);
                }
                let (change, key) = looked?;
                if let Some(key) = key {
                    inner.shown.set(key);
                }
                Ok(change)
            }
        }
    }

    /// The fingerprint of the CA of our own making.
    pub fn ca(&self) -> Option<CaFingerprint> {
        self.of_ca(|ca| ca.fingerprint)
    }

    /// The SHA-256 of that CA's DER.
    pub fn ca_sha256(&self) -> Option<[u8; 32]> {
        self.ca().map(|fingerprint| fingerprint.0)
    }

    /// That CA as PEM.
    pub(super) fn ca_pem(&self) -> Option<Bytes> {
        self.of_ca(|ca| ca.pem.clone())
    }

    fn of_ca<T>(&self, part: impl FnOnce(&Ca) -> T) -> Option<T> {
        self.inner.ca.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(part)
    }

    /// What shakes hands for this identity.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ciphers::provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Shown>::clone(&self.inner.shown));
        config.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
        // Else the client's order holds: one without AES of its own puts ChaCha20 first itself.
        config.ignore_client_order = !ciphers::has_aes();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Shown {
    fn set(&self, key: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }
}

impl ResolvesServerCert for Shown {
    /// The same one whatever name is asked for: clients judge it.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The time in which certificates are dated and judged, since 1970.
fn clamped(now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().clamp(CLOCK_MIN, CLOCK_MAX)
}

/// A PEM file's text; `None` when it is not there.
fn read_pem(path: &Path) -> Result<Option<String>, Error> {
    use std::io::Read as _;
    let failed = |source| Error::Read { path: path.to_path_buf(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(PEM_LEN_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// Certificate chain and key of two PEM texts, if they belong together.
fn pair(
    (chain_file, chain): (&Path, &str),
    (key_file, key): (&Path, &str),
) -> Result<Arc<CertifiedKey>, Error> {
    let content = |path: &Path, what| Error::Content { path: path.to_path_buf(), what };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let chain = chain.map_err(|_| content(chain_file, "a certificate that is damaged"))?;
    if chain.is_empty() {
        return Err(content(chain_file, "no certificate in PEM"));
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|_| content(key_file, "no private key in PEM"))?;
    match CertifiedKey::from_der(chain, key, &ciphers::provider()) {
        Ok(pair) => Ok(Arc::new(pair)),
        Err(rustls::Error::InconsistentKeys(_)) => Err(Error::NoPair {
            certificate: chain_file.to_path_buf(),
            key: key_file.to_path_buf(),
        }),
        Err(error) => Err(Error::Refused(error)),
    }
}

#[cfg(test)]
mod tests;
