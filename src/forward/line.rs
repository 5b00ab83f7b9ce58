//! The connections to one cache: pools, TLS, the signs of life, and the end of all of them at once.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::place::Place;
use super::wire::Wired;
use crate::nix::CacheInfo;
use crate::nix::cache_info::{CACHE_INFO_LEN_MAX, CacheInfoError};

/// A cache that sends nothing for this long to somebody who reads is asked for a sign of life.
const READER_QUIET_MAX: Duration = Duration::from_millis(400);

/// How long that sign may take: one second in all. Enough for a packet that is sent twice.
const READER_SIGN_WAIT: Duration = Duration::from_millis(600);

/// The same for somebody who writes: an upload fills the queues of a Wi-Fi, and an upload that is
/// given up begins anew.
const WRITER_QUIET_MAX: Duration = Duration::from_secs(3);

/// Likewise.
const WRITER_SIGN_WAIT: Duration = Duration::from_secs(3);

/// All addresses of a cache together: a first packet that is lost is sent again after one second.
const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// When the next address of a cache is tried beside the first: a home has a round trip of
/// milliseconds.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(150);

/// Idle connections that are kept: one Nix uses at most 25 at once.
const IDLE_CONNECTIONS_MAX: usize = 25;

/// How long they are kept: snowberry closes after 150 s, proxies in front of it after 60.
const IDLE_WAIT: Duration = Duration::from_secs(45);

/// Buffer of a connection: with 25 NARs at once it is less than two MiB in all, and larger ones
/// brought no speed on loopback.
const BUFFER_LEN_MAX: usize = 64 * 1024;

/// Headers of an answer: snowberry sends ten, a proxy in front adds some.
const HEADERS_MAX: usize = 64;

/// One small answer in flight on h2; narinfos are far smaller.
const H2_STREAM_WINDOW_LEN: u32 = 64 * 1024;

/// All small answers in flight on h2.
const H2_WINDOW_LEN: u32 = 1024 * 1024;

/// An h2 connection is asked for life this often while questions are on it, and given up after as
/// long again: the probes judge sooner, this only ends what nobody waits for.
const H2_PING_EVERY: Duration = Duration::from_secs(2);

/// The body of what is sent to a cache.
pub(super) type Sent = UnsyncBoxBody<Bytes, io::Error>;

type Pool = Client<HttpsConnector<Wired<HttpConnector<Resolver>>>, Sent>;

/// Which connections a question goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Small questions: one h2 connection over TLS.
    Small,
    /// NARs and uploads: HTTP/1.1, a connection for each while it lasts. On one h2 connection a NAR
    /// that its reader leaves for a while holds up the window of all others, a lost packet all of
    /// them, and there is no `100 Continue`.
    Bulk,
}

/// How long silence is borne.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// One second: another cache may have what is asked.
    Reader,
    /// Six seconds.
    Writer,
}

impl Patience {
    const fn waits(self) -> (Duration, Duration) {
        match self {
            Self::Reader => (READER_QUIET_MAX, READER_SIGN_WAIT),
            Self::Writer => (WRITER_QUIET_MAX, WRITER_SIGN_WAIT),
        }
    }
}

/// The connections to one place. Once lost, all of them end, and it is never used again.
pub(super) struct Line {
    /// Where they go.
    pub(super) place: Place,
    base: String,
    small: Pool,
    bulk: Pool,
    lost: CancellationToken,
    heard: Mutex<Instant>,
    is_probed: AtomicBool,
}

impl Line {
    /// No connection is opened yet. `tls` is needed for a place with TLS.
    pub(super) fn new(place: Place, tls: &ClientConfig) -> Self {
        let lost = CancellationToken::new();
        let scheme = if place.is_tls { "https" } else { "http" };
        let is_v6 = place.host.contains(':');
        let host = if is_v6 { format!("[{}]", place.host) } else { place.host.clone() };
        let base = format!("{scheme}://{host}:{}", place.port);
        Self {
            small: pool(&place, tls, true, &lost),
            bulk: pool(&place, tls, false, &lost),
            base,
            place,
            lost,
            heard: Mutex::new(Instant::now()),
            is_probed: AtomicBool::new(false),
        }
    }

    /// The head of the answer, whatever its status, without a bound of time.
    pub(super) async fn send(
        &self,
        lane: Lane,
        request: Request<Sent>,
    ) -> Result<Response<Incoming>, legacy::Error> {
        let pool = match lane {
            Lane::Small => &self.small,
            Lane::Bulk => &self.bulk,
        };
        let answered = pool.request(request).await;
        if answered.is_ok() {
            self.hear();
        }
        answered
    }

    /// The URI of a path, with its query, at this cache.
    pub(super) fn uri(&self, path_and_query: &str) -> Option<Uri> {
        format!("{}{path_and_query}", self.base).parse().ok()
    }

