//! The commands around pushing, run as people run them: tokens, the admin socket, keys, buckets,
//! and a path that a real Nix pushes through to a bucket.
#![allow(
    clippy::unwrap_used,
    clippy::string_slice,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

mod world;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Method;
use tempfile::TempDir;
use world::s3::{Kind, S3Server};
use world::{NixClient, Release, Settings, Snowberry, until};

/// How long the queue may take to reach a bucket on a busy machine.
const PUSHED_LIMIT: Duration = Duration::from_mins(1);

/// How a command ended.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Told {
    #[track_caller]
    fn well(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    #[track_caller]
    fn badly(self, words: &str) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.stderr.contains(words) || self.stdout.contains(words), "{words}: {self:?}");
    }
}

fn run(arguments: &[&str]) -> Told {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snowberry"));
    command.args(arguments).env("SNOWBERRY_CONFIG", "/dev/null");
    for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"] {
        command.env_remove(variable);
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    Told { code: output.status.code(), stdout, stderr }
}

/// A command of the cache with this state directory.
fn of(state: &Path, arguments: &[&str]) -> Told {
    let set = format!("state-dir={:?}", state.display().to_string());
    run(&[arguments, &["--set", set.as_str()]].concat())
}

async fn may_write(snowberry: &Snowberry, token: &str) -> bool {
    let basic = format!("Basic {}", STANDARD.encode(format!("x:{token}")));
    let headers = [("authorization", basic.as_str())];
    let body = "StoreDir: /nix/store\n".into();
    let put = snowberry.client().ask(Method::PUT, "/nix-cache-info", &headers, body).await;
    assert!([200, 403].contains(&put.status), "{put:?}");
    put.status == 200
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_at_once_and_refused_at_once() {
    let snowberry = Settings::new().start().await;
    snowberry.ready().await;
    let state = snowberry.state();
    let tower = of(&state, &["token", "add", "tower"]).well();
    let tower = tower.trim_end();
    assert!(tower.starts_with("snowberry_") && tower.lines().count() == 1, "{tower}");
    assert!(may_write(&snowberry, tower).await);
    assert!(!may_write(&snowberry, "snowberry_00000000000000000000000000000000").await);
    of(&state, &["token", "add", "tower"]).badly("already");
    of(&state, &["token", "add", "to wer"]).badly("no name");
    assert!(of(&state, &["token", "list"]).well().starts_with("tower  made "));
    assert_eq!(of(&state, &["token", "remove", "tower"]).well(), "");
    assert!(!may_write(&snowberry, tower).await);
    of(&state, &["token", "remove", "tower"]).badly("snowberry token list");
    assert_eq!(of(&state, &["token", "list", "--json"]).well(), "[]\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_made_before_the_first_start_is_good() {
    let folder = TempDir::new().unwrap();
    let tokens = folder.path().join("etc/tokens");
    let set = format!("push.tokens-file={:?}", tokens.display().to_string());
    let state = folder.path().join("state");
    let token = of(&state, &["token", "add", "tower", "--set", &set]).well();
    assert_eq!(tokens.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let snowberry = Settings::new().set(&set).start().await;
    snowberry.ready().await;
    assert!(may_write(&snowberry, token.trim_end()).await);
    // What is not understood lets nobody write, and says so once.
    std::fs::write(&tokens, "tower\n").unwrap();
    assert!(!may_write(&snowberry, token.trim_end()).await);
    snowberry.log_line(&["the tokens file cannot be used"], Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_side_is_on_the_socket_and_nowhere_else() {
    let mut snowberry = Settings::new().start().await;
    snowberry.ready().await;
    let (state, socket) = (snowberry.state(), snowberry.state().join("admin.sock"));
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let status = of(&state, &["push", "--status", "--json"]).well();
    assert_eq!(status, "{\"targets\":[]}\n");
    assert!(of(&state, &["push", "--status"]).well().starts_with("no push target"));
    assert_eq!(of(&state, &["push", "retry"]).well(), "");
    of(&state, &["push", "forget", "--target", "s3://nowhere"]).badly("no such target");
    // With a token that counts, too: nobody of the network commands.
    let token = of(&state, &["token", "add", "tower"]).well();
    let basic = format!("Basic {}", STANDARD.encode(format!("x:{}", token.trim_end())));
    let headers = [("authorization", basic.as_str()), ("host", "localhost")];
    for (method, path) in [
        (Method::GET, "/queue"),
        (Method::POST, "/retry"),
        (Method::POST, "/forget?target=s3://nowhere"),
        (Method::POST, "/keys/reload"),
        (Method::PUT, "/keys/reload"),
        (Method::GET, "/push/queue"),
        (Method::POST, "/admin/keys/reload"),
    ] {
        let answer = snowberry.client().ask(method.clone(), path, &headers, "".into()).await;
        assert!((400..500).contains(&answer.status), "{method} {path}: {answer:?}");
        assert!(!answer.text().contains('{'), "{method} {path}: {answer:?}");
    }
    assert!(!snowberry.log().iter().any(|line| line.contains("read the keys of this cache again")));
    assert!(snowberry.stop().await.success());
    assert!(!socket.exists());
    of(&state, &["push", "--status"]).badly("no snowberry answers at");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_leaves_a_socket_that_the_next_one_takes_over() {
    let mut snowberry = Settings::new().start().await;
    snowberry.ready().await;
    let state = snowberry.state();
    snowberry.kill();
    assert!(state.join("admin.sock").exists());
    of(&state, &["push", "--status"]).badly("no snowberry answers at");
    snowberry.restart().await;
    snowberry.ready().await;
    of(&state, &["push", "retry"]).well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_cache_signs_with_the_rotated_key_and_lists_both() {
    let snowberry = Settings::new().start().await;
    snowberry.ready().await;
    let state = snowberry.state();
    let first = of(&state, &["key", "show"]).well();
    assert_eq!(snowberry.client().get("/public-key").await.text(), first);
    let second = of(&state, &["key", "rotate"]).well();
    assert!(second.contains("-2:") && second != first, "{second}");
    let both = format!("{second}{first}");
    assert_eq!(of(&state, &["key", "show"]).well(), both);
    assert_eq!(snowberry.client().get("/public-key").await.text(), both);
    let status = snowberry.status().await;
    assert_eq!(status["public_key"].as_str(), Some(second.trim_end()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_nix_made_is_taken_and_replaces_nothing_by_itself() {
    let Some(nix) = NixClient::new(Release::Bookworm, &[], "") else { return };
    let made = nix.shell(
        "nix key generate-secret --key-name s3.homelab.local-1 > /world/secret
         nix key convert-secret-to-public < /world/secret",
    );
    let public = format!("{}\n", made.await.expect_success().trim());
    let file = nix.folder().join("secret").display().to_string();
    let folder = TempDir::new().unwrap();
    let state = folder.path().join("state");
    assert_eq!(of(&state, &["key", "import", &file]).well(), public);
    assert_eq!(of(&state, &["key", "import", &file]).well(), public);
    assert_eq!(of(&state, &["key", "show"]).well(), public);
    let mode = state.join("secret-key").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let mut snowberry = Settings::new().start().await;
    snowberry.ready().await;
    let state = snowberry.state();
    let own = of(&state, &["key", "show"]).well();
    of(&state, &["key", "import", &file]).badly("--replace");
    assert_eq!(of(&state, &["key", "show"]).well(), own);
    assert_eq!(of(&state, &["key", "import", "--replace", &file]).well(), public);
    let both = format!("{public}{own}");
    assert_eq!(snowberry.client().get("/public-key").await.text(), both);
    assert!(snowberry.stop().await.success());
    snowberry.restart().await;
    snowberry.ready().await;
    assert_eq!(snowberry.client().get("/public-key").await.text(), both);
    let wrong = folder.path().join("wrong");
    std::fs::write(&wrong, &public).unwrap();
    of(&state, &["key", "import", "--replace", &wrong.display().to_string()])
        .badly("nix key generate-secret");
}

#[test]
fn a_folder_becomes_a_cache_once() {
    let folder = TempDir::new().unwrap();
    let cache = folder.path().join("stick/cache");
    let url = format!("file://{}", cache.display());
    assert_eq!(run(&["bucket", "init", &url]).well(), "done  the folder\ndone  nix-cache-info\n");
    let info = std::fs::read_to_string(cache.join("nix-cache-info")).unwrap();
    assert!(info.contains("StoreDir: /nix/store\n"), "{info}");
    assert_eq!(run(&["bucket", "init", &url]).well(), "ok    the folder\nok    nix-cache-info\n");
    run(&["bucket", "init", "--store-dir", "/other/store", &url]).badly("WRONG nix-cache-info");
    assert_eq!(std::fs::read_to_string(cache.join("nix-cache-info")).unwrap(), info);
    run(&["bucket", "init", "--expire-days", "30", &url]).badly("WRONG objects expire");
    run(&["bucket", "init", "https://cache.example"]).badly("https://cache.example");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_becomes_a_cache_by_its_owner_and_not_by_its_user() {
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    let files = minio.table("admin");
    let file = |key: &str| {
        let (_, rest) = files.split_once(&format!("{key}=\"")).unwrap();
        rest.split('"').next().unwrap().to_owned()
    };
    let (ca, credentials) = (file("ca-file"), file("credentials-file"));
    let url = minio.url("nixbuilder").replace("s3://nix-cache", "s3://second-cache");
    let init = |more: &[&str]| {
        let files = ["--ca-file", ca.as_str(), "--credentials-file", credentials.as_str(), &url];
        run(&[&["bucket", "init", "--expire-days", "30"], more, files.as_slice()].concat())
    };
    let refused = init(&[]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stdout.contains("WRONG the bucket") && refused.stdout.contains("mc mb"));
    let steps = |told: &str| -> Vec<String> {
        told.lines().take_while(|line| !line.is_empty()).map(|line| line[..6].to_owned()).collect()
    };
    let told = init(&["--profile", "admin"]).well();
    assert_eq!(steps(&told), ["done  "; 4], "{told}");
    let again = init(&["--profile", "admin"]).well();
    assert_eq!(steps(&again), ["ok    "; 4], "{again}");
    let policy = again.split_once("guides):\n").unwrap().1.trim_start();
    assert_eq!(run(&["bucket", "policy", "second-cache"]).well(), policy);
    let policy: serde_json::Value = serde_json::from_str(policy).unwrap();
    assert_eq!(policy["Statement"][0]["Action"].as_array().unwrap().len(), 7);
    assert!(minio.mc(&["ls", "s3/second-cache"]).contains("nix-cache-info"));
    assert!(!minio.mc(&["anonymous", "get", "s3/second-cache"]).contains("private"));
}

/// From nothing to a pushed path in the bucket, as the README tells it.
async fn from_nothing_to_the_bucket(release: Release) {
    let Some(nix) = NixClient::new(release, &[], "") else { return };
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    let snowberry = Settings::new()
        .upstream_with(
            &minio.url("nixbuilder"),
            "s3.homelab.local-1:m0J/oDlLEuG6ezc6MzmpLCN2MYjssO3NMIlr9JdxkTs=",
            &format!("push=true, {}", minio.table("nixbuilder")),
        )
        .start()
        .await;
    let state = snowberry.state();
    nix.bring(Path::new(env!("CARGO_BIN_EXE_snowberry")));
    let token = of(&state, &["token", "add", "tower"]).well();
    std::fs::write(nix.folder().join("token"), &token).unwrap();
    let push = format!("/world/snowberry push --to {} --token-file /world/token", snowberry.url());
    let pushed = nix
        .shell(&format!(
            "echo hello > /tmp/made; path=$(nix-store --add /tmp/made)
             ln -s \"$path\" /tmp/result; {push} /tmp/result; echo \"$path\""
        ))
        .await;
    let path = pushed.expect_success().trim().to_owned();
    assert!(!pushed.stderr.contains(token.trim_end()), "{}", pushed.stderr);
    until("an empty queue", PUSHED_LIMIT, || async {
        let status = of(&state, &["push", "--status", "--json"]).well();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let target = &status["targets"][0];
        (target["waiting"] == 0 && target["pushed"].as_u64() > Some(0)).then_some(())
    })
    .await;
    let hash = world::closure::hash_of(&path);
    assert!(minio.mc(&["ls", "s3/nix-cache"]).contains(hash));
    let narinfo = minio.mc(&["cat", &format!("s3/nix-cache/{hash}.narinfo")]);
    let key = of(&state, &["key", "show"]).well();
    assert!(narinfo.contains(&format!("Sig: {}", key.split(':').next().unwrap())), "{narinfo}");

    // Without a token nothing goes, and the command says so; a path that is none is told.
    let refused = nix
        .shell(&format!(
            "echo other > /tmp/other; path=$(nix-store --add /tmp/other)
             /world/snowberry push --to {} \"$path\"",
            snowberry.url()
        ))
        .await;
    assert!(!refused.success && refused.stderr.contains("nix copy did not succeed"), "{refused:?}");
    assert!(refused.stderr.contains("token"), "{refused:?}");
    let nowhere = nix.shell(&format!("{push} /tmp")).await;
    assert!(!nowhere.success && nowhere.stderr.contains("is not in /nix/store"), "{nowhere:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_2_8_pushes_from_nothing_to_the_bucket() {
    from_nothing_to_the_bucket(Release::Bookworm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_2_26_pushes_from_nothing_to_the_bucket() {
    from_nothing_to_the_bucket(Release::Trixie).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_sid_pushes_from_nothing_to_the_bucket() {
    from_nothing_to_the_bucket(Release::Sid).await;
}
