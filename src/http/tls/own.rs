//! The certificate authority of this cache and the certificates by it: made once and when needed,
//! kept in `<state-dir>/tls`, for their owner only.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData as _,
    SanType,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tracing::warn;

use super::{Ca, Change, Error, Names, pair, read_pem};
use crate::pinned::CaFingerprint;
use crate::{ciphers, durable};

/// The year in which all that is made here begins: a Pi has no clock of its own, and neither have
/// some of its clients. It lies before anything that could run this.
const BEGINS_YEAR: i32 = 2020;

/// How long the CA lasts, longer than a Pi: every machine that joined must join again when it ends.
const CA_LIFE: Duration = Duration::from_hours(20 * 8766);

/// How long a certificate lasts. It is made again without anybody's doing, so its end only matters to
/// a cache that was switched off for so long; its key lies beside that of the CA, so a shorter life
/// would protect nothing.
const LIFE: Duration = Duration::from_hours(365 * 24);

/// How long before its end another one is made: a cache in a cupboard for a winter comes back with
/// one that is good.
const RENEW_BEFORE: Duration = Duration::from_hours(90 * 24);

/// Digits of its key in the name of a CA: enough to tell two apart in a list.
const NAME_PART_LEN: usize = 8;

/// Whatever else a house has: these names lead to nobody outside of it. With the host's own names
/// and those of the configuration at its making they are all that the CA can speak for, so that
/// who has it in a browser trusts it for the house alone.
const NAMES_OF_HOUSES: [&str; 8] =
    ["local", "localhost", "home.arpa", "internal", "lan", "home", "localdomain", "fritz.box"];

/// What there is of a CA in a state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaState {
    /// None yet.
    NotYet,
    /// There was one.
    Gone,
    /// This one.
    There(CaFingerprint),
}

/// What there is of a CA in this state directory. Makes nothing.
pub fn ca_state(state_dir: &Path) -> Result<CaState, Error> {
    let own = Own::new(state_dir);
    let (pem, key) = (read_pem(&own.file("ca.pem"))?, read_pem(&own.file("ca.key"))?);
    let (Some(pem), true) = (pem, key.is_some()) else {
        return Ok(if own.had_ca() { CaState::Gone } else { CaState::NotYet });
    };
    own.certificate_of(&pem).map(|der| CaState::There(CaFingerprint::of_der(&der)))
}

/// The folder, and what is in use of it.
pub(super) struct Own {
    folder: PathBuf,
    marker: PathBuf,
    authority: Option<Authority>,
    current: Option<Current>,
    /// Names that were left out, each told once.
    left_out: BTreeSet<String>,
}

struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    verifier: Arc<WebPkiServerVerifier>,
}

/// The certificate in use and the names that it was seen to be good for.
struct Current {
    pair: Arc<CertifiedKey>,
    names: Names,
}

