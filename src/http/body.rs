//! The bodies of answers: bytes at hand, a stored NAR row by row, a NAR as it comes. What is handed
//! to the connection is counted here.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use crate::cache::{Cut, HeldNar, NarStream};

type RowFuture = Pin<Box<dyn Future<Output = Result<Bytes, Cut>> + Send>>;
type ChunkStream = Pin<Box<dyn Stream<Item = Result<Bytes, Cut>> + Send>>;

/// An answer's body. An error in it makes hyper cut the connection without a clean end.
pub(super) struct Body {
    content: Content,
    served_bytes: Counter,
}

/// What a body is made of.
pub(super) enum Content {
    /// Bytes at hand.
    Bytes(Bytes),
    /// A part of a NAR that is whole here.
    Held(Rows),
    /// A NAR that is on its way.
    Coming(ChunkStream),
}

impl Content {
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
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let chunk = match &mut self.content {
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
            Content::Coming(_) => SizeHint::default(),
        }
    }
}

/// A span of a stored NAR, read row by row. One row is read ahead while the one before it is
/// being sent: two rows are all that a reader holds in memory.
pub(super) struct Rows {
    nar: HeldNar,
    offset: u64,
    end: u64,
    ahead: Option<Ahead>,
}

enum Ahead {
    Reading(RowFuture),
    Read(Result<Bytes, Cut>),
}

impl Rows {
    /// The bytes from `offset` to before `end`.
    pub(super) const fn new(nar: HeldNar, offset: u64, end: u64) -> Self {
        Self { nar, offset, end, ahead: None }
    }

    fn begin(&self) -> RowFuture {
        let (nar, offset) = (self.nar.clone(), self.offset);
        Box::pin(async move {
            let read = nar.read(offset).await;
            read.map_err(|error| {
                let nar_hash = nar.nar_hash();
                warn!(%nar_hash, offset, error = &error as &dyn std::error::Error, "stored NAR cut");
                Cut
            })
        })
    }

    fn poll_row(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        if self.offset >= self.end {
            return Poll::Ready(None);
        }
        let ahead = self.ahead.take().unwrap_or_else(|| Ahead::Reading(self.begin()));
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
            self.ahead = Some(poll_ahead(Ahead::Reading(self.begin()), cx));
        }
        Poll::Ready(Some(Ok(row)))
    }
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
