//! PUT: the body goes through as it comes, piece by piece. Every refusal is a 4xx for good with a
//! sentence, and comes before the body where the client waits for `100 Continue`.

use std::error::Error as StdError;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, EXPECT, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::heads;
use super::hub::Hub;
use super::line::{self, Lane, Line, Patience, Sent, read_small};
use super::reply::{self, Passed, Refusal, Reply, is_trouble};

/// How long the cache may take for its answer once the whole body came: snowberry waits 200 s for a
/// place, then unpacks and writes.
const ANSWER_WAIT: Duration = Duration::from_mins(10);

/// How long the client may send nothing: as long as snowberry itself waits.
const BODY_IDLE_MAX: Duration = Duration::from_mins(1);

/// Bytes of a refused upload that are read and dropped, so that its connection can go on: newer
/// Nix announces bodies over 1 MiB with `Expect`, and is refused before it sends them.
const REFUSED_BODY_LEN_MAX: u64 = 1024 * 1024;

/// How long the rest of a refused upload is read and dropped: a client that is still sending does
/// not see the answer, and an old one hangs when its connection is cut.
const REFUSED_REST_WAIT: Duration = Duration::from_mins(5);

/// Longest answer to an upload that is passed on: Nix shows 1024 bytes of a refusal.
const ANSWER_LEN_MAX: usize = 64 * 1024;

/// Pieces of a body between the two connections.
const PIECES_MAX: usize = 1;

/// Answers a PUT.
pub(super) async fn answer(hub: &Arc<Hub>, head: &Parts, body: Incoming) -> Reply {
    let mut upload = Upload::new(head, body);
    match pass(hub, head, &mut upload).await {
        Ok(passed) if is_trouble(passed.status) => {
            debug!(status = %passed.status, "trouble of the cache with an upload");
            Reply::Refused { why: Refusal::Odd, drained: upload.drain().await }
        }
        Ok(passed) => Reply::Passed(Passed { drained: upload.drain().await, ..passed }),
        Err(why) => Reply::Refused { why, drained: upload.drain().await },
    }
}

async fn pass(hub: &Arc<Hub>, head: &Parts, upload: &mut Upload) -> Result<Passed, Refusal> {
    let line = hub.line(&[], None).await.ok_or(Refusal::Away)?;
    let is_stranger = !line.place.is_tls && !line.place.is_chosen;
    if is_stranger && head.headers.contains_key(AUTHORIZATION) {
        return Err(Refusal::Stranger);
    }
    let (pieces, proceed) = (mpsc::channel(PIECES_MAX), CancellationToken::new());
    if !upload.is_held_back {
        proceed.cancel();
    }
    let request = request(&line, head, upload.is_held_back, (pieces.1, &proceed));
    let response = carry(hub, &line, request.ok_or(Refusal::Odd)?, upload.pump(pieces.0, proceed));
    let (answer, body) = response.await?.into_parts();
    let text = tokio::select! {
        biased;
        text = read_small(body, ANSWER_LEN_MAX) => text.map_err(|_| Refusal::Odd)?,
        silent = line.watch(Instant::now(), Patience::Writer) => {
            hub.lost(&line, &silent);
            return Err(Refusal::Lost);
        }
    };
    let mut headers = heads::end_to_end(&answer.headers);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    Ok(Passed { status: answer.status, headers, body: reply::full(text), drained: false })
}

