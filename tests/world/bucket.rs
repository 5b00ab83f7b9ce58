//! A bucket in this process, as S3 has it, that fails as it is told, counts what it is given, and
//! notes when a narinfo comes before its NAR.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::closure::Narinfo;

/// What goes wrong with a write (and with what is asked, where it says so).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Nothing is answered, to any request.
    Silent,
    /// Every request gets this status and code.
    Refused(u16, &'static str),
    /// Every write gets this status and code, reading goes on.
    NoWrite(u16, &'static str),
    /// The connection ends after so many bytes of a body.
    Cut(usize),
    /// The parts of an upload are taken and put together, and that is answered with 200 and an
    /// error inside; the upload is gone and the object is not there.
    ErrorInside(&'static str),
    /// What is written is kept, and the connection ends without an answer.
    AnswerLost,
    /// The parts of an upload get no answer, all else does.
    PartsSilent,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    uploads: usize,
    aborted: usize,
    /// Which keys (those that contain the text) go wrong.
    wrong: Vec<(String, Wrong)>,
    /// Bodies that came whole, by key: parts count as their object.
    puts: BTreeMap<String, usize>,
    order: Vec<String>,
    under_way: BTreeSet<String>,
    most_under_way: usize,
    broken_promises: Vec<String>,
    expiration: Option<String>,
}

/// A scripted bucket `nix-cache`; dropping it closes all of its connections.
pub(crate) struct Bucket {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    open: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Bucket {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut state = State::default();
        let cache_info = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n".to_vec();
        state.objects.insert("nix-cache-info".to_owned(), cache_info);
        let state = Arc::new(Mutex::new(state));
        let (open, gate) = watch::channel(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(listener, gate, Arc::clone(&state)));
        Self { address, state, open, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("s3://nix-cache?endpoint=http://{}&region=us-east-1", self.address)
    }

    fn state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }

    /// From now on keys that contain `part` go wrong in this way.
    pub(crate) fn wrong(&self, part: &str, how: Wrong) {
        self.state(|state| state.wrong.push((part.to_owned(), how)));
    }

    /// From now on everything is right again.
    pub(crate) fn heal(&self) {
        self.state(|state| state.wrong.clear());
        self.open.send_replace(true);
    }

    /// Refuses connections and cuts those that there are, until it is healed.
    pub(crate) fn down(&self) {
        self.open.send_replace(false);
    }

    /// What each object is said to expire as (`x-amz-expiration`).
    pub(crate) fn expires(&self, header: &str) {
        self.state(|state| state.expiration = Some(header.to_owned()));
    }

    pub(crate) fn put(&self, key: &str, body: &[u8]) {
        self.state(|state| state.objects.insert(key.to_owned(), body.to_vec()));
    }

    pub(crate) fn remove(&self, key: &str) {
        self.state(|state| state.objects.remove(key));
    }

    pub(crate) fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.state(|state| state.objects.get(key).cloned())
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.state(|state| state.objects.keys().cloned().collect())
    }

    /// How many bodies came whole for keys that contain `part`.
    pub(crate) fn puts(&self, part: &str) -> usize {
        self.state(|state| {
            state.puts.iter().filter(|(key, _)| key.contains(part)).map(|(_, count)| count).sum()
        })
    }

    /// Keys that came whole more than once.
    pub(crate) fn put_twice(&self) -> Vec<String> {
        self.state(|state| {
            state.puts.iter().filter(|(_, n)| **n > 1).map(|(key, _)| key.clone()).collect()
        })
    }

    /// Keys in the order in which they came whole.
    pub(crate) fn order(&self) -> Vec<String> {
        self.state(|state| state.order.clone())
    }

    /// The most writes at one time.
    pub(crate) fn most_under_way(&self) -> usize {
        self.state(|state| state.most_under_way)
    }

    /// Multipart uploads that were neither completed nor aborted.
    pub(crate) fn uploads_left(&self) -> usize {
        self.state(|state| state.parts.len())
    }

    /// No narinfo ever came before its NAR.
    #[track_caller]
    pub(crate) fn expect_order(&self) {
        let broken = self.state(|state| state.broken_promises.clone());
        assert!(broken.is_empty(), "{broken:?}");
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

type Answer = Response<Full<Bytes>>;

fn plain(status: u16, body: impl Into<Bytes>) -> Answer {
    Response::builder().status(status).body(Full::new(body.into())).unwrap()
}

fn error(status: u16, code: &str) -> Answer {
    plain(status, format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code></Error>"))
}

/// Counts a write while it lasts.
struct UnderWay(Arc<Mutex<State>>, String);

impl UnderWay {
    fn begin(state: &Arc<Mutex<State>>, key: String) -> Self {
        let mut held = state.lock().unwrap();
        held.under_way.insert(key.clone());
        held.most_under_way = held.most_under_way.max(held.under_way.len());
        Self(Arc::clone(state), key)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().unwrap().under_way.remove(&self.1);
    }
}

/// An error closes the connection without an answer.
async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Answer, std::io::Error> {
    let closed = || std::io::Error::other("closed as told");
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().strip_prefix("/nix-cache/").unwrap_or_default();
    let key = path.replace("%21", "!").replace("%3A", ":");
    let query = head.uri.query().unwrap_or_default().to_owned();
    let writes = [Method::PUT, Method::POST].contains(&head.method);
    let wrong = {
        let state = state.lock().unwrap();
        state.wrong.iter().find(|(part, _)| key.contains(part)).map(|(_, wrong)| *wrong)
    };
    match wrong {
        Some(Wrong::Silent) => return std::future::pending().await,
        Some(Wrong::Refused(status, code)) => return Ok(error(status, code)),
        Some(Wrong::NoWrite(status, code)) if writes => return Ok(error(status, code)),
        _ => {}
    }
    let _under_way = writes.then(|| UnderWay::begin(&state, format!("{key}?{query}")));
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(closed()) };
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if let Some(Wrong::Cut(len)) = wrong
            && writes
            && bytes.len() >= len
        {
            return Err(closed());
        }
    }
    if let Some(Wrong::ErrorInside(code)) = wrong
        && query.starts_with("uploadId")
        && head.method == Method::POST
    {
        return Ok(error(200, code));
    }
    if wrong == Some(Wrong::PartsSilent) && query.starts_with("partNumber") {
        return std::future::pending().await;
    }
    let done = act(&mut state.lock().unwrap(), &head.method, &key, &query, bytes);
    if wrong == Some(Wrong::AnswerLost) && writes { Err(closed()) } else { Ok(done) }
}

fn act(state: &mut State, method: &Method, key: &str, query: &str, body: Vec<u8>) -> Answer {
    let value = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(is, _)| *is == name).map(|(_, value)| value.to_owned()).next()
    };
    match (method.as_str(), value("uploadId")) {
        ("GET" | "HEAD", _) => {
            let Some(object) = state.objects.get(key) else { return error(404, "NoSuchKey") };
            let mut answer = Response::builder().status(200).header("content-length", object.len());
            answer = answer.header("last-modified", "Sat, 21 Nov 2026 12:00:00 GMT");
            if let Some(expiration) = &state.expiration {
                answer = answer.header("x-amz-expiration", expiration);
            }
            let body = if method == Method::HEAD { Vec::new() } else { object.clone() };
            answer.body(Full::new(body.into())).unwrap()
        }
        ("POST", None) => {
            state.uploads += 1;
            let id = format!("upload{}", state.uploads);
            state.parts.insert(id.clone(), BTreeMap::new());
            plain(
                200,
                format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
                 </InitiateMultipartUploadResult>"
                ),
            )
        }
        ("PUT", Some(id)) => {
            let number = value("partNumber").unwrap().parse().unwrap();
            let Some(parts) = state.parts.get_mut(&id) else { return error(404, "NoSuchUpload") };
            parts.insert(number, body);
            let mut answer = plain(200, "");
            answer.headers_mut().insert("etag", format!("\"{number}\"").parse().unwrap());
            answer
        }
        ("POST", Some(id)) => {
            let Some(parts) = state.parts.remove(&id) else { return error(404, "NoSuchUpload") };
            keep(state, key, parts.into_values().flatten().collect());
            plain(
                200,
                format!(
                    "<CompleteMultipartUploadResult><Key>{key}</Key><ETag>\"x\"</ETag>\
                 </CompleteMultipartUploadResult>"
                ),
            )
        }
        ("DELETE", Some(id)) => {
            state.aborted += usize::from(state.parts.remove(&id).is_some());
            plain(204, "")
        }
        ("PUT", None) => {
            keep(state, key, body);
            plain(200, "")
        }
        (other, _) => panic!("{other} {key}?{query}"),
    }
}

fn keep(state: &mut State, key: &str, body: Vec<u8>) {
    *state.puts.entry(key.to_owned()).or_default() += 1;
    state.order.push(key.to_owned());
    if key.ends_with(".narinfo") {
        let narinfo = Narinfo::parse(&body);
        let nar = state.objects.get(narinfo.field("URL")).map(Vec::len);
        let wanted = narinfo.field("FileSize").parse().ok();
        if nar.is_none() || nar != wanted {
            state.broken_promises.push(format!("{key} came while its NAR had {nar:?} bytes"));
        }
    }
    state.objects.insert(key.to_owned(), body);
}
