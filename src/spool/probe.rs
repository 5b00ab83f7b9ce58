//! A question before and after each trouble, so that Nix does not pack gigabytes for a cache that
//! is away or refuses: a PUT of `nix-cache-info`, which a cache checks like any other upload and
//! takes without keeping it.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Target;
use crate::nix::StoreDir;

/// How long a connection may take: a machine of the house answers in milliseconds.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// How long the answer may take: a forwarder that looks for its cache, and a slow line.
const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// A refusal is a sentence.
const ANSWER_LEN_MAX: usize = 4096;

/// What the cache says of uploads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It takes them.
    Takes,
    /// It cannot be asked from here; Nix will see.
    Unknown,
    /// It is not there, with a sentence.
    Away(String),
    /// It does not take them from us, with its sentence.
    Refuses(String),
}

/// Asks whether `to` takes uploads with this token.
pub(super) async fn ask(to: &Target, token: Option<&str>, store_dir: &StoreDir) -> Answer {
    // Nix knows certificates and proxies that this question does not.
    if !to.is_plain() || (!to.is_direct() && has_proxy()) {
        return Answer::Unknown;
    }
    let stream = match timeout(CONNECT_WAIT, TcpStream::connect(to.place())).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Answer::Away(nobody(to, &error.to_string())),
        Err(_) => return Answer::Away(nobody(to, "no answer")),
    };
    // Nix finds a token of its own in its netrc-file.
    let Some(token) = token else { return Answer::Unknown };
    match timeout(ANSWER_WAIT, put(stream, to, token, store_dir)).await {
        Ok(Ok((200..300, _))) => Answer::Takes,
        Ok(Ok((401 | 403, said))) => Answer::Refuses(said),
        Ok(Ok((_, said))) => Answer::Away(said),
        Ok(Err(error)) => Answer::Away(nobody(to, &super::with_causes(&error))),
        Err(_) => Answer::Away(nobody(to, "no answer")),
    }
}

fn has_proxy() -> bool {
    let names = ["http_proxy", "all_proxy", "ALL_PROXY"];
    names.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

fn nobody(to: &Target, why: &str) -> String {
    let hint = if to.is_direct() { "; is `snowberry forward` running?" } else { "" };
    format!("nobody answers at {}: {why}{hint}", to.authority())
}

async fn put(
    stream: TcpStream,
    to: &Target,
    token: &str,
    store_dir: &StoreDir,
) -> Result<(u16, String), hyper::Error> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let basic = format!("Basic {}", STANDARD.encode(format!("snowberry:{token}")));
    let request = Request::put(format!("{}/nix-cache-info", to.path()))
        .header(header::HOST, to.authority())
        .header(header::AUTHORIZATION, basic)
        .header(header::CONTENT_TYPE, "text/x-nix-cache-info")
        .body(Full::new(Bytes::from(format!("StoreDir: {store_dir}\n"))));
    let request = request.expect("a parsed URL and base64 are valid in a request");
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let said = String::from_utf8_lossy(&body);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let said =
            if said.is_empty() { format!("{} answered {status}", to.authority()) } else { said };
        Ok((status.as_u16(), said))
    };
    tokio::pin!(exchange);
    // The connection ends when the exchange does, or earlier with the exchange's error.
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection so, and gives what was asked and what was made of it.
    async fn asked(answer: &'static str, token: Option<&str>) -> (String, Answer) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to: Target = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = Vec::new();
            while !question.ends_with(b"StoreDir: /nix/store\n") {
                if stream.read_buf(&mut question).await.unwrap() == 0 {
                    break;
                }
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(question).unwrap()
        };
        let store_dir = StoreDir::default();
        tokio::join!(server, ask(&to, token, &store_dir))
    }

    #[tokio::test]
    async fn a_cache_that_takes_uploads_is_told_from_one_that_does_not() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let (question, answer) = asked(ok, Some("secret")).await;
        assert_eq!(answer, Answer::Takes);
        assert!(question.starts_with("PUT /push/nix-cache-info HTTP/1.1\r\n"), "{question}");
        assert!(question.contains("Basic c25vd2JlcnJ5OnNlY3JldA=="), "{question}");
        let refusal = "HTTP/1.1 403 Forbidden\r\ncontent-length: 12\r\n\r\nNo token of\n";
        let refused = Answer::Refuses("No token of".to_owned());
        assert_eq!(asked(refusal, Some("secret")).await.1, refused);
        let away = "HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nIt's away";
        assert_eq!(asked(away, Some("secret")).await.1, Answer::Away("It's away".to_owned()));
        let cut = "HTTP/1.1 2";
        assert!(matches!(asked(cut, Some("secret")).await.1, Answer::Away(_)));
        assert_eq!(asked("", None).await.1, Answer::Unknown);
    }

    #[tokio::test]
    async fn nobody_there_is_said_in_a_sentence() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to: Target = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        drop(listener);
        let answer = ask(&to, Some("secret"), &StoreDir::default()).await;
        assert!(matches!(&answer, Answer::Away(said) if said.contains("snowberry forward")));
        let to: Target = "https://127.0.0.1:1".parse().unwrap();
        assert_eq!(ask(&to, None, &StoreDir::default()).await, Answer::Unknown);
    }
}
