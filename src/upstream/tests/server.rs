//! A scripted http(s) server: one function answers, every question is kept.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub(super) type Body = BoxBody<Bytes, io::Error>;
pub(super) type Answer = BoxFuture<'static, Response<Body>>;
/// An answer, or none and the connection ends.
pub(super) type Outcome = BoxFuture<'static, Option<Response<Body>>>;
type Script = dyn Fn(&Parts, Incoming) -> Outcome + Send + Sync;

/// A server, gone when dropped.
pub(super) struct Server {
    /// Its URL without a slash at the end.
    pub(super) url: String,
    questions: Arc<Mutex<Vec<Parts>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(super) async fn start(script: impl Fn(&Parts) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve(bodiless(script), None).await
    }

    /// One whose script reads the bodies.
    pub(super) async fn start_with_bodies(
        script: impl Fn(&Parts, Incoming) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Arc::new(script), None).await
    }

    pub(super) async fn start_tls(
        tls: rustls::ServerConfig,
        script: impl Fn(&Parts) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::serve(bodiless(script), Some(TlsAcceptor::from(Arc::new(tls)))).await
    }

    async fn serve(script: Arc<Script>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let questions = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, tls, script, Arc::clone(&questions)));
        Self { url, questions, _tasks: tasks }
    }

    /// What was asked, in order.
    pub(super) fn questions(&self) -> Vec<Parts> {
        self.questions.lock().unwrap().clone()
    }

    /// The paths with query that were asked.
    pub(super) fn paths(&self) -> Vec<String> {
        self.questions()
            .iter()
            .map(|question| question.uri.path_and_query().unwrap().to_string())
            .collect()
    }
}

/// A script that does not look at bodies.
fn bodiless(script: impl Fn(&Parts) -> Answer + Send + Sync + 'static) -> Arc<Script> {
    Arc::new(move |parts, _| {
        let answer = script(parts);
        Box::pin(async { Some(answer.await) })
    })
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    script: Arc<Script>,
    questions: Arc<Mutex<Vec<Parts>>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (script, questions, tls) = (Arc::clone(&script), Arc::clone(&questions), tls.clone());
        connections.spawn(async move {
            match tls {
                None => connection(stream, script, questions).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        connection(stream, script, questions).await;
                    }
                }
            }
        });
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    script: Arc<Script>,
    questions: Arc<Mutex<Vec<Parts>>>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (parts, body) = request.into_parts();
        questions.lock().unwrap().push(parts.clone());
        let answer = script(&parts, body);
        async move { answer.await.ok_or_else(|| io::Error::other("the script ends it")) }
    });
    // A client that leaves is none of the server's business.
    let _gone = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// An answer with these headers.
pub(super) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
    let response = response.body(body).unwrap();
    Box::pin(async { response })
}

pub(super) fn ok(body: impl Into<Bytes>) -> Answer {
    answer(200, &[], body)
}

pub(super) fn status(status: u16) -> Answer {
    answer(status, &[], "")
}

/// An S3 error document.
pub(super) fn s3_error(status: u16, code: &str) -> Answer {
    let xml = format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code></Error>");
    answer(
        status,
        &[("content-type", "application/xml"), ("date", "Sat, 21 Nov 2026 12:00:00 GMT")],
        xml,
    )
}

/// Begins a body of `len` bytes and breaks off after these.
pub(super) fn cut(len: usize, begin: &'static [u8]) -> Answer {
    let chunks = [Ok(Frame::data(Bytes::from_static(begin))), Err(io::Error::other("cut"))];
    // The pause lets the begun bytes leave before the connection ends.
    let body = stream::iter(chunks).then(|chunk| async {
        tokio::task::yield_now().await;
        chunk
    });
    let response = Response::builder()
        .header("content-length", len)
        .body(BodyExt::boxed(StreamBody::new(Box::pin(body).fuse_sync())))
        .unwrap();
    Box::pin(async { response })
}

/// Never answers.
pub(super) fn silence() -> Answer {
    Box::pin(std::future::pending())
}

/// A stream that may be shared, which boxed bodies have to be.
trait FuseSync: Sized {
    fn fuse_sync(self) -> SyncStream<Self>;
}

impl<S> FuseSync for S {
    fn fuse_sync(self) -> SyncStream<S> {
        SyncStream(Mutex::new(self))
    }
}

struct SyncStream<S>(Mutex<S>);

impl<S: futures_util::Stream + Unpin> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.get_mut().unwrap().poll_next_unpin(cx)
    }
}

/// White space without end.
pub(super) fn blank() -> Answer {
    let spaces = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(b" "))));
    let paced = spaces.then(|frame| async {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        frame
    });
    let body = BodyExt::boxed(StreamBody::new(Box::pin(paced).fuse_sync()));
    let response = Response::builder().body(body).unwrap();
    Box::pin(async { response })
}
