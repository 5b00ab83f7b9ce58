//! Sockets, accept loops, connections and their ends, on loopback only. Knows nothing of what is
//! answered.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::reply::Body;

/// Connections at once: five Nix processes with their 25 each. The rest waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 128;

/// How long a connection may be idle, the head of its next request included. Clients use theirs
/// again for up to 118 s, and old ones cannot repeat an upload whose connection was closed.
const IDLE_MAX: Duration = Duration::from_secs(150);

/// How long running answers may go on after a stop.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Headers of a request: Nix sends 5.
const HEADERS_MAX: usize = 64;

/// Bytes of a connection's buffers, heads of requests included.
const BUFFER_LEN_MAX: usize = 64 * 1024;

/// First wait after a failed accept: out of files or memory, which others give back soon.
const ACCEPT_WAIT_MIN: Duration = Duration::from_millis(10);

/// Longest wait: it doubles up to here, where one more try a second costs nothing.
const ACCEPT_WAIT_MAX: Duration = Duration::from_secs(1);

/// Accepts, answers with `answer`, and drains once `stop` is cancelled.
pub(super) async fn serve<A, F>(
    listeners: Vec<TcpListener>,
    answer: A,
    stop: CancellationToken,
) -> io::Result<()>
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut loops = JoinSet::new();
    for listener in listeners {
        loops.spawn(accept_loop(listener, Arc::clone(&permits), answer.clone(), stop.clone()));
    }
    while let Some(ended) = loops.join_next().await {
        ended.map_err(io::Error::other)?;
    }
    Ok(())
}

async fn accept_loop<A, F>(
    listener: TcpListener,
    permits: Arc<Semaphore>,
    answer: A,
    stop: CancellationToken,
) where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut wait = ACCEPT_WAIT_MIN;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                wait = ACCEPT_WAIT_MIN;
                connections.spawn(talk(stream, answer.clone(), stop.clone(), permit));
            }
            // The client went away before we came.
            Err(gone) if gone.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(failed) => {
                let wait_ms = wait.as_millis();
                warn!(wait_ms, error = &failed as &dyn Error, "accept failed, will retry");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(ACCEPT_WAIT_MAX);
            }
        }
    }
    drop(listener);
    drain(connections).await;
}

/// The next connection of this machine, once there is a permit for it.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await;
    let permit = permit.expect("nobody closes this semaphore");
    loop {
        let (stream, peer) = listener.accept().await?;
        // A socket that was handed over may listen anywhere.
        if peer.ip().to_canonical().is_loopback() {
            // Without it the last piece of an answer can wait for the client's delayed ACK.
            stream.set_nodelay(true)?;
            return Ok((stream, permit));
        }
        debug!(%peer, "stranger dropped");
    }
}

async fn drain(mut connections: JoinSet<()>) {
    let ended = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(DRAIN_MAX, ended).await.is_err() {
        warn!(connections = connections.len(), "connections cut at the end of the drain");
        connections.shutdown().await;
    }
}

/// HTTP/1.1 until the client leaves, breaks a bound, or we stop.
async fn talk<A, F>(
    stream: TcpStream,
    answer: A,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_LEN_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(ended) = ended {
        debug!(error = &ended as &dyn Error, "connection ended");
    }
    drop(permit);
}

/// A connection's end. A panic in a request has cost that connection, and no other.
fn report(ended: Result<(), JoinError>) {
    if let Err(failed) = ended
        && failed.is_panic()
    {
        error!(error = &failed as &dyn Error, "a request panicked");
    }
}
