//! The server over real sockets, with what needs no cache behind it.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::PublicKeys;
use super::body::{Body, Content};
use super::front::Front;
use super::lan::Lan;
use super::refusal::Refusal;
use super::reply::{Media, Reply, etag};
use super::route::{Route, route};
use super::server::{Crowd, Door, Ends, Limits, Server};
use super::upload::Upload;
use crate::cache::Cut;
use crate::metrics::Counter;
use crate::nix::StoreDir;

/// A server on loopback and the means to stop it.
struct World {
    address: SocketAddr,
    stop: CancellationToken,
    served: JoinSet<std::io::Result<()>>,
}

impl World {
    async fn start<A, F>(limits: Limits, answer: A) -> Self
    where
        A: Fn(Request<Incoming>, Ends) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let stop = CancellationToken::new();
        let lan = Lan::new(&[]).expect("no prefixes");
        let server = Server::new(lan, limits, answer, stop.clone());
        let mut served = JoinSet::new();
        served.spawn(server.run(vec![Door { listener, tls: None }]));
        Self { address, stop, served }
    }

    /// Answers what needs no cache; all else is 404.
    async fn front(limits: Limits) -> Self {
        let front = Arc::new(Front::new(StoreDir::default(), PublicKeys::default(), Vec::new()));
        Self::start(limits, move |request: Request<Incoming>, _| {
            let front = Arc::clone(&front);
            async move {
                let (head, body) = request.into_parts();
                let request = Request::from_parts(head, ());
                let route = route(request.method(), request.uri().path());
                let reply = match (front.answer(&route, &request), route) {
                    (Some((reply, _)), _) => reply,
                    (None, Route::Put(_) | Route::Write) => {
                        Upload::new(&request, body).refused(Refusal::NoWriter).await.0
                    }
                    (None, _) => Reply::Absent,
                };
                Ok(reply.into_response(Counter::default()))
            }
        })
        .await
    }

    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.expect("connects"))
    }

    /// What a server answers to these bytes until it closes the connection.
    async fn all(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.send(request).await;
        client.rest().await
    }

    async fn stopped(mut self) {
        self.stop.cancel();
        let ended = self.served.join_next().await.expect("one server").expect("no panic");
        ended.expect("served");
    }
}

struct Client(TcpStream);

impl Client {
    async fn send(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).await.expect("sends");
    }

    async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        self.0.read_to_end(&mut text).await.expect("reads to the end");
        String::from_utf8(text).expect("UTF-8")
    }

    /// Reads up to and including `end`.
    async fn until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            text.push(self.0.read_u8().await.expect("more to come"));
        }
        String::from_utf8(text).expect("UTF-8")
    }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n")
}

#[tokio::test]
async fn nix_cache_info_is_always_there() {
    let world = World::front(Limits::default()).await;
    let text = world.all(&get("/nix-cache-info?x=y", "Connection: close\r\n")).await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"), "{text}");
    assert!(!text.to_lowercase().contains("content-encoding"), "{text}");
    world.stopped().await;
}

#[tokio::test]
async fn a_head_is_a_get_without_its_body() {
    let world = World::front(Limits::default()).await;
    let text = world
        .all("HEAD /nix-cache-info HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
        .await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.contains("content-length: 51\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\n"), "{text}");
    world.stopped().await;
}

#[tokio::test]
async fn what_is_unknown_is_404_on_a_connection_that_goes_on() {
    let world = World::front(Limits::default()).await;
    let mut client = world.connect().await;
    for request in [
        get("/nothing", ""),
        get("/nar/..%2f..%2fetc", ""),
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi".to_owned(),
        "OPTIONS /nix-cache-info HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\n\r\n".to_owned(),
        "DELETE /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
    ] {
        client.send(&request).await;
        let text = client.until("Not here.\n").await;
        assert!(text.starts_with("HTTP/1.1 404 Not Found\r\n"), "{request}: {text}");
        assert!(!text.to_lowercase().contains("access-control"), "{text}");
    }
    drop(client);
    world.stopped().await;
}

