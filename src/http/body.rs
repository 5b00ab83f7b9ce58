//! The bodies of answers: bytes at hand, a stored NAR row by row, a NAR as it comes. What is handed
//! to the connection is counted here.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Frame, SizeHint};
use tracing::warn;

use crate::cache::{Cut, HeldNar, NarStream};
use crate::metrics::Counter;

/// Reads the stored bytes from an offset to the end of their row.
type ReadRow = Box<dyn Fn(u64) -> RowFuture + Send>;
type RowFuture = Pin<Box<dyn Future<Output = Result<Bytes, Cut>> + Send>>;
type ChunkStream = Pin<Box<dyn Stream<Item = Result<Bytes, Cut>> + Send>>;

/// An answer's body. An error in it makes hyper cut the connection without a clean end.
pub(super) struct Body {
    content: Content,
    served_bytes: Counter,
}

/// What a body is made of.
pub(super) enum Content {
    /// Nothing, as a HEAD has it: the head says what a GET would bring.
    None,
    /// Bytes at hand.
    Bytes(Bytes),
    /// A part of a NAR that is whole here.
    Held(Rows),
    /// What is on its way: a NAR, or the lines of a long command.
    Coming(ChunkStream),
}

impl Content {
    /// Lines as they are written.
    pub(super) fn lines(lines: impl Stream<Item = Result<Bytes, Cut>> + Send + 'static) -> Self {
        Self::Coming(Box::pin(lines))
    }

    /// Follows a NAR that is on its way.
    pub(super) fn coming(nar: NarStream) -> Self {
        let chunks = futures_util::stream::unfold(Some(nar), |nar| async move {
            let mut nar = nar?;
            match nar.chunk().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(nar))),
                Ok(None) => None,
                Err(cut) => Some((Err(cut), None)),
            }
        });
        Self::Coming(Box::pin(chunks))
    }
}

impl Body {
    /// A body whose bytes are counted.
    pub(super) const fn new(content: Content, served_bytes: Counter) -> Self {
        Self { content, served_bytes }
    }

