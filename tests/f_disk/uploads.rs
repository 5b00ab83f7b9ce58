//! Uploads while the disk fails: refused for good, with a sentence that a real Nix shows.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::Method;
use snowberry::nix::StoreDir;
use snowberry::push::tokens::Tokens;

use tokio::time::timeout;

use super::broken::{Call, How};
use super::in_life::{Daemon, paths};
use super::made::Made;
use super::world::{Answer, NixClient, Release, until};
use super::{WELL_AFTER, fetch, why};

/// How long a refused copy may take: a client that tries again takes minutes.
const REFUSED_LIMIT: Duration = Duration::from_secs(30);

/// How long an upload may be without an answer on a disk that stands still: the waits for the index
/// and for the writer, far below the 300 s after which Nix gives up.
const ANSWER_LIMIT: Duration = Duration::from_mins(2);

/// What builds one path.
const EXPRESSION: &str = r#"
derivation {
  name = "built";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-euc" "echo built > $out" ];
}
"#;

/// A machine that has built a path.
struct Builder {
    nix: NixClient,
    path: String,
}

impl Builder {
    async fn new(release: Release) -> Option<Self> {
        let nix = NixClient::new(release, &[], "")?.setting("max-jobs = 1");
        std::fs::write(nix.folder().join("built.nix"), EXPRESSION).unwrap();
        let built = nix.shell("nix-store --realise $(nix-instantiate /world/built.nix)").await;
        let path = built.expect_success().trim().to_owned();
        Some(Self { nix, path })
    }
}

/// The daemon's disk fails until the daemon says so.
async fn degrade(daemon: &Daemon, paths: &[Made]) {
    daemon.switch.break_it(Call::Sync, How::Fails);
    let mut rest = paths.iter().cycle();
    until("a degraded store", WELL_AFTER, || {
        let made = rest.next().unwrap();
        async {
            fetch(daemon.client, made).await;
            why(daemon.client).await
        }
    })
    .await;
}

async fn put(daemon: &Daemon, token: &str, made: &Made) -> Answer {
    put_at(daemon, token, &made.file_url(), made.file.clone().into()).await
}

async fn put_at(daemon: &Daemon, token: &str, url: &str, body: Bytes) -> Answer {
    let authorization = format!("Basic {}", STANDARD.encode(format!("any:{token}")));
    let headers = [("authorization", authorization.as_str())];
    let url = format!("/push/{}", url.trim_start_matches('/'));
    daemon.client.ask(Method::PUT, &url, &headers, body).await
}

/// NAR and narinfo as Nix puts them; the first answer that is not 200, else the last.
async fn push(daemon: &Daemon, token: &str, made: &Made) -> Answer {
    let nar = put(daemon, token, made).await;
    if nar.status != 200 {
        return nar;
    }
    let mut narinfo = made.narinfo();
    narinfo.signatures.clear();
    narinfo.url = made.file_url();
    let text = narinfo.print(&StoreDir::default());
    put_at(daemon, token, &made.narinfo_url(), text.into()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_onto_a_disk_that_stands_still_is_answered_and_taken_once_it_moves() {
    let daemon = Daemon::start(&paths("still")).await;
    let tokens = Tokens::new(daemon.folder.path().join("state/tokens"));
    let token = tokens.add("builder", [4; 20], 0).unwrap();
    let made = Made::noise("uploaded-still", 100_000);
    daemon.switch.break_it(Call::Sync, How::Stuck);
    let answer = timeout(ANSWER_LIMIT, push(&daemon, &token, &made)).await;
    let answer = answer.expect("an answer, of whatever kind");
    assert!(daemon.switch.hits() > 0, "the disk never stood still");
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.text().contains("upload again"), "{}", answer.text());

    daemon.switch.mend();
    until("an upload that is taken", WELL_AFTER, || async {
        (push(&daemon, &token, &made).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(daemon.client.get(&made.narinfo_url()).await.status, 200);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_are_refused_with_a_sentence_and_taken_once_the_disk_is_well() {
    let paths = paths("upload");
    let daemon = Daemon::start(&paths).await;
    let tokens = Tokens::new(daemon.folder.path().join("state/tokens"));
    let token = tokens.add("builder", [4; 20], 0).unwrap();
    let (Some(old), Some(new)) =
        (Builder::new(Release::Bookworm).await, Builder::new(Release::Sid).await)
    else {
        return daemon.stop().await;
    };
    let made = Made::noise("uploaded", 100_000);
    assert_eq!(put(&daemon, &token, &made).await.status, 200);
    degrade(&daemon, &paths).await;

    let refused = put(&daemon, &token, &Made::noise("refused", 100_000)).await;
    assert_eq!(refused.status, 409, "{}", refused.text());
    let sentence = refused.text().trim();
    assert!(sentence.starts_with("snowberry: ") && sentence.ends_with('.'), "{sentence:?}");
    let url = format!("http://any:{token}@{}/push?compression=zstd", daemon.client.0);
    for Builder { nix, path } in [&old, &new] {
        let ran = nix.run(&["nix", "copy", "--to", &url, path]).await;
        assert!(!ran.success, "it went through");
        // Its reason may have changed between the two, its act has not.
        let act: String = sentence.chars().take(40).collect();
        assert!(ran.stderr.contains(&act), "{act:?} is not in:\n{}", ran.stderr);
        assert!(ran.took < REFUSED_LIMIT, "{:?}", ran.took);
    }

    daemon.switch.mend();
    until("an upload that is taken", WELL_AFTER, || async {
        (put(&daemon, &token, &made).await.status == 200).then_some(())
    })
    .await;
    let client = daemon.client;
    for Builder { nix, path } in [&old, &new] {
        nix.run(&["nix", "copy", "--to", &url, path]).await.expect_success();
        let key = super::world::closure::hash_of(path);
        assert_eq!(client.get(&format!("/{key}.narinfo")).await.status, 200);
    }
    daemon.stop().await;
}