/// Sends the request and its body side by side until the cache answers.
async fn carry(
    hub: &Arc<Hub>,
    line: &Arc<Line>,
    request: Request<Sent>,
    pump: impl Future<Output = Result<(), Refusal>>,
) -> Result<Response<Incoming>, Refusal> {
    let (mut send, mut pump) = (pin!(line.send(Lane::Bulk, request)), pin!(pump));
    let (mut watch, mut is_pumping) = (pin!(line.watch(Instant::now(), Patience::Writer)), true);
    let mut late = pin!(tokio::time::sleep(ANSWER_WAIT));
    loop {
        tokio::select! {
            biased;
            sent = &mut send => return sent.map_err(|error| {
                debug!(error = &error as &dyn StdError, "upload failed");
                if line::is_connect(&error) { hub.lost(line, &error) } else { hub.doubt(line) }
                Refusal::Lost
            }),
            pumped = &mut pump, if is_pumping => {
                pumped?;
                is_pumping = false;
                late.set(tokio::time::sleep(ANSWER_WAIT));
            }
            silent = &mut watch => {
                hub.lost(line, &silent);
                return Err(Refusal::Lost);
            }
            () = &mut late, if !is_pumping => return Err(Refusal::Odd),
        }
    }
}

/// The request to the cache, with a body that ends well only where it was told to.
fn request(
    line: &Line,
    head: &Parts,
    is_held_back: bool,
    (pieces, proceed): (mpsc::Receiver<Piece>, &CancellationToken),
) -> Option<Request<Sent>> {
    let frames = stream::unfold(Some(pieces), |pieces| async {
        let mut pieces = pieces?;
        match pieces.recv().await {
            Some(Piece::Bytes(bytes)) => Some((Ok(Frame::data(bytes)), Some(pieces))),
            Some(Piece::End) => None,
            None => Some((Err(io::Error::from(io::ErrorKind::UnexpectedEof)), None)),
        }
    });
    let mut request = Request::new(StreamBody::new(frames).boxed_unsync());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = line.uri(head.uri.path_and_query().map_or("/", |it| it.as_str()))?;
    *request.headers_mut() = heads::to_cache(&head.headers, &line.place);
    if is_held_back {
        request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
        let proceed = proceed.clone();
        hyper::ext::on_informational(&mut request, move |_| proceed.cancel());
    }
    Some(request)
}

/// What goes from one connection to the other.
enum Piece {
    Bytes(Bytes),
    End,
}

/// The body that the client sends.
struct Upload {
    body: Incoming,
    /// Whether the client waits for `100 Continue`, which reading asks it for.
    is_held_back: bool,
    is_begun: bool,
    is_broken: bool,
}

impl Upload {
    fn new(head: &Parts, body: Incoming) -> Self {
        let is_held_back = line::waits_for_continue(&head.headers) && !body.is_end_stream();
        Self { body, is_held_back, is_begun: false, is_broken: false }
    }

    /// Takes the body from the client, once the cache wants it, and hands it on.
    async fn pump(
        &mut self,
        pieces: mpsc::Sender<Piece>,
        proceed: CancellationToken,
    ) -> Result<(), Refusal> {
        proceed.cancelled().await;
        while let Some(bytes) = self.next().await? {
            if pieces.send(Piece::Bytes(bytes)).await.is_err() {
                // The cache wants no more: what it says follows.
                return std::future::pending().await;
            }
        }
        // Nobody left to hear of the end has answered already.
        drop(pieces.send(Piece::End).await);
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        self.is_begun = true;
        loop {
            match timeout(BODY_IDLE_MAX, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Ok(Some(Err(_))) | Err(_) => {
                    self.is_broken = true;
                    return Err(Refusal::Cut);
                }
            }
        }
    }

    /// Takes what is still coming off the connection, where that can be done in time. Returns
    /// whether nothing is left.
    async fn drain(&mut self) -> bool {
        if self.body.is_end_stream() || self.is_broken {
            return !self.is_broken;
        }
        let is_long = self.body.size_hint().upper().is_none_or(|len| len > REFUSED_BODY_LEN_MAX);
        if !self.is_begun && (self.is_held_back || is_long) {
            return false;
        }
        let rest = async {
            loop {
                match self.next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return true,
                    Err(_) => return false,
                }
            }
        };
        timeout(REFUSED_REST_WAIT, rest).await.unwrap_or(false)
    }
}
