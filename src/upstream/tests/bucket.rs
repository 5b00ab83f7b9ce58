//! A bucket in memory that checks what it is given as `MinIO` does, and fails as it is told.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use super::server::{Answer, Outcome, Server, answer, s3_error, status};
use crate::upstream::s3::base16;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Answered with this before the body is read.
    Refused(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing is read any more after so many bytes, nor answered.
    Stalled(usize),
    /// Read, and never answered.
    Silent,
    /// Done, and the connection ends without an answer.
    AnswerLost,
    /// Read; the answer is white space, 200, and this error.
    ErrorInside(&'static str),
    /// Read; the answer is white space that does not end.
    Blank,
}

/// Looks at each request, and says what goes wrong with it.
pub(super) type Faults = dyn Fn(&Parts) -> Option<Fault> + Send + Sync;

/// What a bucket holds.
#[derive(Default)]
pub(super) struct Held {
    pub(super) objects: HashMap<String, Vec<u8>>,
    /// Parts by upload.
    pub(super) uploads: HashMap<String, BTreeMap<u32, Vec<u8>>>,
    /// Requests as `PUT nar/x?partNumber=1` without the upload's id.
    pub(super) requests: Vec<String>,
    /// Bodies that ended before their length.
    pub(super) short: usize,
}

/// The server and what it holds.
pub(super) struct Bucket {
    pub(super) server: Server,
    held: Arc<Mutex<Held>>,
}

impl Bucket {
    pub(super) async fn start(
        faults: impl Fn(&Parts) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let held = Arc::new(Mutex::new(Held::default()));
        let (faults, shared): (Arc<Faults>, _) = (Arc::new(faults), Arc::clone(&held));
        let server = Server::start_with_bodies(move |parts, body| {
            let (faults, held, parts) = (Arc::clone(&faults), Arc::clone(&shared), parts.clone());
            Box::pin(serve(faults, held, parts, body)) as Outcome
        });
        Self { server: server.await, held }
    }

    /// One without faults.
    pub(super) async fn well() -> Self {
        Self::start(|_| None).await
    }

    /// One that fails the first `times` requests that `is` picks.
    pub(super) async fn failing(
        fault: Fault,
        times: usize,
        is: impl Fn(&Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        let left = Mutex::new(times);
        Self::start(move |parts| {
            let mut left = left.lock().unwrap();
            (is(parts) && *left > 0).then(|| {
                *left -= 1;
                fault
            })
        })
        .await
    }

    pub(super) fn held<T>(&self, look: impl FnOnce(&mut Held) -> T) -> T {
        look(&mut self.held.lock().unwrap())
    }

    pub(super) fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.held(|held| held.objects.get(key).cloned())
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.held(|held| held.requests.clone())
    }
}

/// A value of the query.
pub(super) fn query<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    let pairs = parts.uri.query().unwrap_or("").split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(it, _)| *it == name).map(|(_, it)| it)
}

fn key_of(parts: &Parts) -> String {
    parts.uri.path().strip_prefix("/nix-cache/").unwrap().to_owned()
}

async fn serve(
    faults: Arc<Faults>,
    held: Arc<Mutex<Held>>,
    parts: Parts,
    mut body: Incoming,
) -> Option<hyper::Response<super::server::Body>> {
    let shown = match (query(&parts, "uploads"), query(&parts, "partNumber")) {
        (Some(_), _) => "?uploads".to_owned(),
        (_, Some(number)) => format!("?partNumber={number}"),
        _ if query(&parts, "uploadId").is_some() => "?uploadId".to_owned(),
        _ => String::new(),
    };
    held.lock().unwrap().requests.push(format!("{} {}{shown}", parts.method, key_of(&parts)));
    let fault = faults(&parts);
    let read_max = match fault {
        Some(Fault::Refused(code, name)) => {
            let refusal = if name.is_empty() { status(code) } else { s3_error(code, name) };
            return Some(refusal.await);
        }
        Some(Fault::Cut(len) | Fault::Stalled(len)) => len,
        _ => usize::MAX,
    };
    let mut bytes = Vec::new();
    while bytes.len() < read_max
        && let Some(frame) = body.frame().await
    {
        let Ok(frame) = frame else {
            held.lock().unwrap().short += 1;
            return None;
        };
        bytes.extend_from_slice(frame.data_ref().unwrap());
    }
    match fault {
        Some(Fault::Cut(_)) => return None,
        Some(Fault::Stalled(_) | Fault::Silent) => std::future::pending::<()>().await,
        Some(Fault::ErrorInside(code)) => {
            return Some(answer(200, &[], format!("  \n \n{}", error(code))).await);
        }
        Some(Fault::Blank) => return Some(super::server::blank().await),
        _ => {}
    }
    let answer = act(&held, &parts, bytes);
    if fault == Some(Fault::AnswerLost) { None } else { Some(answer.await) }
}

