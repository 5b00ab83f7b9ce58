//! A plain HTTP client: one request, one connection, everything measured, nothing retried.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// No answer of any test takes longer; what does is a hang.
const ANSWER_LIMIT: Duration = Duration::from_mins(2);

/// Asks one server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client(pub(crate) SocketAddr);

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The body ended as HTTP wants it, not by a cut connection.
    pub(crate) whole: bool,
    /// From the request to the head of the answer, and to the last byte.
    pub(crate) head_after: Duration,
    pub(crate) all_after: Duration,
}

impl Answer {
    /// A header's value, or nothing.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[], Bytes::new()).await
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.ask(Method::HEAD, path, &[], Bytes::new()).await
    }

    pub(crate) async fn put(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.ask(Method::PUT, path, &[], body.into()).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask(Method::GET, path, headers, Bytes::new()).await
    }

    /// Asks and reads the answer to its end, whatever end that is.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        let request = self.request(method, path, headers, body);
        let answer = timeout(ANSWER_LIMIT, self.carry(request)).await;
        let answer = answer.unwrap_or_else(|_| panic!("no end of the answer to {path}"));
        answer.unwrap_or_else(|error| panic!("no answer to {path}: {error}"))
    }

    /// The same of a server that may die meanwhile.
    pub(crate) async fn try_get(&self, path: &str) -> Option<Answer> {
        let request = self.request(Method::GET, path, &[], Bytes::new());
        timeout(ANSWER_LIMIT, self.carry(request)).await.unwrap().ok()
    }

    /// A PUT to a server that may die meanwhile.
    pub(crate) async fn try_put(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Option<Answer> {
        let request = self.request(Method::PUT, path, headers, body.into());
        timeout(ANSWER_LIMIT, self.carry(request)).await.unwrap().ok()
    }

    async fn carry(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let started = Instant::now();
        let mut connection = JoinSet::new();
        let response = self.send(request, &mut connection).await?;
        let head_after = started.elapsed();
        let (head, mut incoming) = response.into_parts();
        let (mut body, mut whole) = (Vec::new(), true);
        while let Some(frame) = incoming.frame().await {
            let Ok(frame) = frame else {
                whole = false;
                break;
            };
            body.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        }
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.into(),
            whole,
            head_after,
            all_after: started.elapsed(),
        })
    }

    /// Asks and hands out the body unread, for a reader with a speed of its own. The connection
    /// lives as long as the set of tasks.
    pub(crate) async fn open(&self, path: &str, tasks: &mut JoinSet<()>) -> Response<Incoming> {
        let request = self.request(Method::GET, path, &[], Bytes::new());
        timeout(ANSWER_LIMIT, self.send(request, tasks)).await.unwrap().unwrap()
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", self.0.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body)).unwrap()
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Response<Incoming>, String> {
        let stream = TcpStream::connect(self.0).await.map_err(|error| error.to_string())?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        tasks.spawn(async move { drop(connection.await) });
        sender.send_request(request).await.map_err(|error| error.to_string())
    }
}
