//! Questions to a cache, over plain HTTP or pinned TLS, each in bounded time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::cli::exchange::Wire;
use crate::pinned;

/// A machine of the same house answers in milliseconds; one that slept wakes in this time.
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// A narinfo takes 2.5 s at most, and a NAR says something within the 15 s of a stalled upstream.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// A door of the cache.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) at: SocketAddr,
    /// What the Host header says.
    pub(super) authority: String,
    pub(super) tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
}

/// What was answered, as far as it was read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The clock of who answered.
    pub(super) date: Option<SystemTime>,
    pub(super) body: Vec<u8>,
    /// How many bytes there were of the body, also of what was not kept.
    pub(super) len: u64,
    /// From the question to the head of the answer.
    pub(super) head_took: Duration,
    /// From the question to the last byte that was read.
    pub(super) took: Duration,
}

/// Bytes that are read, and bytes that are kept of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) read_max: u64,
    pub(super) kept_max: usize,
}

/// The first of these addresses that takes a connection, and how long that took.
pub(super) async fn first(
    addresses: &[IpAddr],
    port: u16,
) -> Result<(SocketAddr, Duration), String> {
    let mut told = Vec::new();
    for address in addresses {
        let (at, asked) = (SocketAddr::new(*address, port), Instant::now());
        match timeout(CONNECT_WAIT, TcpStream::connect(at)).await {
            Ok(Ok(_)) => return Ok((at, asked.elapsed())),
            Ok(Err(error)) => told.push(format!("{at}: {error}")),
            Err(_) => told.push(format!("{at}: no answer within {CONNECT_WAIT:?}")),
        }
    }
    Err(told.join("; "))
}

impl Door {
    /// Plain HTTP.
    pub(super) fn plain(at: SocketAddr) -> Self {
        Self { at, authority: at.to_string(), tls: None }
    }

    /// The answer to a GET, its body as far as `bounds` let.
    pub(super) async fn get(&self, path: &str, bounds: Bounds) -> Result<Answer, String> {
        let asked = async {
            let started = Instant::now();
            let wire = self.wire().await?;
            let client = hyper::client::conn::http1::handshake(TokioIo::new(wire));
            let (mut sender, connection) = client.await.map_err(|error| with_causes(&error))?;
            let request = Request::get(path)
                .header(header::HOST, &self.authority)
                .body(Full::<Bytes>::default())
                .map_err(|error| with_causes(&error))?;
            let read = read(sender.send_request(request), bounds, started);
            tokio::pin!(read);
            // The connection ends when the answer was read, or earlier with its error.
            tokio::select! {
                answer = &mut read => answer,
                ended = connection => match ended {
                    Ok(()) => read.await,
                    Err(error) => Err(with_causes(&error)),
                },
            }
        };
        let waited = timeout(ANSWER_WAIT, asked).await;
        waited.unwrap_or_else(|_| Err(format!("no whole answer within {ANSWER_WAIT:?}")))
    }

    async fn wire(&self) -> Result<Box<dyn Wire>, String> {
        let stream = timeout(CONNECT_WAIT, TcpStream::connect(self.at))
            .await
            .map_err(|_| format!("{}: no answer within {CONNECT_WAIT:?}", self.at))?
            .map_err(|error| format!("{}: {error}", self.at))?;
        let Some((name, config)) = &self.tls else { return Ok(Box::new(stream)) };
        let connector = TlsConnector::from(Arc::clone(config));
        match connector.connect(name.clone(), stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(match pinned::other_ca(&error) {
                Some(other) => other.to_string(),
                None => with_causes(&error),
            }),
        }
    }
}

async fn read(
    response: impl Future<Output = hyper::Result<hyper::Response<hyper::body::Incoming>>>,
    bounds: Bounds,
    started: Instant,
) -> Result<Answer, String> {
    let response = response.await.map_err(|error| with_causes(&error))?;
    let head_took = started.elapsed();
    let date = response.headers().get(header::DATE).and_then(|value| value.to_str().ok());
    let date = date.and_then(|text| httpdate::parse_http_date(text).ok());
    let status = response.status().as_u16();
    let (mut body, mut kept, mut len) = (response.into_body(), Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| with_causes(&error))?;
        let Some(bytes) = frame.data_ref() else { continue };
        len += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let room = bounds.kept_max.saturating_sub(kept.len());
        kept.extend(bytes.iter().take(room));
        if len >= bounds.read_max {
            break;
        }
    }
    Ok(Answer { status, date, body: kept, len, head_took, took: started.elapsed() })
}

/// An error with its causes, in one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}
