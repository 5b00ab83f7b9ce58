//! Real Nix clients of three Debian releases push what they built to snowberry, and another machine
//! gets it back on the word of the cache's own key.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test stops and says what it saw"
)]

mod world;

use std::time::Duration;

use snowberry::push::tokens::Tokens;
use world::{NixClient, Release, Settings, Snowberry};

/// How long a refused copy may take: Nix 2.8 hangs for 300 s where it is not told for good.
const REFUSED_LIMIT: Duration = Duration::from_mins(2);

/// The tests below, for one client.
macro_rules! client {
    ($label:ident, $release:expr) => {
        mod $label {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn pushes_zstd() {
                push($release, "zstd").await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn pushes_every_other_codec() {
                for compression in ["none", "xz", "br", "bzip2", "gzip"] {
                    push($release, compression).await;
                }
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn signs_what_was_pushed() {
                sign($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn pushes_logs_listings_and_debug_info() {
                documents($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn says_why_it_may_not() {
                refused($release).await;
            }
        }
    };
}

client!(nix_2_8, Release::Bookworm);
client!(nix_2_26, Release::Trixie);
client!(nix_sid, Release::Sid);

/// Some paths that refer to each other, one with debug information.
const EXPRESSION: &str = r#"
let
  build = name: script: references: derivation {
    inherit name references;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" ("echo building $name; " + script) ];
    PATH = "/usr/bin:/bin";
  };
  numbers = seed: count: ''awk -v s=${toString seed} -v n=${toString count} 'BEGIN { while (n-- > 0) { s = s * 16807 % 2147483647; print s } }' '';
  a = build "a" "mkdir $out; ${numbers 1 200000} > $out/numbers" [ ];
  b = build "b" "echo $references > $out" [ a ];
  odd = build "odd+name_1.0" "mkdir $out; ln -s ${a} $out/a; : > $out/none; echo 1 > $out/a-b" [ ];
  debug = build "c-debug" "mkdir -p $out/lib/debug/.build-id/ab; echo x > $out/lib/debug/.build-id/ab/00112233445566778899aabbccddeeff001122.debug" [ ];
in
build "top" "mkdir $out; echo $references $out > $out/references" [ a b odd debug ]
"#;

/// A snowberry with a token, a builder of this release, and what it has built.
struct Lab {
    snowberry: Snowberry,
    token: String,
    builder: NixClient,
    top: String,
    drv: String,
}

impl Lab {
    /// None: the test was noted as skipped and must return.
    async fn new(release: Release) -> Option<Self> {
        let snowberry = Settings::new().start().await;
        let tokens = Tokens::new(snowberry.state().join("tokens"));
        let token = tokens.add("builder", [4; 20], 0).unwrap();
        let builder = NixClient::new(release, &[], "")?.setting("max-jobs = 2");
        std::fs::write(builder.folder().join("push.nix"), EXPRESSION).unwrap();
        let drv = builder.run(&["nix-instantiate", "/world/push.nix"]).await;
        let drv = drv.expect_success().trim().trim_matches('"').to_owned();
        let top = builder.run(&["nix-store", "--realise", &drv]).await;
        let top = top.expect_success().trim().to_owned();
        Some(Self { snowberry, token, builder, top, drv })
    }

    fn push_url(&self, query: &str) -> String {
        format!("http://any:{}@{}/push?{query}", self.token, self.snowberry.address)
    }

    async fn push(&self, query: &str) {
        let url = self.push_url(query);
        self.builder.run(&["nix", "copy", "--to", &url, &self.top]).await.expect_success();
    }

    async fn public_key(&self) -> String {
        let answer = self.snowberry.client().get("/public-key").await;
        answer.text().lines().next().unwrap().to_owned()
    }

    /// A machine that asks snowberry alone, and trusts its key alone.
    async fn reader(&self, release: Release) -> NixClient {
        NixClient::new(release, &[&self.snowberry.url()], &self.public_key().await).unwrap()
    }

    async fn narinfo(&self, path: &str) -> String {
        let key = path.strip_prefix("/nix/store/").unwrap().split('-').next().unwrap();
        let answer = self.snowberry.narinfo(key).await;
        assert_eq!(answer.status, 200, "{path}");
        answer.text().to_owned()
    }
}

/// Path and SHA-256 of the NAR of each path of the closure.
async fn sums(client: &NixClient, top: &str) -> String {
    let script = format!(
        "for path in $(nix-store -qR {top} | sort); do \
           echo \"$path $(nix-store --dump $path | sha256sum)\"; done"
    );
    client.shell(&script).await.expect_success().to_owned()
}

async fn push(release: Release, compression: &str) {
    let Some(lab) = Lab::new(release).await else { return };
    let Lab { snowberry, builder, top, .. } = &lab;
    lab.push(&format!("compression={compression}")).await;
    assert_eq!(snowberry.figure("store", "narinfos").await, 5);

    let reader = lab.reader(release).await;
    reader.run(&["nix-store", "--realise", top]).await.expect_success();
    let pushed = sums(builder, top).await;
    assert_eq!(sums(&reader, top).await, pushed, "{compression}");

    let url = lab.push_url(&format!("compression={compression}"));
    // The builder remembers its own narinfos, and with them its own names for the files.
    let delete = format!("nix-store --delete --ignore-liveness $(nix-store -qR {top}) || true");
    builder.shell(&delete).await.expect_success();
    let back = ["nix", "copy", "--no-check-sigs", "--from", &url, top];
    builder.run(&back).await.expect_success();
    assert_eq!(sums(builder, top).await, pushed, "{compression} by the builder's own names");
    let names = snowberry.log().iter().filter(|line| is_get_of_alias(line)).count();
    assert!(names > 0, "the builder asked for other names");

    // What is there already is not sent again, whatever the client remembers.
    let narinfos = snowberry.log().iter().filter(|line| line.contains("path accepted")).count();
    let forget = ["--option", "narinfo-cache-positive-ttl", "0"];
    let again = [&["nix", "copy"], &forget[..], &["--to", &url, top]].concat();
    builder.run(&again).await.expect_success();
    let after = snowberry.log().iter().filter(|line| line.contains("path accepted")).count();
    assert_eq!(narinfos, after);
}

fn is_get_of_alias(line: &str) -> bool {
    let name = line.split("/push/nar/").nth(1).and_then(|rest| rest.split('.').next());
    line.contains("method=GET") && name.is_some_and(|name| name.len() == 52)
}

async fn sign(release: Release) {
    let Some(lab) = Lab::new(release).await else { return };
    lab.push("compression=zstd").await;
    let sign = format!(
        "nix-store --generate-binary-cache-key signer-1 /world/key.secret /world/key.public
         nix store sign -k /world/key.secret --store '{}' {}",
        lab.push_url("compression=zstd"),
        lab.top
    );
    lab.builder.shell(&sign).await.expect_success();
    let narinfo = lab.narinfo(&lab.top).await;
    assert!(narinfo.contains("Sig: signer-1:"), "{narinfo}");
    assert!(narinfo.contains("Sig: snowberry-"), "{narinfo}");
}

async fn documents(release: Release) {
    let Some(lab) = Lab::new(release).await else { return };
    lab.push("compression=xz&write-nar-listing=1&index-debug-info=1").await;
    let client = lab.snowberry.client();
    let debug = "/debuginfo/ab00112233445566778899aabbccddeeff001122.debug";
    let answer = client.get(debug).await;
    assert_eq!(answer.status, 200);
    let redirect: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let archive = redirect["archive"].as_str().unwrap().trim_start_matches("..");
    assert_eq!(client.get(archive).await.status, 200, "{archive}");
    let key = lab.top.strip_prefix("/nix/store/").unwrap().split('-').next().unwrap();
    assert!(client.get(&format!("/{key}.ls")).await.text().contains("references"));

    let url = lab.push_url("compression=xz");
    lab.builder.run(&["nix", "store", "copy-log", "--to", &url, &lab.drv]).await.expect_success();
    let log = client.get(&format!("/log/{}", lab.drv.rsplit('/').next().unwrap())).await;
    assert_eq!((log.status, log.text().trim()), (200, "building top"));
}

async fn refused(release: Release) {
    let Some(lab) = Lab::new(release).await else { return };
    let address = lab.snowberry.address;
    for (url, words) in [
        (format!("http://any:wrong@{address}/push?compression=zstd"), "no token of this cache"),
        (format!("http://{address}/push?compression=zstd"), "need a token"),
        (lab.push_url("compression=lzip"), "?compression=zstd"),
    ] {
        let ran = lab.builder.run(&["nix", "copy", "--to", &url, &lab.top]).await;
        assert!(!ran.success, "{url}");
        assert!(ran.stderr.contains(words), "{words:?} is not in:\n{}", ran.stderr);
        // Most of it is the client's own packing, which lzip does slowly; a retry would take more.
        assert!(ran.took < REFUSED_LIMIT, "{:?}", ran.took);
        println!("refused in {:?}", ran.took);
    }
}

/// Builders at once: each release several times, each copy in a codec of its own.
const BUILDERS: [(Release, &str); 8] = [
    (Release::Bookworm, "zstd"),
    (Release::Trixie, "xz"),
    (Release::Sid, "none"),
    (Release::Bookworm, "br"),
    (Release::Trixie, "zstd"),
    (Release::Sid, "bzip2"),
    (Release::Bookworm, "none"),
    (Release::Trixie, "gzip"),
];

/// A path of one builder's own, above those that all have.
fn own_expression(builder: usize) -> String {
    format!(
        r#"derivation {{
  name = "own-{builder}";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-euc" "echo $name ${{import ./push.nix}} > $out" ];
}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_builders_push_overlapping_closures_at_once() {
    let Some(lab) = Lab::new(Release::Sid).await else { return };
    let mut tops = vec![];
    let mut builders = tokio::task::JoinSet::new();
    for (n, (release, compression)) in BUILDERS.into_iter().enumerate() {
        let Some(builder) = NixClient::new(release, &[], "") else { return };
        let builder = builder.setting("max-jobs = 2");
        std::fs::write(builder.folder().join("push.nix"), EXPRESSION).unwrap();
        std::fs::write(builder.folder().join("own.nix"), own_expression(n)).unwrap();
        let realise = "nix-store --realise $(nix-instantiate /world/own.nix)";
        let top = builder.shell(realise).await.expect_success().trim().to_owned();
        tops.push(top.clone());
        let url = lab.push_url(&format!("compression={compression}"));
        builders.spawn(async move {
            builder.run(&["nix", "copy", "--to", &url, &top]).await.expect_success();
            (top.clone(), sums(&builder, &top).await)
        });
    }
    let pushed = builders.join_all().await;
    // Five that all of them have, and one of each.
    assert_eq!(lab.snowberry.figure("store", "narinfos").await, 5 + 8);
    assert_eq!(lab.snowberry.figure("store", "nars").await, 5 + 8);
    let reader = lab.reader(Release::Sid).await;
    let realise = format!("nix-store --realise {}", tops.join(" "));
    reader.shell(&realise).await.expect_success();
    for (top, wanted) in pushed {
        assert_eq!(sums(&reader, &top).await, wanted, "{top}");
    }
}