impl Own {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            folder: state_dir.join("tls"),
            marker: state_dir.join("tls-made"),
            authority: None,
            current: None,
            left_out: BTreeSet::new(),
        }
    }

    /// The CA, once it was read or made.
    pub(super) fn ca(&self) -> Option<Ca> {
        self.authority.as_ref().map(|authority| Ca {
            pem: authority.pem.clone().into(),
            fingerprint: CaFingerprint::of_der(&authority.der),
        })
    }

    /// The certificate to use from now on, when it is another one.
    pub(super) fn refresh(
        &mut self,
        names: &Names,
        may_make_ca: bool,
        now: Duration,
    ) -> Result<(Change, Option<Arc<CertifiedKey>>), Error> {
        if self.authority.is_none() {
            self.authority = Some(self.read_or_make_ca(names, may_make_ca, now)?);
        }
        let Some(authority) = &self.authority else { return Ok((Change::None, None)) };
        let wanted = authority.speaks_for(names, now);
        for name in names.hosts.difference(&wanted.hosts) {
            if self.left_out.insert(name.clone()) {
                warn!(%name, "the CA of this cache cannot speak for this name, it was made without it");
            }
        }
        let later = now + RENEW_BEFORE;
        if let Some(current) = &self.current
            && covers(&current.names, &wanted)
            && authority.verifies(&current.pair, &current.names, later)
        {
            return Ok((Change::None, None));
        }
        if self.current.is_none()
            && let Some(pair) = self.read_pair()
            && authority.verifies(&pair, &wanted, later)
        {
            self.current = Some(Current { pair: Arc::clone(&pair), names: wanted });
            return Ok((Change::Loaded, Some(pair)));
        }
        let pair = self.make(authority, &wanted, now)?;
        self.current = Some(Current { pair: Arc::clone(&pair), names: wanted });
        Ok((Change::Made, Some(pair)))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A marker that cannot be seen for another reason than its absence counts as one.
    fn had_ca(&self) -> bool {
        self.marker.try_exists().unwrap_or(true)
    }

    fn gone(&self) -> Error {
        Error::CaGone { folder: self.folder.clone(), marker: self.marker.clone() }
    }

    fn read_or_make_ca(
        &self,
        names: &Names,
        may_make: bool,
        now: Duration,
    ) -> Result<Authority, Error> {
        let (pem, key) = (read_pem(&self.file("ca.pem"))?, read_pem(&self.file("ca.key"))?);
        let authority = match (pem, key) {
            (Some(pem), Some(key)) => self.read_ca(pem, &key)?,
            (Some(_), None) => return Err(self.gone()),
            (None, _) if self.had_ca() => return Err(self.gone()),
            // A key alone is what a power cut left of a first start.
            (_, _) if !may_make => return Err(Error::NotNow),
            (_, _) => self.make_ca(names, now)?,
        };
        if !self.had_ca() {
            let text = "A CA was made here. When it is gone, restore it: no new one is made.\n";
            write(&self.marker, text)?;
        }
        Ok(authority)
    }

    fn make_ca(&self, names: &Names, now: Duration) -> Result<Authority, Error> {
        let folder_failed = |source| Error::Write { path: self.folder.clone(), source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(folder_failed)?;
        let key = KeyPair::generate().map_err(Error::Make)?;
        let mut params = of_ca(&key);
        params.not_before = rcgen::date_time_ymd(BEGINS_YEAR, 1, 1);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + (now + CA_LIFE);
        let own = names.hosts.iter().map(String::as_str);
        let permitted: BTreeSet<&str> = NAMES_OF_HOUSES.into_iter().chain(own).collect();
        let subtree = |name: &str| GeneralSubtree::DnsName(name.to_owned());
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: permitted.into_iter().map(subtree).collect(),
            excluded_subtrees: Vec::new(),
        });
        let pem = params.self_signed(&key).map_err(Error::Make)?.pem();
        let key = key.serialize_pem();
        write(&self.file("ca.key"), &key)?;
        write(&self.file("ca.pem"), &pem)?;
        self.read_ca(pem, &key)
    }

    fn read_ca(&self, pem: String, key: &str) -> Result<Authority, Error> {
        let (pem_file, key_file) = (self.file("ca.pem"), self.file("ca.key"));
        pair((&pem_file, &pem), (&key_file, key))?;
        let der = self.certificate_of(&pem)?;
        let key = KeyPair::from_pem(key).map_err(Error::Make)?;
        let mut roots = RootCertStore::empty();
        roots.add(der.clone()).map_err(Error::Refused)?;
        let (roots, provider) = (Arc::new(roots), Arc::new(ciphers::provider()));
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| Error::Refused(rustls::Error::General(error.to_string())))?;
        Ok(Authority { pem, der, issuer: Issuer::new(of_ca(&key), key), verifier })
    }

    fn certificate_of(&self, pem: &str) -> Result<CertificateDer<'static>, Error> {
        let what = "no certificate in PEM";
        CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| Error::Content { path: self.file("ca.pem"), what })
    }

    /// The certificate that is kept, where it can be read: else another one is made.
    fn read_pair(&self) -> Option<Arc<CertifiedKey>> {
        let (chain_file, key_file) = (self.file("server.pem"), self.file("server.key"));
        let (chain, key) = (read_pem(&chain_file).ok()??, read_pem(&key_file).ok()??);
        pair((&chain_file, &chain), (&key_file, &key)).ok()
    }

    /// A certificate with a key of its own. A power cut between its two files leaves no pair, and
    /// another one is made at the next start.
    fn make(
        &self,
        authority: &Authority,
        names: &Names,
        now: Duration,
    ) -> Result<Arc<CertifiedKey>, Error> {
        let key = KeyPair::generate().map_err(Error::Make)?;
        // The CA comes along, so that a client can tell which one it met.
        let chain = authority.sign(names, &key, now + LIFE)? + &authority.pem;
        let key = key.serialize_pem();
        let (chain_file, key_file) = (self.file("server.pem"), self.file("server.key"));
        let pair = pair((&chain_file, &chain), (&key_file, &key))?;
        if !authority.verifies(&pair, names, now) {
            let why = "the CA of this cache does not vouch for what it signed: has it ended?";
            return Err(Error::Refused(rustls::Error::General(why.to_owned())));
        }
        write(&key_file, &key)?;
        write(&chain_file, &chain)?;
        Ok(pair)
    }
}

