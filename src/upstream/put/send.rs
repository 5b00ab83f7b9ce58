//! One request with a body of known length: its bytes are handed over as they are taken, every
//! wait has a bound, and a body never ends short as if it were whole.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_LENGTH;
use hyper::{HeaderMap, Request, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Source;
use crate::upstream::client::{self, Transport};
use crate::upstream::{Asked, Error};

/// What is handed over at once. With [`PACE`] this is the slowest line that is waited for: 1 KiB
/// a second.
const PIECE_LEN: usize = 64 * 1024;

/// Longest answer to a write; S3's lists of rules, which `bucket init` reads, have some KiB.
const ANSWER_LEN_MAX: usize = 256 * 1024;

/// How long the store may take for the next bytes: a card stalls for tens of seconds.
const SOURCE_WAIT: Duration = Duration::from_mins(1);

/// How long a write waits.
pub(in crate::upstream) const PACE: Pace = Pace {
    connect: Duration::from_secs(15),
    progress: Duration::from_mins(1),
    answer: Duration::from_mins(2),
    whole: Duration::from_mins(15),
    rest: Duration::from_secs(1),
};

/// The waits of a write.
#[derive(Debug, Clone, Copy)]
pub(in crate::upstream) struct Pace {
    /// Until the first byte of the body is taken: name, connection, TLS.
    pub(in crate::upstream) connect: Duration,
    /// Until the next piece is taken.
    pub(in crate::upstream) progress: Duration,
    /// From the last byte to the answer, and between the bytes of that: `MinIO` moves the parts
    /// of an upload before it answers, a disk writes what it was given.
    pub(in crate::upstream) answer: Duration,
    /// From the answer's head to its end: a server that puts an upload together sends white space
    /// as long as it likes.
    pub(in crate::upstream) whole: Duration,
    /// Before something is tried again in place; doubled each time.
    pub(in crate::upstream) rest: Duration,
}

/// A body.
#[derive(Clone)]
pub(in crate::upstream) enum Sent<'a> {
    /// There is none.
    Nothing,
    /// These bytes.
    Bytes(Bytes),
    /// The bytes of a source from (included) to.
    Range(&'a dyn Source, u64, u64),
}

impl Sent<'_> {
    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Bytes(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Self::Range(_, from, to) => to.saturating_sub(*from),
        }
    }

    /// Returns when so many of its bytes may go out.
    pub(super) async fn may_go(&self, len: usize) {
        match self {
            Self::Nothing | Self::Bytes(_) => {}
            Self::Range(source, ..) => source.may_go(len).await,
        }
    }

    /// Its bytes in pieces of any length.
    fn read(&self) -> BoxStream<'_, io::Result<Bytes>> {
        match self {
            Self::Nothing => stream::empty().boxed(),
            Self::Bytes(bytes) => stream::iter([Ok(bytes.clone())]).boxed(),
            Self::Range(source, from, to) => source.read(*from, *to),
        }
    }
}

/// The bytes of a body, exactly as many as it has.
pub(super) struct Reading<'a> {
    bytes: BoxStream<'a, io::Result<Bytes>>,
    left: u64,
    asked: &'a Asked,
}

impl<'a> Reading<'a> {
    pub(super) fn new(sent: &'a Sent<'_>, asked: &'a Asked) -> Self {
        Self { bytes: sent.read(), left: sent.len(), asked }
    }

    /// The next bytes; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.left > 0 {
            let next = timeout(SOURCE_WAIT, self.bytes.next()).await;
            let next = next.map_err(|_| self.trouble(io::ErrorKind::TimedOut.into()))?;
            let short = || self.trouble(io::ErrorKind::UnexpectedEof.into());
            let bytes = next.ok_or_else(short)?.map_err(|error| self.trouble(error))?;
            let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let long = || self.trouble(io::Error::other("it is longer than it should be"));
            self.left = self.left.checked_sub(len).ok_or_else(long)?;
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    fn trouble(&self, error: io::Error) -> Error {
        Error::Source { asked: self.asked.clone(), source: Arc::new(error) }
    }
}

/// The body as hyper takes it, piece by piece. One of no bytes is that of a question: all that is
/// sent has one type, for which there is one client.
#[derive(Default)]
pub(in crate::upstream) struct Pipe {
    pieces: Option<mpsc::Receiver<Bytes>>,
    left: u64,
    all_taken: Arc<AtomicBool>,
}

/// The body ends before its length: the connection must not be used as if it were whole.
#[derive(Debug, thiserror::Error)]
#[error("the body was given up")]
pub(in crate::upstream) struct GivenUp;

