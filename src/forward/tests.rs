//! Two caches of one house, listed by hand: who is asked, and who goes on with a NAR.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::*;
use crate::nix::CacheInfo;

const INFO: &[u8] = b"StoreDir: /nix/store\nPriority: 30\n";
const ETAG: &str = "\"14h9y4m56fpik665h6y3rcdrhn5wxrw1niqq489hfnhygjx29xdg\"";
const LEN: usize = 3_000_000;
const CUT_AT: usize = 1_000_000;

fn nar() -> Bytes {
    (0..LEN).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect::<Vec<u8>>().into()
}

type Answered = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// A cache with one NAR, which it cuts as long as it is told to.
struct Pi {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    tasks: JoinSet<()>,
}

impl Pi {
    /// Cuts every answer with `cuts`; goes on with another file if `etag` is another.
    async fn start(cuts: bool, etag: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let notes = Arc::clone(&heard);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let notes = Arc::clone(&notes);
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = answer_as(&request, cuts, etag, &notes);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    drop(
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
                    );
                });
            }
        });
        Self { address, heard, tasks }
    }

    fn place(&self) -> place::Place {
        place::Place {
            host: "snowberry.local".into(),
            port: self.address.port(),
            is_tls: false,
            addresses: vec![self.address.ip()],
            is_chosen: true,
        }
    }

    /// The ranges that were asked of it, with their `If-Range`.
    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

fn answer_as(
    request: &Request<Incoming>,
    cuts: bool,
    etag: &str,
    notes: &Mutex<Vec<String>>,
) -> Answered {
    let whole = |bytes: Bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
    if request.uri().path() == "/nix-cache-info" {
        return Response::new(whole(Bytes::from_static(INFO)));
    }
    let text = |name: &str| request.headers().get(name).map(|it| it.to_str().unwrap().to_owned());
    let range = text("range");
    let start: usize = range.as_deref().map_or(0, |range| {
        range.trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap()
    });
    notes.lock().unwrap().extend(range.map(|it| format!("{it} {}", text("if-range").unwrap())));
    let rest = nar().slice(start..);
    let mut response =
        Response::builder().header("etag", etag).header("content-length", rest.len());
    if start > 0 {
        response = response.status(206);
        response = response.header("content-range", format!("bytes {start}-{}/{LEN}", LEN - 1));
    }
    if !cuts {
        return response.body(whole(rest)).unwrap();
    }
    let pieces = [Ok(Frame::data(rest.slice(..CUT_AT))), Err(io::Error::other("cut"))];
    // What was said first must be on the wire: hyper drops the rest with the error.
    let pieces = stream::unfold((pieces.into_iter(), 0), |(mut pieces, at)| async move {
        for _ in 0..at * 1000 {
            tokio::task::yield_now().await;
        }
        pieces.next().map(|piece| (piece, (pieces, at + 1)))
    });
    response.body(StreamBody::new(pieces).boxed_unsync()).unwrap()
}

/// A hub that has found these caches.
async fn hub_of(pis: &[&Pi]) -> Arc<Hub> {
    let surroundings = crate::config::Surroundings {
        home: Some("/nonexistent".into()),
        ..crate::config::Surroundings::default()
    };
    let config = crate::config::load(None, &[], &surroundings).unwrap();
    let Trust { tls, .. } = Trust::read(&config.forward);
    let hub = Arc::new(Hub::new(StoreDir::default(), tls, false));
    hub.list(pis.iter().map(|pi| pi.place()).collect());
    for line in hub.due() {
        let info = line.cache_info().await.unwrap();
        assert_eq!(info, CacheInfo::parse(INFO).unwrap());
        hub.found(&line, info);
    }
    hub
}

async fn read(hub: &Arc<Hub>) -> Result<Bytes, reply::Cut> {
    let request = Request::builder().uri("/nar/x.nar.zst").body(()).unwrap();
    let (head, ()) = request.into_parts();
    let response = fetch::answer(hub, &head).await.into_response();
    assert_eq!(response.headers()["etag"], ETAG);
    response.into_body().collect().await.map(http_body_util::Collected::to_bytes)
}

#[tokio::test]
async fn another_cache_of_the_house_goes_on_with_a_nar() {
    let (mut first, second) = (Pi::start(true, ETAG).await, Pi::start(false, ETAG).await);
    let hub = hub_of(&[&first, &second]).await;
    let reading = read(&hub);
    let gone = async {
        // It goes once it was asked for a rest that it cuts too.
        while first.heard().is_empty() {
            tokio::task::yield_now().await;
        }
        first.tasks.shutdown().await;
    };
    let (body, ()) = tokio::join!(reading, gone);
    assert!(body.unwrap() == nar(), "other bytes");
    let asked = second.heard();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].starts_with("bytes=") && asked[0].ends_with(ETAG), "{asked:?}");
}

#[tokio::test]
async fn another_file_is_not_gone_on_with() {
    let (mut first, second) = (Pi::start(true, ETAG).await, Pi::start(false, "\"other\"").await);
    let hub = hub_of(&[&first, &second]).await;
    let reading = read(&hub);
    let gone = async {
        while first.heard().is_empty() {
            tokio::task::yield_now().await;
        }
        first.tasks.shutdown().await;
    };
    let (body, ()) = tokio::join!(reading, gone);
    assert!(body.is_err(), "a NAR was put together of two files");
}

#[tokio::test]
async fn the_second_cache_answers_when_the_first_is_gone() {
    let (mut first, second) = (Pi::start(false, ETAG).await, Pi::start(false, ETAG).await);
    let hub = hub_of(&[&first, &second]).await;
    assert!(read(&hub).await.unwrap() == nar());
    first.tasks.shutdown().await;
    assert!(read(&hub).await.unwrap() == nar());
    assert!(hub.line(&[], None).await.is_some_and(|line| line.place == second.place()));
}

#[tokio::test]
async fn a_stranger_over_plain_http_gets_no_token() {
    let pi = Pi::start(false, ETAG).await;
    let stranger = place::Place { is_chosen: false, ..pi.place() };
    let headers = [(hyper::header::AUTHORIZATION, "Basic eDp5".parse().unwrap())];
    let headers = headers.into_iter().collect();
    assert!(heads::to_cache(&headers, &stranger).is_empty());
    assert_eq!(heads::to_cache(&headers, &pi.place()).len(), 1);
}
