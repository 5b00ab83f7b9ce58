//! A stream that gives up on a reader who takes nothing: it would keep a NAR from eviction, and a
//! connection from others, for ever.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Fails a write that makes no progress for `patience`. Reading passes through.
pub(super) struct Stalling<S> {
    stream: S,
    patience: Duration,
    waiting: Waiting,
    /// Made at the first wait: most connections never wait.
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    No,
    Write,
    Flush,
}

impl<S> Stalling<S> {
    /// Watches over this stream.
    pub(super) const fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, waiting: Waiting::No, timer: None }
    }

    /// What was polled, or an error when it has been pending for too long.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        reason: Waiting,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            // A flush that has nothing to do says nothing about a write that waits.
            if reason == Waiting::Write || self.waiting == reason {
                self.waiting = Waiting::No;
            }
            return polled;
        }
        let deadline = Instant::now() + self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if self.waiting == Waiting::No {
            self.waiting = reason;
            timer.as_mut().reset(deadline);
        }
        ready!(timer.as_mut().poll(cx));
        let error = io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing");
        Poll::Ready(Err(error))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, polled, Waiting::Write)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, polled, Waiting::Flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, polled, Waiting::Flush)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, polled, Waiting::Write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_reader_who_takes_nothing_is_given_up() {
        let (ours, theirs) = duplex(16);
        let mut ours = Stalling::new(ours, Duration::from_millis(5));
        let error = ours.write_all(&[0; 17]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test]
    async fn a_reader_who_takes_something_is_not() {
        let (ours, mut theirs) = duplex(16);
        let mut ours = Stalling::new(ours, Duration::from_hours(1));
        let read = async {
            let mut taken = [0; 64];
            theirs.read_exact(&mut taken).await
        };
        let (written, taken) = tokio::join!(ours.write_all(&[7; 64]), read);
        written.expect("all was taken");
        assert_eq!(taken.expect("all came"), 64);
        assert!(ours.waiting == Waiting::No, "a write that ended waits no more");
    }

    #[tokio::test]
    async fn an_idle_flush_does_not_reset_the_wait() {
        let (ours, theirs) = duplex(16);
        let mut ours = Stalling::new(ours, Duration::from_hours(1));
        ours.write_all(&[0; 16]).await.expect("fits the pipe");
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut ours).poll_write(&mut cx, &[0]).is_pending());
        assert!(Pin::new(&mut ours).poll_flush(&mut cx).is_ready());
        assert!(ours.waiting == Waiting::Write);
        drop(theirs);
    }
}
