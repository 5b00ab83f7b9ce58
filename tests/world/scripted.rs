//! A binary cache in this process that counts what it is asked and answers as it is told to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::fault::Fault;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// How much of a body goes into one piece.
const PIECE_LEN: usize = 64 * 1024;

/// A scripted upstream; dropping it closes all of its connections.
pub(crate) struct Scripted {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    open: watch::Sender<bool>,
    released: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

struct State {
    folder: PathBuf,
    /// Which paths (those that contain the text) go wrong, and how. The first that fits counts.
    faults: Vec<(String, Fault)>,
    asked: BTreeMap<String, usize>,
    ranges: Vec<String>,
    honours_ranges: bool,
    extra: BTreeMap<String, Vec<u8>>,
    released: watch::Receiver<bool>,
}

impl Scripted {
    /// Serves a folder with a `nix-cache-info` of its own: priority 50, so after snowberry.
    pub(crate) async fn serve(folder: impl AsRef<Path>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut extra = BTreeMap::new();
        let cache_info = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 50\n".to_vec();
        extra.insert("/nix-cache-info".to_owned(), cache_info);
        let (released, release) = watch::channel(false);
        let state = Arc::new(Mutex::new(State {
            released: release,
            folder: folder.as_ref().to_path_buf(),
            faults: Vec::new(),
            asked: BTreeMap::new(),
            ranges: Vec::new(),
            honours_ranges: true,
            extra,
        }));
        let (open, gate) = watch::channel(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(listener, gate, Arc::clone(&state)));
        Self { address, state, open, released, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on paths that contain `part` go wrong in this way.
    pub(crate) fn fault(&self, part: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push((part.to_owned(), fault));
    }

    /// From now on everything is right again.
    pub(crate) fn heal(&self) {
        self.state.lock().unwrap().faults.clear();
        self.open.send_replace(true);
    }

    /// Refuses connections and cuts those that there are, until it is healed.
    pub(crate) fn refuse(&self) {
        self.open.send_replace(false);
    }

    /// Sends what is held back, now and from now on.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }

    /// Says `Accept-Ranges` and honours Range, as it does at first, or neither.
    pub(crate) fn honours_ranges(&self, yes: bool) {
        self.state.lock().unwrap().honours_ranges = yes;
    }

    /// Serves this instead of what the folder has, or beside it.
    pub(crate) fn put(&self, path: &str, body: impl Into<Vec<u8>>) {
        self.state.lock().unwrap().extra.insert(path.to_owned(), body.into());
    }

    /// How many requests there were for paths that contain `part`.
    pub(crate) fn asked(&self, part: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|(path, _)| path.contains(part)).map(|(_, count)| count).sum()
    }

    /// The Range headers that came, in order.
    pub(crate) fn ranges(&self) -> Vec<String> {
        self.state.lock().unwrap().ranges.clone()
    }
}

async fn listen(first: TcpListener, mut gate: watch::Receiver<bool>, state: Arc<Mutex<State>>) {
    let address = first.local_addr().unwrap();
    let mut listener = Some(first);
    let mut connections = JoinSet::new();
    loop {
        let Some(open) = &listener else {
            if gate.wait_for(|open| *open).await.is_err() {
                return;
            }
            listener = Some(TcpListener::bind(address).await.unwrap());
            continue;
        };
        tokio::select! {
            accepted = open.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
            Some(_) = connections.join_next() => {}
            over = async { gate.wait_for(|open| !open).await.is_err() } => {
                if over { return }
                listener = None;
                connections.shutdown().await;
            }
        }
    }
}

/// An error closes the connection without an answer.
async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Body>, std::io::Error> {
    let path = request.uri().path().to_owned();
    let range = request.headers().get("range").map(|range| range.to_str().unwrap().to_owned());
    let (fault, file, extra, honours_ranges, released) = {
        let mut state = state.lock().unwrap();
        *state.asked.entry(path.clone()).or_default() += 1;
        state.ranges.extend(range.clone());
        let fault =
            state.faults.iter().find(|(part, _)| path.contains(part)).map(|(_, fault)| *fault);
        let file = state.folder.join(path.trim_start_matches('/'));
        let extra = state.extra.get(&path).cloned();
        (fault, file, extra, state.honours_ranges, state.released.clone())
    };
    if let Some(answer) = without_body(&path, fault).await? {
        return Ok(answer);
    }
    let Some(body) = extra.or_else(|| std::fs::read(file).ok()) else {
        return Ok(short(404, "not here"));
    };
    let body = if let Some(Fault::Altered(alter)) = fault { alter(&body) } else { body };
    let start = range
        .filter(|_| honours_ranges)
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut response = Response::builder().status(if start.is_some() { 206 } else { 200 });
    if honours_ranges {
        response = response.header("accept-ranges", "bytes");
    }
    let all = body.len();
    let start = start.unwrap_or(0).min(all);
    if start > 0 {
        response = response.header("content-range", format!("bytes {start}-{}/{all}", all - 1));
    }
    response = response.header("content-length", all - start);
    let body = if request.method() == Method::HEAD { Vec::new() } else { body };
    Ok(response.body(paced(body, start, fault, released)).unwrap())
}

/// The faults that need no body of ours.
async fn without_body(
    path: &str,
    fault: Option<Fault>,
) -> Result<Option<Response<Body>>, std::io::Error> {
    let Some(fault) = fault else { return Ok(None) };
    Ok(match fault {
        Fault::Silent => std::future::pending::<Option<Response<Body>>>().await,
        Fault::Closed => return Err(std::io::Error::other("closed as told")),
        Fault::Status(status) => Some(short(status, "as told")),
        Fault::S3(status, code) => Some(short(
            status,
            &format!(
                "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>"
            ),
        )),
        Fault::RedirectLoop => {
            let response = Response::builder().status(302).header("location", path);
            Some(response.body(full(Vec::new())).unwrap())
        }
        Fault::Html => Some(short(200, "<!DOCTYPE html><html><body>Please log in</body></html>\n")),
        Fault::Altered(_)
        | Fault::Cut(_)
        | Fault::Stalled(_)
        | Fault::Dripping(_)
        | Fault::Held(_) => None,
    })
}

fn short(status: u16, text: &str) -> Response<Body> {
    Response::builder().status(status).body(full(text.as_bytes().to_vec())).unwrap()
}

fn full(body: Vec<u8>) -> Body {
    Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// The body from `start` on, in pieces; a fault that ends or slows it counts from `start`.
fn paced(
    body: Vec<u8>,
    start: usize,
    fault: Option<Fault>,
    released: watch::Receiver<bool>,
) -> Body {
    let body = Bytes::from(body);
    let (until, fault) = match fault {
        Some(
            fault @ (Fault::Cut(len)
            | Fault::Stalled(len)
            | Fault::Dripping(len)
            | Fault::Held(len)),
        ) => (body.len().min(start + len), Some(fault)),
        _ => (body.len(), None),
    };
    let pieces = stream::unfold(start.min(body.len()), move |at| {
        let body = body.clone();
        let mut released = released.clone();
        async move {
            if at == body.len() {
                return None;
            }
            let end = if at < until {
                until.min(at + PIECE_LEN)
            } else {
                match fault {
                    Some(Fault::Cut(_)) => {
                        // What was said before must be on the wire: hyper drops the rest.
                        let mut ticks = tokio::time::interval(Duration::from_millis(100));
                        ticks.tick().await;
                        ticks.tick().await;
                        return Some((Err(std::io::Error::other("cut as told")), body.len()));
                    }
                    Some(Fault::Dripping(_)) => {
                        let mut ticks = tokio::time::interval(Duration::from_millis(100));
                        ticks.tick().await;
                        ticks.tick().await;
                        at + 1
                    }
                    Some(Fault::Held(_)) => {
                        if released.wait_for(|released| *released).await.is_err() {
                            std::future::pending::<()>().await;
                        }
                        body.len().min(at + PIECE_LEN)
                    }
                    _ => std::future::pending().await,
                }
            };
            Some((Ok(Frame::data(body.slice(at..end))), end))
        }
    });
    StreamBody::new(pieces).boxed_unsync()
}
