//! An upstream that follows a script: small HTTP/1.1 over loopback, one request a connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How one file is answered.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// Whole, and Ranges of it.
    Whole(Bytes),
    /// So many times the body stops after `first` bytes; then it is whole.
    Partly { body: Bytes, first: usize, then: Then, times: usize },
    /// This status.
    Status(u16),
    /// Never.
    Silent,
}

/// What comes after the first bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Then {
    /// Nothing, for ever.
    Silence,
    /// The connection is closed.
    Close,
}

#[derive(Default)]
struct Shared {
    answers: Mutex<HashMap<String, Answer>>,
    asked: Mutex<Vec<String>>,
}

/// The server; it ends when dropped.
pub(super) struct Server {
    shared: Arc<Shared>,
    pub(super) url: String,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&own)));
            }
        });
        Self { shared, url, _tasks: tasks }
    }

    pub(super) fn set(&self, path: &str, answer: Answer) {
        self.shared.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Nothing is there any more.
    pub(super) fn clear(&self) {
        self.shared.answers.lock().unwrap().clear();
    }

    /// What was asked until now does not count any more.
    pub(super) fn forget_asked(&self) {
        self.shared.asked.lock().unwrap().clear();
    }

    /// How often a path with this in it was asked for.
    pub(super) fn asked(&self, part: &str) -> usize {
        self.shared.asked.lock().unwrap().iter().filter(|path| path.contains(part)).count()
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let path = head.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
    let range = head.split_once("range: bytes=").and_then(|(_, rest)| rest.split_once('-'));
    let from = range.map(|(from, _)| from.parse::<usize>().unwrap());
    shared.asked.lock().unwrap().push(match from {
        Some(from) => format!("{path} from {from}"),
        None => path.clone(),
    });
    let answer = {
        let mut answers = shared.answers.lock().unwrap();
        match answers.get_mut(&path) {
            Some(Answer::Partly { body, times: 0, .. }) => Answer::Whole(body.clone()),
            Some(Answer::Partly { body, first, then, times }) => {
                *times -= 1;
                Answer::Partly { body: body.clone(), first: *first, then: *then, times: 1 }
            }
            Some(other) => other.clone(),
            None => Answer::Status(404),
        }
    };
    let (body, end, then) = match answer {
        Answer::Whole(body) => {
            let end = body.len();
            (body, end, Then::Close)
        }
        Answer::Partly { body, first, then, .. } => (body, first, then),
        Answer::Status(status) => {
            let text =
                format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(text.as_bytes()).await.ok();
            return;
        }
        Answer::Silent => return std::future::pending().await,
    };
    let start = from.unwrap_or(0).min(body.len());
    let content_len = body.len() - start;
    let (status, range) = match from {
        Some(_) => {
            let range =
                format!("Content-Range: bytes {start}-{}/{}\r\n", body.len() - 1, body.len());
            (206, range)
        }
        None => (200, String::new()),
    };
    let text = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {content_len}\r\nETag: \"e\"\r\n{range}Connection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.ok();
    let end = end.max(start);
    stream.write_all(&body[start..end]).await.ok();
    stream.flush().await.ok();
    if matches!(then, Then::Silence) && end < body.len() {
        std::future::pending::<()>().await;
    }
    stream.shutdown().await.ok();
}