    /// Only the head counts.
    pub(super) fn forgo(&mut self) {
        self.content = Content::None;
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let chunk = match &mut self.content {
            Content::None => Poll::Ready(None),
            Content::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Bytes(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Content::Held(rows) => rows.poll_row(cx),
            Content::Coming(chunks) => chunks.as_mut().poll_next(cx),
        };
        if let Poll::Ready(Some(Ok(bytes))) = &chunk {
            self.served_bytes.inc_by(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        }
        chunk.map(|chunk| chunk.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::None => true,
            Content::Bytes(bytes) => bytes.is_empty(),
            Content::Held(rows) => rows.offset >= rows.end,
            Content::Coming(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(bytes) => {
                SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
            }
            Content::Held(rows) => SizeHint::with_exact(rows.end.saturating_sub(rows.offset)),
            Content::None | Content::Coming(_) => SizeHint::default(),
        }
    }
}

/// A span of a stored NAR, read row by row. One row is read ahead while the one before it is
/// being sent: two rows are all that a reader holds in memory.
pub(super) struct Rows {
    read: ReadRow,
    offset: u64,
    end: u64,
    ahead: Option<Ahead>,
}

enum Ahead {
    Reading(RowFuture),
    Read(Result<Bytes, Cut>),
}

impl Rows {
    /// The bytes of a stored NAR from `offset` to before `end`.
    pub(super) fn of_nar(nar: HeldNar, offset: u64, end: u64) -> Self {
        let read = move |offset| -> RowFuture { Box::pin(read_row(nar.clone(), offset)) };
        Self { read: Box::new(read), offset, end, ahead: None }
    }

    fn poll_row(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        if self.offset >= self.end {
            return Poll::Ready(None);
        }
        let ahead = self.ahead.take().unwrap_or_else(|| Ahead::Reading((self.read)(self.offset)));
        let row = match poll_ahead(ahead, cx) {
            Ahead::Read(row) => row,
            reading @ Ahead::Reading(_) => {
                self.ahead = Some(reading);
                return Poll::Pending;
            }
        };
        // A row that is empty before the end would be asked for without end.
        let Some(mut row) = row.ok().filter(|row| !row.is_empty()) else {
            self.offset = self.end;
            return Poll::Ready(Some(Err(Cut)));
        };
        row.truncate(usize::try_from(self.end - self.offset).unwrap_or(usize::MAX));
        self.offset += u64::try_from(row.len()).unwrap_or(u64::MAX);
        if self.offset < self.end {
            self.ahead = Some(poll_ahead(Ahead::Reading((self.read)(self.offset)), cx));
        }
        Poll::Ready(Some(Ok(row)))
    }
}

async fn read_row(nar: HeldNar, offset: u64) -> Result<Bytes, Cut> {
    nar.read(offset).await.map_err(|failed| {
        let (nar_hash, error) = (nar.nar_hash(), &failed as &dyn std::error::Error);
        warn!(%nar_hash, offset, error, "stored NAR cut");
        Cut
    })
}

fn poll_ahead(ahead: Ahead, cx: &mut Context<'_>) -> Ahead {
    match ahead {
        Ahead::Reading(mut reading) => match reading.as_mut().poll(cx) {
            Poll::Ready(row) => Ahead::Read(row),
            Poll::Pending => Ahead::Reading(reading),
        },
        read @ Ahead::Read(_) => read,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::stream;
    use http_body_util::BodyExt;
    use hyper::body::Body as _;

    use super::*;

    /// Rows of 10 bytes that count upwards, read with a pause; the offsets asked for are noted.
    fn rows(offset: u64, end: u64, stored_len: u64) -> (Rows, Arc<Mutex<Vec<u64>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let read = move |offset: u64| -> RowFuture {
            noted.lock().expect("not poisoned").push(offset);
            Box::pin(async move {
                tokio::task::yield_now().await;
                let row_end = (offset / 10 * 10 + 10).min(stored_len);
                Ok((offset..row_end).map(|at| u8::try_from(at).expect("small")).collect())
            })
        };
        (Rows { read: Box::new(read), offset, end, ahead: None }, asked)
    }

    async fn collect(content: Content) -> (Result<Vec<u8>, Cut>, u64) {
        let served_bytes = Counter::default();
        let body = Body::new(content, served_bytes.clone());
        let collected = body.collect().await.map(|all| all.to_bytes().to_vec());
        (collected, served_bytes.get())
    }

    #[tokio::test]
    async fn a_span_of_rows_is_sent_exactly() {
        for (first, end) in [(0, 35), (0, 1), (0, 10), (9, 11), (10, 20), (34, 35), (13, 29)] {
            let (rows, _) = rows(first, end, 35);
            let expected: Vec<u8> =
                (first..end).map(|at| u8::try_from(at).expect("small")).collect();
            let body = Body::new(Content::Held(rows), Counter::default());
            assert_eq!(body.size_hint().exact(), Some(end - first));
            let (sent, counted) = collect(body.content).await;
            assert_eq!(sent, Ok(expected), "{first}..{end}");
            assert_eq!(counted, end - first);
        }
    }

    #[tokio::test]
    async fn one_row_is_read_ahead_and_no_more() {
        let (rows, asked) = rows(0, 35, 35);
        let mut body = Body::new(Content::Held(rows), Counter::default());
        body.frame().await.expect("a frame").expect("a row");
        assert_eq!(*asked.lock().expect("not poisoned"), [0, 10]);
        body.frame().await.expect("a frame").expect("a row");
        assert_eq!(*asked.lock().expect("not poisoned"), [0, 10, 20]);
    }

    #[tokio::test]
    async fn a_nar_that_ends_too_early_is_cut() {
        let (rows, _) = rows(0, 35, 30);
        assert_eq!(collect(Content::Held(rows)).await, (Err(Cut), 30));
    }

    #[tokio::test]
    async fn a_nar_that_is_coming_has_no_length_and_may_be_cut() {
        let chunks = [Ok(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"c"))];
        let content = Content::Coming(Box::pin(stream::iter(chunks.clone())));
        assert_eq!(Body::new(content, Counter::default()).size_hint().exact(), None);
        let content = Content::Coming(Box::pin(stream::iter(chunks.clone())));
        assert_eq!(collect(content).await, (Ok(b"abc".to_vec()), 3));
        let cut = chunks.into_iter().chain([Err(Cut)]);
        assert_eq!(collect(Content::Coming(Box::pin(stream::iter(cut)))).await, (Err(Cut), 3));
    }
}
