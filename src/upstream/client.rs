//! The hyper clients of one upstream: pools, TLS, and the guard against addresses of the house.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::http::uri::Scheme;
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::WebPkiServerVerifier;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tower_service::Service;
use url::Url;

use super::clock::{Clock, Proof, Verifier};
use super::error::{Asked, Error};
use super::location;
use super::put::Pipe;
use crate::ciphers;

/// One address: a host of the house answers in milliseconds, the far side of the world in one
/// second; a second address is tried after this.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Idle connections kept for each host: as many as clients of one house ask at once.
const IDLE_CONNECTIONS_MAX: usize = 16;

/// How long they are kept: servers close theirs after 60 s and more, `MinIO` after 30.
const IDLE_WAIT: Duration = Duration::from_secs(30);

/// A dead h2 connection must not hold every question for minutes: asked for life this often
/// while questions are on it, and given up after as long again.
const H2_PING_EVERY: Duration = Duration::from_secs(5);

/// One answer of a small question in flight on h2; narinfos are far smaller.
const H2_STREAM_WINDOW_LEN: u32 = 256 * 1024;

/// All small answers on one h2 connection.
const H2_WINDOW_LEN: u32 = 4 * 1024 * 1024;

/// Read buffer of an HTTP/1.1 connection; hyper would let it grow to 400 KiB for each NAR.
const H1_BUFFER_LEN: usize = 128 * 1024;

/// Questions that a connection's end cut off are asked again on a new one: a pooled connection
/// may be closed by the server at the moment it is used.
const RETRIES_MAX: usize = 1;

type HyperClient = Client<HttpsConnector<HttpConnector<Resolver>>, Pipe>;

/// Which connections a question goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Small questions to the upstream: h2 where it offers it.
    Small,
    /// NARs from the upstream: a connection of HTTP/1.1 for each, so that one that nobody reads
    /// for a while does not use up the window that narinfos come through.
    Bulk,
    /// Anything on another host: HTTP/1.1, guarded addresses.
    Foreign,
}

/// The clients of one upstream.
pub(super) struct Transport {
    small: HyperClient,
    bulk: HyperClient,
    foreign: HyperClient,
    writes: HyperClient,
    own: Arc<Own>,
    clock: Arc<Clock>,
}

impl Transport {
    /// `h2` offers it to a server that is asked over TLS.
    pub(super) fn new(base: &Url, tls: &Tls, h2: bool) -> Self {
        let Tls { config: tls, clock } = tls;
        let own = Arc::new(Own { base: base.clone() });
        let plain = || Resolver { foreign_to: None };
        let guarded = Resolver { foreign_to: Some(Arc::clone(&own)) };
        Self {
            small: client(tls, plain(), h2),
            bulk: client(tls, plain(), false),
            foreign: client(tls, guarded, false),
            writes: client(tls, plain(), false),
            own,
            clock: Arc::clone(clock),
        }
    }

    /// The head of the answer, whatever its status.
    pub(super) async fn send(
        &self,
        lane: Lane,
        request: Request<()>,
        asked: &Asked,
    ) -> Result<Response<Incoming>, Error> {
        let client = match lane {
            Lane::Small => &self.small,
            Lane::Bulk => &self.bulk,
            Lane::Foreign => &self.foreign,
        };
        let mut retries = 0;
        loop {
            match client.request(request.clone().map(|()| Pipe::default())).await {
                Ok(response) => {
                    // Without TLS anybody on the way could say it; another host was not configured.
                    if lane != Lane::Foreign && request.uri().scheme() == Some(&Scheme::HTTPS) {
                        self.clock.answered(response.headers(), Instant::now());
                    }
                    return Ok(response);
                }
                Err(error) if !error.is_connect() && retries < RETRIES_MAX => retries += 1,
                Err(error) => return Err(explain(error, asked)),
            }
        }
    }

    /// The head of the answer to a request that writes, over HTTP/1.1. The caller bounds the time,
    /// and asks [`explain`] about an error.
    pub(super) fn write(&self, request: Request<Pipe>) -> legacy::ResponseFuture {
        self.writes.request(request)
    }

    /// What was proven about the time over these connections.
    pub(super) fn proof(&self, now: Instant) -> Option<Proof> {
        self.clock.proof(now)
    }

    /// Whether a URL on another host may be asked as far as its text shows; names are judged
    /// when they are resolved.
    pub(super) async fn may_reach(&self, url: &Url) -> bool {
        match location::literal_address(url) {
            Some(address) if location::is_private(address) => self.own.is_private().await,
            _ => !is_localhost(url) || self.own.is_private().await,
        }
    }
}

fn client(tls: &ClientConfig, resolver: Resolver, h2: bool) -> HyperClient {
    let mut http = HttpConnector::new_with_resolver(resolver);
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_WAIT));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
    let https = if h2 {
        https.enable_all_versions().wrap_connector(http)
    } else {
        https.enable_http1().wrap_connector(http)
    };
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_WAIT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .http1_max_buf_size(H1_BUFFER_LEN)
        .http2_initial_stream_window_size(H2_STREAM_WINDOW_LEN)
        .http2_initial_connection_window_size(H2_WINDOW_LEN)
        .http2_keep_alive_interval(H2_PING_EVERY)
        .http2_keep_alive_timeout(H2_PING_EVERY)
        .build(https)
}

