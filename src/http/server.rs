//! Sockets, accept loops, connections and their ends. Knows nothing of what is answered.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::body::Body;
use super::h2::{self, Activity, Watched};
use super::lan::Lan;
use super::peers::{Peers, Place};
use super::stall::Stalling;

/// Connections at once, over all listeners: 20 Nix clients with their 25 each. The rest waits in
/// the kernel's queue. Half of the 1024 files that a process may open by default.
pub const CONNECTIONS_MAX: usize = 512;

/// Connections of one peer at once: ten Nix processes side by side where there are all of them, and half
/// remains for the other machines of the house.
const PEER_PART: usize = 2;

/// How long a connection may be idle, the head of its next request included. Clients use theirs
/// again for up to 118 s, and old ones cannot repeat an upload whose connection was closed.
const IDLE_MAX: Duration = Duration::from_secs(150);

/// How long a TLS handshake may take, two round trips and some signatures of a slow client. Nobody
/// has asked for anything yet, and it occupies a connection's place.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long a client may take nothing of what is sent: Nix stops reading for minutes while its
/// disk is slow, and what it reads cannot be evicted.
const STALL_MAX: Duration = Duration::from_mins(5);

/// How long running answers may go on after a stop: the daemon's own end comes before the 90 s
/// after which systemd kills.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// Headers of a request: Nix sends 5, a browser 20, proxies add some.
const HEADERS_MAX: usize = 64;

/// Bytes of a connection's buffers, heads of requests included. Larger ones gave no speed, and
/// memory for each reader (measured).
const BUFFER_LEN_MAX: usize = 64 * 1024;

/// First wait after a failed accept: out of files or memory, which others give back soon.
const ACCEPT_WAIT_MIN: Duration = Duration::from_millis(10);

/// Longest wait: it doubles up to here, where one more try a second costs nothing.
const ACCEPT_WAIT_MAX: Duration = Duration::from_secs(1);

/// A connection, with TLS or without: HTTP/1.1 is in the program once for both.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    /// Who asks.
    pub(super) peer: SocketAddr,
    /// Our address that was asked.
    pub(super) local: SocketAddr,
    /// Whether nobody in between can read along.
    pub(super) is_tls: bool,
}

/// A socket on which connections come, and who shakes hands there where TLS is spoken.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<TlsAcceptor>,
}

/// The places of connections, shared with whoever wants to know whether one is left.
#[derive(Debug, Clone)]
pub struct Crowd {
    places: Arc<Semaphore>,
    connections_max: usize,
}

impl Default for Crowd {
    fn default() -> Self {
        Self::new(CONNECTIONS_MAX)
    }
}

impl Crowd {
    /// Of at most so many.
    pub fn new(connections_max: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(connections_max)), connections_max }
    }

    /// Whether nobody is accepted until somebody leaves.
    pub fn is_full(&self) -> bool {
        self.places.available_permits() == 0
    }
}

/// The bounds of connections; arguments for tests.
#[derive(Debug, Clone)]
#[allow(clippy::struct_field_names, reason = "the bound stands last in every name")]
pub(super) struct Limits {
    pub(super) crowd: Crowd,
    pub(super) connections_a_peer_max: usize,
    pub(super) handshake_max: Duration,
    pub(super) idle_max: Duration,
    pub(super) stall_max: Duration,
    pub(super) drain_max: Duration,
}