fn error(code: &str) -> String {
    format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code></Error>")
}

/// Checks a body as `MinIO` does.
fn check(parts: &Parts, bytes: &[u8]) -> Result<(), Answer> {
    let header = |name: &str| parts.headers.get(name).map(|it| it.to_str().unwrap());
    let Some(len) = header("content-length") else {
        return Err(s3_error(411, "MissingContentLength"));
    };
    assert_eq!(len, bytes.len().to_string());
    if header("transfer-encoding").is_some() || header("content-encoding").is_some() {
        return Err(s3_error(400, "InvalidRequest"));
    }
    if bytes.is_empty() {
        return Ok(());
    }
    let md5 = STANDARD.encode(Md5::digest(bytes));
    if header("content-md5") != Some(&md5) {
        return Err(s3_error(400, "BadDigest"));
    }
    let sha256 = base16(&Sha256::digest(bytes).into());
    match header("authorization") {
        None => Ok(()),
        Some(it) if !it.contains("content-md5") => Err(s3_error(403, "SignatureDoesNotMatch")),
        Some(_) if header("x-amz-content-sha256") == Some(&sha256) => Ok(()),
        Some(_) => Err(s3_error(400, "XAmzContentSHA256Mismatch")),
    }
}

fn act(held: &Mutex<Held>, parts: &Parts, bytes: Vec<u8>) -> Answer {
    let mut held = held.lock().unwrap();
    let key = key_of(parts);
    let upload = query(parts, "uploadId");
    if parts.method == Method::PUT
        && let Err(refused) = check(parts, &bytes)
    {
        return refused;
    }
    if let Some(id) = upload
        && !held.uploads.contains_key(id)
    {
        return s3_error(404, "NoSuchUpload");
    }
    match (parts.method.as_str(), upload) {
        ("HEAD" | "GET", _) => match held.objects.get(&key) {
            None => s3_error(404, "NoSuchKey"),
            Some(object) => answer(200, &[], object.clone()),
        },
        ("PUT", None) => {
            held.objects.insert(key, bytes);
            status(200)
        }
        ("POST", None) => {
            let id = format!("id{}%2B=", held.uploads.len());
            held.uploads.insert(id.replace('=', "%3D"), BTreeMap::new());
            let id = id.replace("%2B", "+");
            let text = format!(
                "<?xml version=\"1.0\"?>\n<InitiateMultipartUploadResult xmlns=\"x\"><Key>{key}\
                 </Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            );
            answer(200, &[], text)
        }
        ("PUT", Some(id)) => {
            let number = query(parts, "partNumber").unwrap().parse().unwrap();
            let etag = format!("\"part{number}\"");
            held.uploads.get_mut(id).unwrap().insert(number, bytes);
            answer(200, &[("etag", &etag)], "")
        }
        ("POST", Some(id)) => {
            let parts = held.uploads.remove(id).unwrap();
            let mut wanted = "<CompleteMultipartUpload>".to_owned();
            for n in parts.keys() {
                write!(wanted, "<Part><PartNumber>{n}</PartNumber><ETag>\"part{n}\"</ETag></Part>")
                    .unwrap();
            }
            wanted.push_str("</CompleteMultipartUpload>");
            assert_eq!(String::from_utf8(bytes).unwrap(), wanted);
            held.objects.insert(key, parts.into_values().flatten().collect());
            answer(200, &[], "  \n<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
        }
        ("DELETE", Some(id)) => {
            held.uploads.remove(id);
            status(204)
        }
        other => panic!("no snowberry needs {other:?}"),
    }
}
