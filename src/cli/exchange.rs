//! One request and its answer, over TCP or a local socket.

use std::ops::ControlFlow;

use anyhow::Context;
use bytes::BytesMut;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// What carries an exchange. All commands ask over the one type that this makes of TCP, local sockets
/// and TLS, so that the program has hyper's client once for them.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A status is a few hundred bytes and about 200 for each upstream or push target; the longest answer
/// has a narinfo of 1 MiB in it.
const ANSWER_LEN_MAX: usize = 2 << 20;

/// A connection to `HOST[:PORT]`.
pub(super) async fn connect(authority: &str) -> anyhow::Result<TcpStream> {
    let has_port = authority.rsplit_once(':').is_some_and(|(host, port)| {
        !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit()) && !host.ends_with(':')
    });
    let address = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    TcpStream::connect(address).await.context("connect")
}

/// What is at a path of `HOST[:PORT]`; anything but a success is an error.
pub(super) async fn get(authority: &str, path: &str) -> anyhow::Result<Bytes> {
    let request =
        Request::get(path).header(header::HOST, authority).body(Full::default()).context("ask")?;
    let (status, body) = over(connect(authority).await?, request).await?;
    anyhow::ensure!(status.is_success(), "the answer was {status}");
    Ok(body)
}

/// The answer to `request` over a fresh connection.
pub(super) async fn over(
    stream: impl Wire + 'static,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    with(Box::new(stream), request, async |response| {
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX);
        let body = body.collect().await.map_err(anyhow::Error::from_boxed).context("read")?;
        Ok((status, body.to_bytes()))
    })
    .await
}

/// Hands each line of the answer to `request` to `heard` as it comes, until that says that it was
/// the last; without it, the status and whether there was a last line.
pub(super) async fn lines(
    stream: impl Wire + 'static,
    request: Request<Full<Bytes>>,
    mut heard: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> anyhow::Result<(StatusCode, bool)> {
    with(Box::new(stream), request, async |response| {
        let status = response.status();
        let mut body = response.into_body();
        let mut begun = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame.context("read")?.into_data() else { continue };
            begun.extend_from_slice(&bytes);
            while let Some(end) = begun.iter().position(|byte| *byte == b'\n') {
                if heard(&begun.split_to(end + 1)).is_break() {
                    return Ok((status, true));
                }
            }
            anyhow::ensure!(begun.len() < ANSWER_LEN_MAX, "a line of the answer has no end");
        }
        Ok((status, !begun.is_empty() && heard(&begun).is_break()))
    })
    .await
}

async fn with<T>(
    stream: Box<dyn Wire>,
    request: Request<Full<Bytes>>,
    read: impl AsyncFnOnce(Response<Incoming>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("connect")?;
    let exchange = async {
        let response = sender.send_request(request).await.context("ask")?;
        read(response).await
    };
    tokio::pin!(exchange);
    // The connection ends when the exchange does, or earlier with the exchange's error.
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => {
            ended.context("keep the connection")?;
            exchange.await
        }
    }
}
