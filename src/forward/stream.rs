//! Bodies on their way from a cache to the client, byte for byte. A NAR that is lost in the middle
//! is gone on with at the same or another cache of the house; where that cannot be, it is cut.

use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue, IF_RANGE, RANGE};
use hyper::{Method, Request};
use tokio::time::timeout_at;
use tracing::{debug, info};

use super::heads::{self, Span};
use super::hub::Hub;
use super::line::{self, Lane, Line, Patience};
use super::place::Place;
use super::reply::{Body, Cut};

/// How long a NAR that was cut waits for a cache that has the rest: a daemon that is started again
/// is back by then. Nix waits for five minutes, but a build has better to do.
const RESUME_WAIT: Duration = Duration::from_secs(3);

/// How often one NAR is gone on with: a wire that breaks more often is none to wait for.
const RESUMES_MAX: u32 = 8;

/// How long a cache that is well may send nothing of a body: as long as Nix waits itself.
const STALL_MAX: Duration = Duration::from_mins(5);

/// A body from a cache.
pub(super) struct Coming {
    pub(super) hub: Arc<Hub>,
    pub(super) line: Arc<Line>,
    pub(super) body: Incoming,
    /// How to go on with it.
    pub(super) rest: Option<Rest>,
}

/// What it takes to ask for the rest of a body.
pub(super) struct Rest {
    pub(super) span: Span,
    pub(super) path_and_query: String,
    /// The client's own headers, as they came.
    pub(super) headers: HeaderMap,
    pub(super) resumes: u32,
}

impl Coming {
    /// As the body of an answer.
    pub(super) fn into_body(self) -> Body {
        let frames = stream::unfold(Some(self), |coming| async {
            let mut coming = coming?;
            match coming.next().await {
                Ok(Some(bytes)) => Some((Ok(Frame::data(bytes)), Some(coming))),
                Ok(None) => None,
                Err(cut) => Some((Err(cut), None)),
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Cut> {
        loop {
            match self.frame().await {
                Some(Ok(bytes)) => {
                    let Some(rest) = &mut self.rest else { return Ok(Some(bytes)) };
                    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    rest.span.at = rest.span.at.saturating_add(len);
                    return if rest.span.at > rest.span.end { Err(Cut) } else { Ok(Some(bytes)) };
                }
                None if self.rest.as_ref().is_none_or(|rest| rest.span.at == rest.span.end) => {
                    return Ok(None);
                }
                None | Some(Err(Cut)) => self.resume().await?,
            }
        }
    }

    /// The next bytes; an end may be one that comes too early.
    async fn frame(&mut self) -> Option<Result<Bytes, Cut>> {
        loop {
            let began = Instant::now();
            let frame = tokio::select! {
                biased;
                frame = self.body.frame() => frame?,
                silent = self.line.watch(began, Patience::Reader) => {
                    self.hub.lost(&self.line, &silent);
                    return Some(Err(Cut));
                }
                () = tokio::time::sleep(STALL_MAX) => return Some(Err(Cut)),
            };
            match frame {
                Ok(frame) => {
                    self.line.hear();
                    if let Ok(bytes) = frame.into_data()
                        && !bytes.is_empty()
                    {
                        return Some(Ok(bytes));
                    }
                }
                Err(error) => {
                    debug!(error = &error as &dyn StdError, "body broken off");
                    self.hub.doubt(&self.line);
                    return Some(Err(Cut));
                }
            }
        }
    }

    /// Goes on where the body broke off, at whichever cache has the rest.
    async fn resume(&mut self) -> Result<(), Cut> {
        let hub = Arc::clone(&self.hub);
        let rest = self.rest.as_mut().filter(|rest| rest.resumes < RESUMES_MAX).ok_or(Cut)?;
        rest.resumes += 1;
        let deadline = Instant::now() + RESUME_WAIT;
        let mut unable: Vec<Place> = Vec::new();
        while let Some(line) = hub.line(&unable, Some(deadline)).await {
            let request = rest.request(&line).ok_or(Cut)?;
            let Some(sent) = until(deadline, guarded(&hub, &line, request)).await else { break };
            match sent {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    if rest.span.goes_on_with(head.status, &head.headers) {
                        let host = &line.place.host;
                        info!(%host, at = rest.span.at, "nar gone on with");
                        (self.line, self.body) = (line, body);
                        return Ok(());
                    }
                    debug!(host = %line.place.host, status = %head.status, "the rest is not there");
                    unable.push(line.place.clone());
                }
                // A wire that breaks at once each time must not be asked in a tight loop.
                Err(Cut) => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
        Err(Cut)
    }
}

/// Between two tries to go on after a broken connection.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

async fn until<T>(deadline: Instant, act: impl Future<Output = T>) -> Option<T> {
    timeout_at(deadline.into(), act).await.ok()
}

async fn guarded(
    hub: &Hub,
    line: &Arc<Line>,
    request: Request<line::Sent>,
) -> Result<hyper::Response<Incoming>, Cut> {
    let sent = tokio::select! {
        biased;
        sent = line.send(Lane::Bulk, request) => sent,
        silent = line.watch(Instant::now(), Patience::Reader) => {
            hub.lost(line, &silent);
            return Err(Cut);
        }
    };
    sent.map_err(|error| {
        if line::is_connect(&error) {
            hub.lost(line, &error);
        } else {
            hub.doubt(line);
        }
        Cut
    })
}

impl Rest {
    fn request(&self, line: &Line) -> Option<Request<line::Sent>> {
        let mut request = Request::new(line::nothing());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = line.uri(&self.path_and_query)?;
        let mut headers = heads::to_cache(&self.headers, &line.place);
        headers.insert(RANGE, HeaderValue::from_str(&self.span.range()).ok()?);
        headers.insert(IF_RANGE, HeaderValue::from_str(&self.span.etag).ok()?);
        *request.headers_mut() = headers;
        Some(request)
    }
}