impl Body for Pipe {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let Some(pieces) = &mut self.pieces else { return Poll::Ready(Some(Err(GivenUp))) };
        pieces.poll_recv(cx).map(|piece| {
            let Some(piece) = piece else { return Some(Err(GivenUp)) };
            let len = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            self.left = self.left.saturating_sub(len);
            self.all_taken.store(self.left == 0, Ordering::Relaxed);
            Some(Ok(Frame::data(piece)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// What a server answered to a write.
pub(in crate::upstream) struct Answer {
    pub(in crate::upstream) status: StatusCode,
    pub(in crate::upstream) headers: HeaderMap,
    pub(in crate::upstream) body: Bytes,
}

/// Sends a request with its body and reads the whole answer.
pub(super) async fn exchange(
    transport: &Transport,
    mut request: Request<()>,
    sent: &Sent<'_>,
    pace: &Pace,
    asked: &Asked,
) -> Result<Answer, Error> {
    // Old MinIO takes nothing without it, not even an empty body.
    request.headers_mut().insert(CONTENT_LENGTH, sent.len().into());
    let (to, pieces) = mpsc::channel(1);
    let all_taken = Arc::new(AtomicBool::new(sent.len() == 0));
    let pipe = Pipe { pieces: Some(pieces), left: sent.len(), all_taken: Arc::clone(&all_taken) };
    let mut answer = pin!(transport.write(request.map(|()| pipe)));
    let response = tokio::select! {
        biased;
        early = &mut answer => early,
        handed_over = hand_over(to, sent, pace, asked) => {
            handed_over?;
            let wait = if sent.len() == 0 { pace.connect + pace.answer } else { pace.answer };
            let waited_s = wait.as_secs();
            let silent = |_| Error::Silent { asked: asked.clone(), waited_s };
            timeout(wait, answer).await.map_err(silent)?
        }
    };
    let response = response.map_err(|error| client::explain(error, asked))?;
    if response.status().is_success() && !all_taken.load(Ordering::Relaxed) {
        // Whoever says so did not wait for the object.
        let status = response.status().as_u16();
        return Err(Error::NotTaken { asked: asked.clone(), status, code: "".into() });
    }
    read(response, pace, asked).await
}

/// Hands the body over as it is taken; ends when all of it was, or when nobody takes it any more,
/// which the answer explains.
async fn hand_over(
    to: mpsc::Sender<Bytes>,
    sent: &Sent<'_>,
    pace: &Pace,
    asked: &Asked,
) -> Result<(), Error> {
    let mut reading = Reading::new(sent, asked);
    // The first piece finds a free place, the second only when the first was taken.
    let mut handed_over = 0_u64;
    let room = async |handed_over: u64| {
        let wait = if handed_over < 2 { pace.connect } else { pace.progress };
        let waited_s = wait.as_secs();
        let stalled = |_| {
            let asked = asked.clone();
            if handed_over < 2 {
                Error::Silent { asked, waited_s }
            } else {
                Error::Stalled { asked, waited_s }
            }
        };
        timeout(wait, to.reserve()).await.map_err(stalled)
    };
    while let Some(mut bytes) = reading.next().await? {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_LEN));
            sent.may_go(piece.len()).await;
            let Ok(place) = room(handed_over).await? else { return Ok(()) };
            place.send(piece);
            handed_over += 1;
        }
    }
    if handed_over > 0 {
        // Either the place is free again or the body has all it wanted.
        drop(room(handed_over).await?);
    }
    Ok(())
}

/// The answer, whole. What cannot be read of a refusal is left out: its status stands.
async fn read(response: Response<Incoming>, pace: &Pace, asked: &Asked) -> Result<Answer, Error> {
    let (head, mut body) = response.into_parts();
    let mut text = Vec::new();
    let all = timeout(pace.whole, async {
        while let Some(frame) = timeout(pace.answer, body.frame()).await.map_err(|_| None)? {
            let frame = frame.map_err(|error| Some(Arc::new(error)))?;
            let Ok(bytes) = frame.into_data() else { continue };
            if text.len() + bytes.len() > ANSWER_LEN_MAX {
                return Ok(false);
            }
            text.extend_from_slice(&bytes);
        }
        Ok(true)
    });
    let all = all.await.unwrap_or(Err(None));
    if head.status.is_success() {
        match all {
            Ok(true) => {}
            Ok(false) => {
                return Err(Error::TooLong { asked: asked.clone(), len_max: ANSWER_LEN_MAX });
            }
            Err(None) => {
                let waited_s = pace.answer.as_secs();
                return Err(Error::Silent { asked: asked.clone(), waited_s });
            }
            Err(Some(source)) => return Err(Error::Body { asked: asked.clone(), source }),
        }
    }
    Ok(Answer { status: head.status, headers: head.headers, body: text.into() })
}
