//! The server over TLS: h2 has the bounds of HTTP/1.1.

use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::http::body::{Body, Content};
use crate::http::lan::Lan;
use crate::http::server::{Crowd, Door, Ends, Limits, Server};
use crate::metrics::Counter;

/// Longer than anything that is waited for here.
const LONG: Duration = Duration::from_secs(20);

/// A server with TLS on loopback.
struct World {
    address: SocketAddr,
    ca_pem: Bytes,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl World {
    async fn start<A, F>(limits: Limits, answer: A) -> Self
    where
        A: Fn(Request<Incoming>, Ends) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::own(folder.path());
        identity.refresh(&names(&["snowberry.local"], &[]), true, SystemTime::now()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door { listener, tls: Some(identity.acceptor()) };
        let stop = CancellationToken::new();
        let server = Server::new(Lan::new(&[]).unwrap(), limits, answer, stop.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { server.run(vec![door]).await.unwrap() });
        Self { address, ca_pem: identity.ca_pem().unwrap(), stop, tasks }
    }

    async fn connect(&mut self) -> http2::SendRequest<Empty<Bytes>> {
        let mut config = pinned::client_config(&self.ca_pem).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("snowberry.local").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        // So that an answer that nobody reads stops after these.
        builder.initial_stream_window_size(64 * 1024).initial_connection_window_size(1 << 20);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        self.tasks.spawn(async move { drop(connection.await) });
        sender
    }

    async fn stopped(mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(LONG, ended).await.unwrap();
    }
}

fn get() -> Request<Empty<Bytes>> {
    Request::get("https://snowberry.local/").body(Empty::new()).unwrap()
}

fn long_answer(held: Option<Held>) -> Response<Body> {
    let body = Bytes::from(vec![b'x'; 4 << 20]);
    let rows = futures_util::stream::iter((0..16).map(move |at| {
        let _held = &held;
        Ok(body.slice(at * (256 << 10)..(at + 1) * (256 << 10)))
    }));
    Response::new(Body::new(Content::Coming(Box::pin(rows)), Counter::default()))
}

fn short_answer() -> Response<Body> {
    Response::new(Body::new(Content::Bytes(Bytes::from_static(b"well")), Counter::default()))
}

/// Tells when what holds it is dropped.
struct Held(Arc<Notify>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn an_answer_that_nobody_takes_is_given_up_and_the_others_go_on() {
    let limits = Limits { stall_max: Duration::from_millis(50), ..Limits::default() };
    let given_up = Arc::new(Notify::new());
    let told = Arc::clone(&given_up);
    let mut world = World::start(limits, move |request, _| {
        let held = (request.uri().path() == "/stalled").then(|| Held(Arc::clone(&told)));
        async move { Ok(long_answer(held)) }
    })
    .await;
    let mut sender = world.connect().await;
    let stalled = Request::get("https://snowberry.local/stalled").body(Empty::new()).unwrap();
    // Its head is taken, its body is not.
    let mut body = sender.send_request(stalled).await.unwrap().into_body();
    let read = sender.send_request(get()).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(read.to_bytes().len(), 4 << 20);
    tokio::time::timeout(LONG, given_up.notified()).await.unwrap();
    let mut came = 0;
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(frame) => came += frame.data_ref().unwrap().len(),
            Err(error) => break error,
        }
    };
    assert!(came < 4 << 20 && format!("{error:?}").contains("CANCEL"), "{came}: {error:?}");
    drop(sender);
    world.stopped().await;
}

#[tokio::test]
async fn an_idle_connection_ends_and_a_busy_one_does_not() {
    let limits = Limits { idle_max: Duration::from_millis(50), ..Limits::default() };
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let mut world = World::start(limits, move |_, _| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Ok(short_answer())
        }
    })
    .await;
    let mut busy = world.connect().await;
    let mut idle = world.connect().await;
    let answer = busy.send_request(get());
    let ended = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while idle.ready().await.is_ok() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(LONG, ended).await.unwrap();
    go.add_permits(1);
    let answer = answer.await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.to_bytes(), "well");
    drop((busy, idle));
    world.stopped().await;
}

#[tokio::test]
async fn a_panic_costs_its_request_alone() {
    let mut world = World::start(Limits::default(), |request, _| async move {
        assert!(request.uri().path() != "/panic", "on purpose");
        Ok(short_answer())
    })
    .await;
    let mut sender = world.connect().await;
    let other = Request::get("https://snowberry.local/panic").body(Empty::new()).unwrap();
    assert!(sender.send_request(other).await.is_err());
    let answer = sender.send_request(get()).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.to_bytes(), "well");
    drop(sender);
    world.stopped().await;
}

#[tokio::test]
async fn a_handshake_that_goes_nowhere_frees_its_place() {
    let handshake_max = Duration::from_millis(50);
    let limits = Limits { crowd: Crowd::new(1), handshake_max, ..Limits::default() };
    let mut world = World::start(limits, |_, _| async { Ok(short_answer()) }).await;
    let silent = TcpStream::connect(world.address).await.unwrap();
    let mut sender = tokio::time::timeout(LONG, world.connect()).await.unwrap();
    let answer = sender.send_request(get()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "well");
    drop((silent, sender));
    world.stopped().await;
}

#[tokio::test]
async fn a_stop_lets_answers_on_h2_end() {
    let mut world = World::start(Limits::default(), |_, _| async { Ok(long_answer(None)) }).await;
    let mut sender = world.connect().await;
    let answer = sender.send_request(get()).await.unwrap();
    world.stop.cancel();
    let read = answer.into_body().collect().await.unwrap();
    assert_eq!(read.to_bytes().len(), 4 << 20);
    drop(sender);
    world.stopped().await;
}
