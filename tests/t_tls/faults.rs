//! Certificates that are wrong, end, or change while clients ask.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use snowberry::pinned::{CaFingerprint, other_ca};
use tokio::task::JoinSet;

use crate::kit::{Secured, curl, pinned};
use crate::world::{Settings, until};

/// Longer than the interval at which certificates are looked at.
const LOOK_LIMIT: Duration = Duration::from_secs(40);

fn fingerprint(ca_pem: &str) -> CaFingerprint {
    CaFingerprint::of_pem(ca_pem.as_bytes()).unwrap()
}

/// A CA of somebody else, and its certificates in two files.
struct Elsewhere {
    ca: CertifiedIssuer<'static, KeyPair>,
    certificate: PathBuf,
    key: PathBuf,
}

impl Elsewhere {
    fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "elsewhere");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { ca, certificate: folder.join("cert.pem"), key: folder.join("key.pem") }
    }

    /// Writes another certificate that ends with this year, as a renewal does: not at once.
    fn renew(&self, end_year: i32) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(end_year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        std::fs::write(&self.certificate, certificate.pem()).unwrap();
        std::fs::write(&self.key, key.serialize_pem()).unwrap();
    }

    fn settings(&self) -> Settings {
        Settings::new()
            .set(&format!("tls.certificate-file={:?}", self.certificate.display().to_string()))
            .set(&format!("tls.key-file={:?}", self.key.display().to_string()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_man_in_the_middle_is_told_by_both_fingerprints() {
    let (joined, between) =
        tokio::join!(Secured::start(Settings::new()), Secured::start(Settings::new()));
    for name in ["snowberry.local", "localhost"] {
        pinned(&joined.ca_pem, joined.tls, name).await.unwrap();
        let error = pinned(&joined.ca_pem, between.tls, name).await.unwrap_err();
        let told = other_ca(&error).unwrap();
        assert_eq!(told.expected, fingerprint(&joined.ca_pem));
        assert_eq!(told.presented, fingerprint(&between.ca_pem));
        let text = error.to_string();
        for part in [told.expected, told.presented] {
            assert!(text.contains(&part.to_string()), "{part} is not in {text}");
        }
    }
    let error = pinned(&joined.ca_pem, joined.tls, "bank.example").await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let url = format!("{}/nix-cache-info", between.url("localhost"));
    let Some(got) = curl(&joined.ca_file(folder.path()), &[&url]).await else { return };
    assert_eq!(got.exit, Some(60), "{got:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_is_shown_where_people_compare_it() {
    let secured = Secured::start(Settings::new()).await;
    let ca = fingerprint(&secured.ca_pem);
    let status = secured.snowberry.status().await;
    assert_eq!(status["tls"]["ca_sha256"], ca.to_hex());
    let state = format!("state-dir={:?}", secured.snowberry.state().display().to_string());
    for command in [["key", "show"].as_slice(), &["check"]] {
        let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_snowberry"));
        run.args(command).args(["--set", &state, "--set", "upstream=[]"]);
        let output = run.env("SNOWBERRY_CONFIG", "/dev/null").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains(&ca.to_string()), "{command:?}: {text}");
    }
    let plain = Settings::new().start().await;
    assert_eq!(plain.client().get("/ca.pem").await.status, 404);
    assert_eq!(plain.status().await["tls"], serde_json::Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused_as_that() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = Elsewhere::new(folder.path());
    elsewhere.renew(2001);
    let secured = Secured::start(elsewhere.settings()).await;
    assert_eq!(secured.ca_pem, "", "the CA is not ours to hand out");
    let ca_pem = elsewhere.ca.pem();
    let error = pinned(&ca_pem, secured.tls, "localhost").await.unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &ca_pem).unwrap();
    let url = format!("{}/nix-cache-info", secured.url("localhost"));
    let Some(got) = curl(&ca, &[&url]).await else { return };
    assert!(got.exit == Some(60) && got.stderr.contains("expired"), "{got:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_a_certificate_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = Elsewhere::new(folder.path());
    elsewhere.renew(4001);
    let secured = Secured::start(elsewhere.settings()).await;
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, elsewhere.ca.pem()).unwrap();
    let url = format!("{}/nix-cache-info", secured.url("localhost"));
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for flag in ["--http2", "--http1.1"] {
        let (ca, url, done, asked) = (ca.clone(), url.clone(), done.clone(), asked.clone());
        clients.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let Some(got) = curl(&ca, &[flag, &url]).await else { return };
                assert_eq!((got.exit, got.status), (Some(0), 200), "{got:?}");
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let loaded = |count: usize| {
        let snowberry = &secured.snowberry;
        async move {
            until("another certificate", LOOK_LIMIT, || async {
                let log = snowberry.log();
                let seen = log.iter().filter(|line| line.contains("certificate loaded")).count();
                (seen >= count).then_some(())
            })
            .await;
        }
    };
    loaded(1).await;
    elsewhere.renew(4002);
    loaded(2).await;
    // One that cannot be used is told, and the one before goes on.
    std::fs::write(&elsewhere.certificate, "garbage").unwrap();
    secured.snowberry.log_line(&["ERROR", "certificate", "cert.pem"], LOOK_LIMIT).await;
    elsewhere.renew(4003);
    loaded(3).await;
    done.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    println!("{} requests", asked.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_at_the_tls_port_and_silence_harm_nobody() {
    let secured = Secured::start(Settings::new()).await;
    let got = crate::world::Client(secured.tls).try_get("/nix-cache-info").await;
    assert!(got.is_none(), "{got:?}");
    let silent = tokio::net::TcpStream::connect(secured.tls).await.unwrap();
    pinned(&secured.ca_pem, secured.tls, "localhost").await.unwrap();
    drop(silent);
}

/// Hands over two sockets as systemd does, the second one under the name of TLS.
const HAND_OVER: &str = "
import os, socket, sys
sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]
kept = [os.dup(it.fileno()) for it in sockets]
for at, fd in enumerate(kept): os.dup2(fd, 20 + at)
for at in range(2): os.dup2(20 + at, 3 + at)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='snowberry.socket:https')
os.execv(sys.argv[1], sys.argv[1:])
";

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_handed_over_by_the_name_https_speaks_tls() {
    let snowberry = Settings::new().wrapped(&["python3", "-c", HAND_OVER]).start().await;
    let tls = snowberry.tls_address().await;
    assert_ne!(tls, snowberry.address);
    snowberry.ready().await;
    let ca_pem = snowberry.client().get("/ca.pem").await.text().to_owned();
    pinned(&ca_pem, tls, "snowberry.local").await.unwrap();
    assert_eq!(snowberry.status().await["tls"]["port"], tls.port());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_is_gone_is_not_made_anew_and_comes_back_with_its_backup() {
    let mut secured = Secured::start(Settings::new()).await;
    let key = secured.snowberry.state().join("tls/ca.key");
    let kept = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    secured.snowberry.stop().await;
    secured.snowberry.restart().await;
    secured.snowberry.log_line(&["ERROR", "restore"], LOOK_LIMIT).await;
    assert_eq!(secured.snowberry.client().get("/nix-cache-info").await.status, 200);
    assert!(!key.exists());
    std::fs::write(&key, kept).unwrap();
    secured.snowberry.log_line(&["certificate loaded"], LOOK_LIMIT).await;
    let tls = secured.snowberry.tls_address().await;
    pinned(&secured.ca_pem, tls, "snowberry.local").await.unwrap();
}
