//! Writes through the built `snowberry`, by a plain HTTP client: who may, what is taken, what is
//! refused and how, and what can be read back.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

#[path = "../made/mod.rs"]
mod made;
#[path = "../world/mod.rs"]
mod world;

mod accepted;
mod aliases;
mod bodies;
mod others;
mod refused;
mod view;
mod writers;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::Method;
use made::{Made, MadeCache};
use snowberry::nix::{NarInfo, StoreDir};
use snowberry::push::tokens::Tokens;
use world::{Answer, Settings, Snowberry};

/// A snowberry and a token for it.
struct Lab {
    snowberry: Snowberry,
    token: String,
}

impl Lab {
    /// Without any upstream.
    async fn new() -> Self {
        Self::with(Settings::new()).await
    }

    async fn with(settings: Settings) -> Self {
        let snowberry = settings.start().await;
        let token = add_token(&snowberry, "tester", 1);
        Self { snowberry, token }
    }

    async fn put(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.put_with(path, &[], body).await
    }

    async fn put_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let authorization = basic(&self.token);
        let mut all = vec![("authorization", authorization.as_str())];
        all.extend(headers);
        self.snowberry.client().ask(Method::PUT, path, &all, body.into()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.snowberry.client().get(path).await
    }

    async fn head(&self, path: &str) -> Answer {
        self.snowberry.client().head(path).await
    }

    async fn put_nar(&self, made: &Made) -> Answer {
        self.put(&format!("/{}", made.file_url()), made.file.clone()).await
    }

    async fn put_narinfo(&self, made: &Made, narinfo: &NarInfo) -> Answer {
        self.put(&made.narinfo_url(), narinfo.print(&StoreDir::default())).await
    }

    /// NAR and narinfo, as Nix pushes a path.
    async fn push(&self, made: &Made) {
        let nar = self.put_nar(made).await;
        assert_eq!(nar.status, 200, "the NAR: {}", nar.text());
        let narinfo = self.put_narinfo(made, &unsigned(made)).await;
        assert_eq!(narinfo.status, 200, "the narinfo: {}", narinfo.text());
    }

    /// The narinfo that clients see, when there is one.
    async fn narinfo(&self, made: &Made) -> Option<NarInfo> {
        self.snowberry.parsed_narinfo(&made.narinfo_url()).await
    }

    /// Whether the narinfo is signed by the cache's own key.
    async fn is_ours(&self, narinfo: &NarInfo) -> bool {
        self.snowberry.signed(narinfo).await
    }
}

/// What a builder without a signing key uploads.
fn unsigned(made: &Made) -> NarInfo {
    NarInfo { signatures: Vec::new(), ..made.narinfo() }
}

fn tokens(snowberry: &Snowberry) -> Tokens {
    Tokens::new(snowberry.state().join("tokens"))
}

fn add_token(snowberry: &Snowberry, name: &str, seed: u8) -> String {
    tokens(snowberry).add(name, [seed; 20], 0).unwrap()
}

fn basic(token: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("any:{token}")))
}

/// A refusal that Nix shows and does not try again: a permanent 4xx with a sentence.
#[track_caller]
fn expect_refused(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(answer.text().contains(words), "{:?} is not in: {}", words, answer.text());
    assert!(answer.body.len() < 1024 && answer.text().ends_with('\n'), "{}", answer.text());
}