impl Limits {
    /// The usual ones, for so many connections.
    pub(super) fn of(crowd: Crowd) -> Self {
        Self {
            connections_a_peer_max: crowd.connections_max / PEER_PART,
            crowd,
            handshake_max: HANDSHAKE_MAX,
            idle_max: IDLE_MAX,
            stall_max: STALL_MAX,
            drain_max: DRAIN_MAX,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(Crowd::default())
    }
}

/// Accepts, answers with `answer`, drains. One for all listeners.
pub(super) struct Server<A> {
    lan: Lan,
    limits: Limits,
    peers: Arc<Peers>,
    requests: h2::Requests,
    request_permits: Arc<Semaphore>,
    answer: A,
    stop: CancellationToken,
}

impl<A, F> Server<A>
where
    A: Fn(Request<Incoming>, Ends) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    pub(super) fn new(lan: Lan, limits: Limits, answer: A, stop: CancellationToken) -> Arc<Self> {
        let requests = h2::Requests::new(limits.stall_max);
        let request_permits = Arc::new(Semaphore::new(limits.crowd.connections_max));
        let peers = Arc::default();
        Arc::new(Self { lan, limits, peers, requests, request_permits, answer, stop })
    }

    /// Serves until stopped, then drains. Returns when all connections have ended.
    pub(super) async fn run(self: Arc<Self>, doors: Vec<Door>) -> io::Result<()> {
        let mut loops = JoinSet::new();
        for door in doors {
            loops.spawn(Arc::clone(&self).accept_loop(door));
        }
        while let Some(ended) = loops.join_next().await {
            ended.map_err(io::Error::other)?;
        }
        // Their connections are gone by now, and a request ends with its connection.
        if timeout(self.limits.drain_max, self.requests.ended()).await.is_err() {
            warn!("requests went on after their connections, left as they are");
        }
        Ok(())
    }