impl Authority {
    /// The names among these that it can speak for.
    fn speaks_for(&self, names: &Names, now: Duration) -> Names {
        let is_of_houses = |name: &str| {
            NAMES_OF_HOUSES.iter().any(|house| {
                name.strip_suffix(house).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })
        };
        let hosts = names.hosts.iter().filter(|name| is_of_houses(name) || self.tries(name, now));
        Names { hosts: hosts.cloned().collect(), addresses: names.addresses.clone() }
    }

    /// Whether a certificate for this name alone would be believed: the only judge of constraints
    /// is who verifies them.
    fn tries(&self, name: &str, now: Duration) -> bool {
        let names = Names { hosts: [name.to_owned()].into(), ..Names::default() };
        let tried = || {
            let key = KeyPair::generate().ok()?;
            let pem = self.sign(&names, &key, now + LIFE).ok()?;
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
            self.believes(&der, name, now).then_some(())
        };
        tried().is_some()
    }

    fn sign(&self, names: &Names, key: &KeyPair, until: Duration) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(BEGINS_YEAR, 1, 1);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + until;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "snowberry");
        for host in &names.hosts {
            let host = host.as_str().try_into().map_err(Error::Make)?;
            params.subject_alt_names.push(SanType::DnsName(host));
        }
        let addresses = names.addresses.iter().map(|address| SanType::IpAddress(*address));
        params.subject_alt_names.extend(addresses);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(Error::Make)?;
        Ok(certificate.pem())
    }

    /// Whether this certificate would be believed then, for each of the names.
    fn verifies(&self, pair: &CertifiedKey, names: &Names, at: Duration) -> bool {
        let Ok(der) = pair.end_entity_cert() else { return false };
        let addresses = names.addresses.iter().map(ToString::to_string);
        let mut all = names.hosts.iter().cloned().chain(addresses);
        all.all(|name| self.believes(der, &name, at))
    }

    fn believes(&self, der: &CertificateDer<'_>, name: &str, at: Duration) -> bool {
        let Ok(name) = ServerName::try_from(name) else { return false };
        let at = UnixTime::since_unix_epoch(at);
        self.verifier.verify_server_cert(der, &[], &name, &[], at).is_ok()
    }
}

/// What is the same whenever a CA of this key is made or signs: its name comes from its key, so that
/// the key alone is enough to sign by.
fn of_ca(key: &KeyPair) -> CertificateParams {
    let digest = format!("{:?}", CaFingerprint::of_der(&key.subject_public_key_info()));
    let part: String = digest.chars().filter(|c| *c != ':').take(NAME_PART_LEN).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("snowberry CA {part}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn covers(covered: &Names, wanted: &Names) -> bool {
    covered.hosts.is_superset(&wanted.hosts) && covered.addresses.is_superset(&wanted.addresses)
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    durable::write_private(path, text)
        .map_err(|source| Error::Write { path: path.to_path_buf(), source })
}
