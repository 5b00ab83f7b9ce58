//! curl over h2 and HTTP/1.1: what is served, put and refused is the same as over plain HTTP.

use crate::kit::{Secured, curl};
use crate::made::Made;
use crate::world::closure::hash_of;
use crate::world::{Closure, Settings};

/// Both protocols, as curl is asked for them and as it tells them.
const PROTOCOLS: [(&str, &str); 2] = [("--http2", "2"), ("--http1.1", "1.1")];

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_over_h2_and_http_1_1() {
    let secured = Secured::start(Settings::new()).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = secured.ca_file(folder.path());
    for (flag, version) in PROTOCOLS {
        for host in ["localhost", "127.0.0.1", "snowberry.local"] {
            let resolve = format!("{host}:{}:127.0.0.1", secured.tls.port());
            let url = format!("{}/nix-cache-info", secured.url(host));
            let Some(got) = curl(&ca, &[flag, "--resolve", &resolve, &url]).await else { return };
            assert_eq!((got.exit, got.status, got.version.as_str()), (Some(0), 200, version));
            assert!(got.body.starts_with(b"StoreDir: /nix/store\n"), "{got:?}");
        }
        let url = format!("{}/{}.narinfo", secured.url("localhost"), "a".repeat(32));
        let got = curl(&ca, &[flag, "--head", &url]).await.unwrap();
        assert_eq!((got.status, got.version.as_str()), (404, version));
        let got = curl(&ca, &[flag, &format!("{}/", secured.url("localhost"))]).await.unwrap();
        let page = String::from_utf8(got.body).unwrap();
        let plain = format!("http://localhost:{}", secured.snowberry.address.port());
        assert!(page.contains(&plain) && page.contains("/ca.pem"), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_closure_comes_over_h2_missed_and_held() {
    let Some(closure) = Closure::get() else { return };
    let settings = Settings::new().upstream(&closure.cache_url("xz"), &closure.public_key);
    let secured = Secured::start(settings).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = secured.ca_file(folder.path());
    for round in ["missed", "held"] {
        for (flag, version) in PROTOCOLS {
            let path =
                if flag == "--http2" { closure.path("large") } else { closure.path("twin-a") };
            let narinfo = secured.snowberry.narinfo(hash_of(path)).await;
            let url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
            let url = format!("{}/{url}", secured.url("localhost"));
            let Some(got) = curl(&ca, &[flag, &url]).await else { return };
            assert_eq!((got.exit, got.status, got.version.as_str()), (Some(0), 200, version));
            let nar = zstd::decode_all(&got.body[..]).unwrap();
            assert!(nar == closure.nar(path), "{round} {version}: other bytes of {path}");
            if round == "held" {
                let part = curl(&ca, &[flag, "--range", "100-199", &url]).await.unwrap();
                assert_eq!(part.status, 206);
                assert_eq!(part.body, got.body[100..200], "{version}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_over_tls_writes_and_without_one_nobody_does() {
    let secured = Secured::start(Settings::new()).await;
    let tokens = snowberry::push::tokens::Tokens::new(secured.snowberry.state().join("tokens"));
    let token = tokens.add("tester", [3; 20], 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = secured.ca_file(folder.path());
    for (index, (flag, version)) in PROTOCOLS.into_iter().enumerate() {
        let made = Made::noise(&format!("pushed-{index}"), 3_000_000);
        let file = folder.path().join("nar");
        std::fs::write(&file, &made.file).unwrap();
        let url = format!("{}/push/{}", secured.url("localhost"), made.file_url());
        let upload = file.display().to_string();
        let Some(got) = curl(&ca, &[flag, "--upload-file", &upload, &url]).await else { return };
        assert_eq!((got.status, got.version.as_str()), (403, version), "{got:?}");
        let body = String::from_utf8(got.body).unwrap();
        assert!(body.contains("token"), "{body}");
        let user = format!("any:{token}");
        let put = ["--user", user.as_str(), flag, "--upload-file", upload.as_str(), url.as_str()];
        let got = curl(&ca, &put).await.unwrap();
        assert_eq!((got.exit, got.status), (Some(0), 200), "{got:?}");
    }
}