/// What a failed question means.
pub(super) fn explain(error: legacy::Error, asked: &Asked) -> Error {
    if find::<PrivateAddress>(&error).is_some() {
        let why = "the name of another host stands for an address of the house";
        return Error::Url { asked: asked.clone(), why };
    }
    if let Some(rustls::Error::InvalidCertificate(why)) = find::<rustls::Error>(&error)
        && matches!(
            why,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }
        )
    {
        let detail = format!("its certificate begins in the future ({why})");
        return Error::Clock { asked: asked.clone(), detail: detail.into() };
    }
    Error::Transport { asked: asked.clone(), source: Arc::new(error) }
}

/// The first error of type `E` among an error and its causes.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An io::Error's source is that of what it wraps: what it wraps must be asked for.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// TLS of one upstream's clients.
pub(super) struct Tls {
    config: ClientConfig,
    clock: Arc<Clock>,
}

/// TLS of a client: the system's roots (webpki's where the system has none), and a private one.
pub(super) fn tls(ca_file: Option<&Path>) -> Result<Tls, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = ca_file {
        let pem = super::credentials::read_bounded(path)
            .map_err(|error| TlsError::Read(Arc::new(error)))?;
        let mut found = 0;
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|_| TlsError::NoCertificate)?;
            roots.add(certificate).map_err(|_| TlsError::NoCertificate)?;
            found += 1;
        }
        if found == 0 {
            return Err(TlsError::NoCertificate);
        }
    }
    let setup = |error| TlsError::Setup(Arc::new(error));
    let (provider, clock) = (Arc::new(ciphers::provider()), Arc::new(Clock::default()));
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| setup(rustls::Error::General(error.to_string())))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(verifier, Arc::clone(&clock))))
        .with_no_client_auth();
    Ok(Tls { config, clock })
}

/// Why there is no TLS.
#[derive(Debug)]
pub(super) enum TlsError {
    /// The CA file cannot be read.
    Read(Arc<io::Error>),
    /// The CA file has no certificate that can be used.
    NoCertificate,
    /// The library refuses.
    Setup(Arc<rustls::Error>),
}

/// The upstream's own host, as a measure for others.
struct Own {
    base: Url,
}

impl Own {
    /// Whether it is in the house itself: then other hosts there may be named by it.
    async fn is_private(&self) -> bool {
        if let Some(address) = location::literal_address(&self.base) {
            return location::is_private(address);
        }
        let Some(host) = self.base.host_str() else { return false };
        let found = tokio::net::lookup_host((host, 0)).await;
        found.is_ok_and(|mut found| found.any(|address| location::is_private(address.ip())))
    }
}

fn is_localhost(url: &Url) -> bool {
    url.host_str().is_some_and(|host| host == "localhost" || host.ends_with(".localhost"))
}

/// A name of another host that stands for an address of the house.
#[derive(Debug, thiserror::Error)]
#[error("an address of the house")]
struct PrivateAddress;

/// Resolves names; for another host than the upstream's refuses addresses of the house.
#[derive(Clone)]
struct Resolver {
    foreign_to: Option<Arc<Own>>,
}

impl Resolver {
    async fn resolve(self, name: Name) -> io::Result<std::vec::IntoIter<std::net::SocketAddr>> {
        let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
        if let Some(own) = self.foreign_to
            && found.iter().any(|address| location::is_private(address.ip()))
            && !own.is_private().await
        {
            return Err(io::Error::other(PrivateAddress));
        }
        Ok(found.into_iter())
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<std::net::SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_host_is_not_asked_in_the_house_unless_the_upstream_is_there() {
        let tls = tls(None).unwrap();
        let far = Transport::new(&Url::parse("https://151.101.1.91/").unwrap(), &tls, false);
        let near = Transport::new(&Url::parse("https://192.168.1.2/").unwrap(), &tls, false);
        for text in ["https://10.0.0.1/x", "https://[::1]/x", "https://localhost/x"] {
            let url = Url::parse(text).unwrap();
            assert!(!far.may_reach(&url).await, "{text}");
            assert!(near.may_reach(&url).await, "{text}");
        }
        assert!(far.may_reach(&Url::parse("https://8.8.8.8/x").unwrap()).await);
    }

    #[tokio::test]
    async fn a_name_that_stands_for_the_house_is_refused_when_it_is_resolved() {
        let own = Arc::new(Own { base: Url::parse("https://151.101.1.91/").unwrap() });
        let name = || "localhost".parse::<Name>().unwrap();
        let guarded = Resolver { foreign_to: Some(own) };
        let error = guarded.resolve(name()).await.unwrap_err();
        assert!(find::<PrivateAddress>(&error).is_some());
        assert!(Resolver { foreign_to: None }.resolve(name()).await.is_ok());
    }
}