#[tokio::test]
async fn an_upload_is_refused_and_its_connection_goes_on() {
    let world = World::front(Limits::default()).await;
    let mut client = world.connect().await;
    for _ in 0..2 {
        let body = "x".repeat(300_000);
        let len = body.len();
        client
            .send(&format!(
                "PUT /nar/x.nar.xz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len}\r\n\r\n"
            ))
            .await;
        client.send(&body).await;
        let text = client.until("netrc-file FILE`).\n").await;
        assert!(text.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{text}");
        assert!(!text.contains("connection: close"), "{text}");
    }
    drop(client);
    world.stopped().await;
}

#[tokio::test]
async fn an_upload_that_asks_first_is_refused_without_100() {
    let world = World::front(Limits::default()).await;
    let text = world
        .all(
            "PUT /nar/x.nar.xz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n\
             Expect: 100-continue\r\n\r\n",
        )
        .await;
    assert!(text.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{text}");
    assert!(text.contains("connection: close\r\n"), "{text}");
    assert!(!text.contains("100 Continue"), "{text}");
    world.stopped().await;
}

#[tokio::test]
async fn people_s_pages_want_a_host_of_ours() {
    let world = World::front(Limits::default()).await;
    for path in ["/", "/api/status", "/metrics"] {
        for host in ["Host: evil.example\r\n", "", "Host: a.local\r\nHost: evil.example\r\n"] {
            let request = format!("GET {path} HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
            let text = world.all(&request).await;
            assert!(text.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{request}: {text}");
            assert!(text.contains("does not answer under that name"), "{text}");
        }
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.local\r\nConnection: close\r\n\r\n");
        let text = world.all(&request).await;
        assert!(text.starts_with("HTTP/1.1 404"), "passed on to the cache: {text}");
    }
    world.stopped().await;
}

#[tokio::test]
async fn heads_are_bounded_in_count_and_length() {
    let world = World::front(Limits::default()).await;
    let fits = format!("{}Connection: close\r\n", "X: y\r\n".repeat(60));
    let text = world.all(&get("/nix-cache-info", &fits)).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let text = world.all(&get("/nix-cache-info", &"X: y\r\n".repeat(100))).await;
    assert!(text.starts_with("HTTP/1.1 431"), "{text}");
    let mut client = world.connect().await;
    client.send("GET /nix-cache-info HTTP/1.1\r\nX: ").await;
    client.send(&"y".repeat(65_536)).await;
    let text = client.until("\r\n").await;
    assert!(text.starts_with("HTTP/1.1 431"), "{text}");
    drop(client);
    world.stopped().await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_not_waited_for() {
    let limits = Limits { idle_max: Duration::from_millis(20), ..Limits::default() };
    let world = World::front(limits).await;
    assert_eq!(world.all("GET /nix-cache-info HTTP/1.1\r\n").await, "");
    assert_eq!(world.all("").await, "");
    world.stopped().await;
}

#[tokio::test]
async fn a_panic_costs_its_own_connection_only() {
    let world = World::start(Limits::default(), |request: Request<Incoming>, _| async move {
        assert_ne!(request.uri().path(), "/panic", "as the test wants it");
        Ok(Reply::text("fine\n").into_response(Counter::default()))
    })
    .await;
    let mut other = world.connect().await;
    other.send(&get("/", "")).await;
    other.until("fine\n").await;
    assert_eq!(world.all(&get("/panic", "")).await, "");
    other.send(&get("/", "")).await;
    other.until("fine\n").await;
    drop(other);
    world.stopped().await;
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_their_turn() {
    let world = World::front(Limits { crowd: Crowd::new(1), ..Limits::default() }).await;
    let mut first = world.connect().await;
    first.send(&get("/nothing", "")).await;
    first.until("Not here.\n").await;
    let mut second = world.connect().await;
    second.send(&get("/nothing", "")).await;
    let mut byte = [0];
    assert!(second.0.try_read(&mut byte).is_err(), "nobody answers yet");
    drop(first);
    second.until("Not here.\n").await;
    drop(second);
    world.stopped().await;
}

/// A server whose answers wait until they are let go.
async fn slow(limits: Limits) -> (World, Arc<Notify>, Arc<Notify>) {
    let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (asked_by, go_by) = (Arc::clone(&asked), Arc::clone(&go));
    let world = World::start(limits, move |_: Request<Incoming>, _| {
        let (asked, go) = (Arc::clone(&asked_by), Arc::clone(&go_by));
        async move {
            asked.notify_one();
            go.notified().await;
            let body = Bytes::from_static(b"at last\n");
            Ok(Reply::Found(Media::Text, body).into_response(Counter::default()))
        }
    })
    .await;
    (world, asked, go)
}

#[tokio::test]
async fn a_stop_lets_running_answers_end() {
    let (world, asked, go) = slow(Limits::default()).await;
    let mut idle = world.connect().await;
    let mut client = world.connect().await;
    client.send(&get("/", "")).await;
    asked.notified().await;
    world.stop.cancel();
    assert_eq!(idle.rest().await, "", "an idle connection is closed at once");
    go.notify_one();
    let text = client.rest().await;
    assert!(text.ends_with("at last\n"), "{text}");
    world.stopped().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let limits = Limits { drain_max: Duration::from_millis(20), ..Limits::default() };
    let (world, asked, _go) = slow(limits).await;
    let mut client = world.connect().await;
    client.send(&get("/", "")).await;
    asked.notified().await;
    let address = world.address;
    world.stopped().await;
    let mut left = Vec::new();
    let ended = client.0.read_to_end(&mut left).await;
    assert!(left.is_empty(), "nothing was answered ({ended:?})");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let (stall_max, drain_max) = (Duration::from_millis(20), Duration::from_hours(1));
    let limits = Limits { stall_max, drain_max, ..Limits::default() };
    // More than all buffers between the two hold.
    let body = Bytes::from(vec![b'x'; 64 * 1024 * 1024]);
    let world = World::start(limits, move |_: Request<Incoming>, _| {
        let body = body.clone();
        async move { Ok(Reply::Found(Media::Octets, body).into_response(Counter::default())) }
    })
    .await;
    let mut client = world.connect().await;
    client.send(&get("/", "")).await;
    client.until("\r\n\r\n").await;
    // The drain waits for the connection, which ends only because its client is given up.
    let stopped = tokio::time::timeout(Duration::from_mins(1), world.stopped()).await;
    assert!(stopped.is_ok(), "the connection lives on");
    drop(client);
}

#[tokio::test]
async fn a_nar_that_goes_wrong_never_ends_cleanly() {
    let world = World::start(Limits::default(), |request: Request<Incoming>, _| async move {
        let first = Ok(Bytes::from_static(b"some bytes"));
        let chunks = match request.uri().path() {
            "/cut" => vec![first, Err(Cut)],
            _ => vec![first],
        };
        let content = Content::Coming(Box::pin(futures_util::stream::iter(chunks)));
        Ok(Response::new(Body::new(content, Counter::default())))
    })
    .await;
    let close = "Connection: close\r\n";
    let whole = world.all(&get("/whole", close)).await;
    assert!(whole.contains("transfer-encoding: chunked\r\n"), "{whole}");
    assert!(whole.ends_with("\r\n0\r\n\r\n"), "{whole}");
    let cut = world.all(&get("/cut", close)).await;
    assert!(!cut.ends_with("0\r\n\r\n"), "{cut}");
    world.stopped().await;
}

#[tokio::test]
async fn what_the_client_has_already_is_not_sent_again() {
    let world = World::start(Limits::default(), |_: Request<Incoming>, _| async move {
        Ok(Reply::NotModified(etag("\"abc\"")).into_response(Counter::default()))
    })
    .await;
    let text = world.all(&get("/", "Connection: close\r\n")).await;
    assert!(text.starts_with("HTTP/1.1 304 Not Modified\r\n"), "{text}");
    assert!(text.contains("etag: \"abc\"\r\n"), "{text}");
    assert!(!text.contains("content-length"), "{text}");
    assert!(text.ends_with("\r\n\r\n"), "{text}");
    world.stopped().await;
}
