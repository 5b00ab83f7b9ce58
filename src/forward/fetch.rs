//! GET and HEAD: asked of the cache that is here, tried again where a connection broke, absent where
//! there is none.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderValue, RANGE};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use tracing::debug;

use super::heads::{self, Span};
use super::hub::Hub;
use super::line::{self, Lane, Line, Patience, read_small};
use super::reply::{self, Passed, Reply, is_trouble};
use super::stream::{Coming, Rest};
use crate::nix::narinfo::NARINFO_LEN_MAX;

/// How often a question is put: a pooled connection may be closed at the moment it is used, and a
/// second cache may be there.
const TRIES_MAX: usize = 3;

/// How long a small answer may take from a cache that shows signs of life: snowberry answers a
/// narinfo within 2.5 s, whatever its upstreams do.
const SMALL_WAIT: Duration = Duration::from_secs(4);

/// How long the first byte of a NAR may take: snowberry waits for upstreams, memory and room.
const NAR_WAIT: Duration = Duration::from_mins(2);

/// Small answers up to this are had whole before the client sees any of them: one that breaks off
/// in the middle is then absent, and no error.
const WHOLE_LEN_MAX: u64 = 64 * 1024;

/// Why there is no answer from one cache.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the cache is lost")]
    Lost,
    #[error("the connection broke")]
    Broken,
    #[error("no answer in time")]
    Late,
}

/// Answers a GET or HEAD.
pub(super) async fn answer(hub: &Arc<Hub>, head: &Parts) -> Reply {
    for _ in 0..TRIES_MAX {
        let Some(line) = hub.line(&[], None).await else { return Reply::Absent };
        match ask(hub, &line, head).await {
            Ok(passed) if is_trouble(passed.status) => {
                debug!(status = %passed.status, "trouble of the cache, taken for absence");
                return Reply::Absent;
            }
            Ok(passed) => return Reply::Passed(passed),
            Err(Failed::Lost) => {}
            Err(Failed::Broken) => hub.doubt(&line),
            Err(Failed::Late) => return Reply::Absent,
        }
    }
    Reply::Absent
}

/// Whether what is asked is as long as a file may be.
fn is_nar(head: &Parts) -> bool {
    head.method == Method::GET
        && (head.uri.path().contains("/nar/") || head.headers.contains_key(RANGE))
}

async fn ask(hub: &Arc<Hub>, line: &Arc<Line>, head: &Parts) -> Result<Passed, Failed> {
    let is_nar = is_nar(head);
    let (lane, wait) = if is_nar { (Lane::Bulk, NAR_WAIT) } else { (Lane::Small, SMALL_WAIT) };
    let path = head.uri.path_and_query().map_or("/", |it| it.as_str());
    let mut request = Request::new(line::nothing());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = line.uri(path).ok_or(Failed::Late)?;
    *request.headers_mut() = heads::to_cache(&head.headers, &line.place);
    let asking = async {
        let response = line.send(lane, request).await.map_err(|error| broken(hub, line, &error))?;
        if is_nar {
            Ok(passed_nar(hub, line, head, response))
        } else {
            small(hub, line, head, response).await
        }
    };
    tokio::select! {
        biased;
        passed = asking => passed,
        silent = line.watch(Instant::now(), Patience::Reader) => {
            hub.lost(line, &silent);
            Err(Failed::Lost)
        }
        () = tokio::time::sleep(wait) => Err(Failed::Late),
    }
}

fn broken(hub: &Hub, line: &Line, error: &hyper_util::client::legacy::Error) -> Failed {
    debug!(error = error as &dyn StdError, "question failed");
    if line::is_connect(error) {
        hub.lost(line, error);
        return Failed::Lost;
    }
    Failed::Broken
}

fn passed_nar(
    hub: &Arc<Hub>,
    line: &Arc<Line>,
    head: &Parts,
    response: Response<Incoming>,
) -> Passed {
    let (answer, body) = response.into_parts();
    let rest = Span::of(answer.status, &answer.headers).map(|span| Rest {
        span,
        path_and_query: head.uri.path_and_query().map_or("/", |it| it.as_str()).to_owned(),
        headers: head.headers.clone(),
        resumes: 0,
    });
    let coming = Coming { hub: Arc::clone(hub), line: Arc::clone(line), body, rest };
    let headers = heads::end_to_end(&answer.headers);
    Passed { status: answer.status, headers, body: coming.into_body(), drained: true }
}

/// Whole where it is short; a narinfo always.
async fn small(
    hub: &Arc<Hub>,
    line: &Arc<Line>,
    head: &Parts,
    response: Response<Incoming>,
) -> Result<Passed, Failed> {
    let (answer, body) = response.into_parts();
    let mut headers = heads::end_to_end(&answer.headers);
    let status = answer.status;
    if head.method == Method::HEAD {
        return Ok(Passed { status, headers, body: reply::empty(), drained: true });
    }
    let is_narinfo = head.uri.path().ends_with(".narinfo");
    let is_short = body.size_hint().exact().is_some_and(|len| len <= WHOLE_LEN_MAX);
    if !is_narinfo && !is_short {
        let coming = Coming { hub: Arc::clone(hub), line: Arc::clone(line), body, rest: None };
        return Ok(Passed { status, headers, body: coming.into_body(), drained: true });
    }
    let text = whole(line, body).await.map_err(|error| {
        debug!(error = &error as &dyn StdError, "small answer broken off");
        Failed::Broken
    })?;
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    Ok(Passed { status, headers, body: reply::full(text), drained: true })
}

async fn whole(line: &Line, body: Incoming) -> io::Result<Bytes> {
    let text = read_small(body, NARINFO_LEN_MAX).await?;
    line.hear();
    Ok(text)
}