    async fn accept_loop(self: Arc<Self>, door: Door) {
        let Door { listener, tls } = door;
        let mut connections = JoinSet::new();
        let mut wait = ACCEPT_WAIT_MIN;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    report(ended);
                    continue;
                }
                accepted = self.accept(&listener) => accepted,
            };
            match accepted {
                Ok((stream, peer, permit)) => {
                    wait = ACCEPT_WAIT_MIN;
                    if !self.lan.admits(peer.ip()) {
                        debug!(%peer, "stranger dropped");
                        continue;
                    }
                    let peers_max = self.limits.connections_a_peer_max;
                    let Some(place) = self.peers.place(peer.ip(), peers_max) else {
                        debug!(%peer, "connection dropped, its peer has too many");
                        continue;
                    };
                    let (places, tls) = ((permit, Arc::new(place)), tls.clone());
                    connections.spawn(Arc::clone(&self).connect(stream, peer, tls, places));
                }
                // The client went away before we came.
                Err(gone) if gone.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(failed) => {
                    let wait_ms = wait.as_millis();
                    warn!(wait_ms, error = &failed as &dyn Error, "accept failed, will retry");
                    tokio::select! {
                        () = self.stop.cancelled() => break,
                        () = tokio::time::sleep(wait) => {}
                    }
                    wait = (wait * 2).min(ACCEPT_WAIT_MAX);
                }
            }
        }
        drop(listener);
        self.drain(connections).await;
    }

    /// The next connection, once there is a permit for it.
    async fn accept(
        &self,
        listener: &TcpListener,
    ) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.limits.crowd.places).acquire_owned().await;
        let permit = permit.expect("nobody closes this semaphore");
        let (stream, peer) = listener.accept().await?;
        Ok((stream, peer, permit))
    }

    async fn drain(&self, mut connections: JoinSet<()>) {
        let ended = async {
            while let Some(ended) = connections.join_next().await {
                report(ended);
            }
        };
        if tokio::time::timeout(self.limits.drain_max, ended).await.is_err() {
            warn!(connections = connections.len(), "connections cut at the end of the drain");
            connections.shutdown().await;
        }
    }

    async fn connect(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<TlsAcceptor>,
        (permit, place): (OwnedSemaphorePermit, Arc<Place>),
    ) {
        // Without it the last piece of an answer can wait for the client's delayed ACK.
        let prepared = stream.set_nodelay(true).and_then(|()| stream.local_addr());
        match (prepared, tls) {
            (Ok(local), None) => {
                let ends = Ends { peer, local, is_tls: false };
                self.talk(Box::new(stream), ends, &place).await;
            }
            (Ok(local), Some(tls)) => {
                if let Some(stream) = self.shake_hands(stream, &tls, peer).await {
                    let ends = Ends { peer, local, is_tls: true };
                    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        Box::pin(self.talk_h2(stream, ends, place)).await;
                    } else {
                        Box::pin(self.talk(stream, ends, &place)).await;
                    }
                }
            }
            (Err(failed), _) => debug!(%peer, error = &failed as &dyn Error, "connection lost"),
        }
        drop(permit);
    }

    /// The connection with TLS on it, unless it fails, takes too long, or we stop.
    async fn shake_hands(
        &self,
        stream: TcpStream,
        tls: &TlsAcceptor,
        peer: SocketAddr,
    ) -> Option<Box<TlsStream<TcpStream>>> {
        let shaken = timeout(self.limits.handshake_max, tls.accept(stream));
        match self.stop.run_until_cancelled(shaken).await? {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(failed)) => {
                debug!(%peer, error = &failed as &dyn Error, "no TLS came about");
                None
            }
            Err(_) => {
                debug!(%peer, "a TLS handshake took too long");
                None
            }
        }
    }

    /// HTTP/1.1 over any stream, until the client leaves, breaks a bound, or we stop.
    async fn talk(self: Arc<Self>, stream: Box<dyn Wire>, ends: Ends, place: &Place) {
        let stream = TokioIo::new(Stalling::new(stream, self.limits.stall_max));
        let service = service_fn(async |request| {
            turn(place).await;
            (self.answer)(request, ends).await
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle_max)
            .max_headers(HEADERS_MAX)
            .max_buf_size(BUFFER_LEN_MAX)
            .serve_connection(stream, service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        tell_end(ended, ends);
    }

    /// HTTP/2, likewise.
    async fn talk_h2(
        self: Arc<Self>,
        stream: Box<TlsStream<TcpStream>>,
        ends: Ends,
        place: Arc<Place>,
    ) {
        let Limits { idle_max, stall_max, .. } = self.limits;
        let stream = TokioIo::new(Stalling::new(stream, stall_max));
        let activity = Arc::<Activity>::default();
        let (server, counted) = (Arc::clone(&self), Arc::clone(&activity));
        let service = service_fn(move |request| {
            let (server, mut busy) = (Arc::clone(&server), counted.begin());
            let place = Arc::clone(&place);
            async move {
                turn(&place).await;
                let permit = Arc::clone(&server.request_permits).acquire_owned().await;
                busy.permit = Some(permit.expect("nobody closes this semaphore"));
                let response = (server.answer)(request, ends).await?;
                Ok::<_, Infallible>(response.map(|body| Watched::new(body, busy)))
            }
        });
        let connection = h2::builder(self.requests.clone()).serve_connection(stream, service);
        let mut connection = pin!(connection);
        let is_idle = tokio::select! {
            biased;
            ended = connection.as_mut() => return tell_end(ended, ends),
            () = self.stop.cancelled() => false,
            () = activity.idle_for(idle_max) => true,
        };
        connection.as_mut().graceful_shutdown();
        if !is_idle {
            return tell_end(connection.await, ends);
        }
        // Its answers are given, but what the client never took of them may still be here.
        if let Ok(ended) = timeout(stall_max, connection).await {
            tell_end(ended, ends);
        }
    }
}

/// Waits until it is the peer's turn.
async fn turn(place: &Place) {
    let wait = place.wait();
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
}

fn tell_end(ended: hyper::Result<()>, ends: Ends) {
    if let Err(ended) = ended {
        debug!(peer = %ends.peer, error = &ended as &dyn Error, "connection ended");
    }
}

/// A connection's end. A panic in a request has cost that connection, and no other.
fn report(ended: Result<(), JoinError>) {
    if let Err(failed) = ended
        && failed.is_panic()
    {
        error!(error = &failed as &dyn Error, "a request panicked");
    }
}
