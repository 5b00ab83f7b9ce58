//! The whole of it: a built `snowberry` that takes uploads, carries them to a target, forgets them,
//! has them again from there; beside other upstreams, with many uploaders, and killed at work.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    reason = "a test stops at what it did not expect"
)]

#[path = "../made/mod.rs"]
mod made;
#[path = "../world/mod.rs"]
mod world;

mod beside;
mod demo;
mod evicted;
mod killed;
mod many;
mod reloaded;
mod traces;

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::Method;
use made::Made;
use snowberry::nix::{NarInfo, StoreDir};
use snowberry::push::tokens::Tokens;
use world::{Answer, Client, Settings, Snowberry, until};

/// Everything here is small and on loopback; a back-off of 5 s is waited for more than once.
const LIMIT: Duration = Duration::from_secs(40);

/// A snowberry and a token for it.
struct Lab {
    snowberry: Snowberry,
    token: String,
}

impl Lab {
    async fn with(settings: Settings) -> Self {
        let snowberry = settings.start().await;
        let tokens = Tokens::new(snowberry.state().join("tokens"));
        let token = tokens.add("tester", [1; 20], 0).unwrap();
        Self { snowberry, token }
    }

    /// What an uploader needs.
    fn uploader(&self) -> Uploader {
        let authorization = format!("Basic {}", STANDARD.encode(format!("any:{}", self.token)));
        Uploader { client: self.snowberry.client(), authorization }
    }

    /// Where Nix uploads.
    fn push_url(&self) -> String {
        format!("http://any:{}@{}/push?compression=zstd", self.token, self.snowberry.address)
    }

    async fn push(&self, made: &Made) {
        self.uploader().push(made).await;
    }

    async fn get(&self, path: &str) -> Answer {
        self.snowberry.client().get(path).await
    }

    /// Whether the NAR is held here: HEAD never fetches.
    async fn is_held(&self, made: &Made) -> bool {
        self.snowberry.client().head(&made.nar_url()).await.status == 200
    }

    /// Waits until nothing waits for any target.
    async fn drained(&self) {
        until("an empty queue", LIMIT, || async {
            (self.snowberry.figure("queue", "waiting").await == 0).then_some(())
        })
        .await;
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

/// Uploads as a client does that has the token.
#[derive(Clone)]
struct Uploader {
    client: Client,
    authorization: String,
}

impl Uploader {
    async fn put(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        let headers = [("authorization", self.authorization.as_str())];
        self.client.ask(Method::PUT, path, &headers, body.into()).await
    }

    async fn put_nar(&self, made: &Made) -> Answer {
        self.put(&format!("/push/{}", made.file_url()), made.file.clone()).await
    }

    async fn put_narinfo(&self, made: &Made) -> Answer {
        let narinfo = NarInfo { signatures: Vec::new(), ..made.narinfo() };
        self.put(&format!("/push{}", made.narinfo_url()), narinfo.print(&StoreDir::default())).await
    }

    /// NAR and narinfo, as Nix pushes a path.
    async fn push(&self, made: &Made) {
        let nar = self.put_nar(made).await;
        assert_eq!(nar.status, 200, "the NAR: {}", nar.text());
        let narinfo = self.put_narinfo(made).await;
        assert_eq!(narinfo.status, 200, "the narinfo: {}", narinfo.text());
    }
}