    /// Something came from the cache.
    pub(super) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn quiet_for(&self) -> Duration {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Ends every connection. Returns whether they were good until now.
    pub(super) fn lose(&self) -> bool {
        let was_good = !self.lost.is_cancelled();
        self.lost.cancel();
        was_good
    }

    /// Until the cache is lost: the caller waits for something else beside this. Asks for signs of
    /// life while nothing comes, one question at a time for all who wait. Returns why.
    pub(super) async fn watch(&self, since: Instant, patience: Patience) -> Silent {
        let (quiet_max, sign_wait) = patience.waits();
        let mut since = since;
        loop {
            let quiet = self.quiet_for().min(since.elapsed());
            let left = quiet_max.saturating_sub(quiet);
            tokio::select! {
                () = self.lost.cancelled() => return Silent,
                () = tokio::time::sleep(left.max(QUIET_STEP)) => {}
            }
            if self.quiet_for().min(since.elapsed()) < quiet_max {
                continue;
            }
            let Some(_turn) = Turn::take(&self.is_probed) else {
                // Somebody else asks: their verdict is ours.
                since = Instant::now();
                continue;
            };
            match tokio::time::timeout(sign_wait, self.cache_info()).await {
                // What it says counts as a sign, also when it is a refusal.
                Ok(Ok(_) | Err(ProbeError::Status(_) | ProbeError::NoCache(_))) => self.hear(),
                Ok(Err(ProbeError::Transport(_) | ProbeError::Body(_))) | Err(_) => return Silent,
            }
        }
    }

    /// A probe: `nix-cache-info`, which a snowberry always answers.
    pub(super) async fn cache_info(&self) -> Result<CacheInfo, ProbeError> {
        let uri = self.uri("/nix-cache-info").expect("the base was put together from a place");
        let request = Request::builder().method(Method::GET).uri(uri);
        let request = request.body(nothing()).expect("a method and a URI make a request");
        let response = self.send(Lane::Small, request).await.map_err(ProbeError::Transport)?;
        if response.status() != StatusCode::OK {
            return Err(ProbeError::Status(response.status().as_u16()));
        }
        let text = read_small(response.into_body(), CACHE_INFO_LEN_MAX).await;
        let text = text.map_err(ProbeError::Body)?;
        CacheInfo::parse(&text).map_err(ProbeError::NoCache)
    }
}

/// The shortest pause between two looks at the clock.
const QUIET_STEP: Duration = Duration::from_millis(20);

/// Why a cache counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it gives no sign of life")]
pub(super) struct Silent;

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("connect and ask")]
    Transport(#[source] legacy::Error),
    #[error("read the answer")]
    Body(#[source] io::Error),
    #[error("it answers its nix-cache-info with the status {0}")]
    Status(u16),
    #[error("it is no Nix cache")]
    NoCache(#[source] CacheInfoError),
}

/// One probe at a time.
struct Turn<'a>(&'a AtomicBool);

impl<'a> Turn<'a> {
    fn take(flag: &'a AtomicBool) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then_some(Self(flag))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A request without a body.
pub(super) fn nothing() -> Sent {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that may not be longer than `len_max`.
pub(super) async fn read_small(mut body: Incoming, len_max: usize) -> io::Result<Bytes> {
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame.map_err(io::Error::other)?.into_data() else { continue };
        if text.len() + bytes.len() > len_max {
            return Err(io::Error::other(TooLong(len_max)));
        }
        text.extend_from_slice(&bytes);
    }
    Ok(text.freeze())
}

/// An answer is longer than such a one may be.
#[derive(Debug)]
struct TooLong(usize);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is longer than {} bytes", self.0)
    }
}

impl StdError for TooLong {}

fn pool(place: &Place, tls: &ClientConfig, h2: bool, lost: &CancellationToken) -> Pool {
    let mut http =
        HttpConnector::new_with_resolver(Resolver { addresses: place.addresses.clone() });
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_WAIT));
    http.set_happy_eyeballs_timeout(Some(NEXT_ADDRESS_AFTER));
    let wired = Wired::new(http, lost.clone());
    let https = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
    let https = if h2 {
        https.enable_all_versions().wrap_connector(wired)
    } else {
        https.enable_http1().wrap_connector(wired)
    };
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_WAIT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .http1_max_buf_size(BUFFER_LEN_MAX)
        .http1_max_headers(HEADERS_MAX)
        .http2_initial_stream_window_size(H2_STREAM_WINDOW_LEN)
        .http2_initial_connection_window_size(H2_WINDOW_LEN)
        .http2_keep_alive_interval(H2_PING_EVERY)
        .http2_keep_alive_timeout(H2_PING_EVERY)
        .build(https)
}

/// The addresses of the place, whatever the name; the system's word for a place without any.
#[derive(Clone)]
pub(super) struct Resolver {
    addresses: Vec<IpAddr>,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let known: Vec<_> = self.addresses.iter().map(|it| SocketAddr::new(*it, 0)).collect();
        Box::pin(async move {
            if known.is_empty() {
                let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
                return Ok(found.into_iter());
            }
            Ok(known.into_iter())
        })
    }
}

/// Whether a question that failed never reached the cache.
pub(super) fn is_connect(error: &legacy::Error) -> bool {
    error.is_connect()
}

/// Whether the answer to an upload may wait for its body.
pub(super) fn waits_for_continue(headers: &hyper::HeaderMap) -> bool {
    let expect = headers.get(header::EXPECT).and_then(|value| value.to_str().ok());
    expect.is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue"))
}
