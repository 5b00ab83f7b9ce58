//! https caches: a private authority, h2 where it is offered, a clock that is wrong.

use hyper::Version;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::server::{Server, answer, ok};
use super::{Error, Proof, Upstream, key, upstream, whole};

/// A server's certificate, valid from a year on, and its PEM in a file.
fn certificate(from: i32) -> (ServerConfig, tempfile::NamedTempFile) {
    certificate_of("127.0.0.1", from)
}

fn certificate_of(host: &str, from: i32) -> (ServerConfig, tempfile::NamedTempFile) {
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(4000, 1, 1);
    let pair = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&pair).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), certificate.pem()).unwrap();
    let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], secret)
        .unwrap();
    (config, file)
}

fn trusting(url: &str, file: &tempfile::NamedTempFile) -> Upstream {
    upstream(url, &format!("ca-file = {:?}", file.path()))
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_it_is_named() {
    let (tls, file) = certificate(2000);
    let server = Server::start_tls(tls, |_| ok("text")).await;
    let answer = trusting(&server.url, &file).narinfo(key()).await;
    assert_eq!(answer.unwrap().unwrap(), "text");
    let error = upstream(&server.url, "").narinfo(key()).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "{error}");
    assert!(error.chain().contains("certificate"), "{}", error.chain());
}

#[tokio::test]
async fn h2_is_spoken_where_it_is_offered_and_not_for_nars() {
    for (alpn, version) in [("h2", Version::HTTP_2), ("http/1.1", Version::HTTP_11)] {
        let (mut tls, file) = certificate(2000);
        tls.alpn_protocols = vec![alpn.into(), b"http/1.1".to_vec()];
        let server = Server::start_tls(tls, |_| ok("text")).await;
        let upstream = trusting(&server.url, &file);
        assert_eq!(upstream.narinfo(key()).await.unwrap().unwrap(), "text");
        assert_eq!(whole(&upstream, "nar/x", None).await.unwrap(), "text");
        let versions: Vec<_> = server.questions().iter().map(|asked| asked.version).collect();
        assert_eq!(versions, [version, Version::HTTP_11]);
    }
}

#[tokio::test]
async fn a_certificate_of_the_future_is_a_wrong_clock() {
    let (tls, file) = certificate(3000);
    let server = Server::start_tls(tls, |_| ok("text")).await;
    let error = trusting(&server.url, &file).narinfo(key()).await.unwrap_err();
    assert!(matches!(error, Error::Clock { .. }) && error.is_transient(), "{error}");
    assert!(error.to_string().contains("clock here may be wrong"), "{error}");
}

/// The beginning of the year 3000, in seconds since 1970.
const YEAR_3000_S: u64 = 32_503_680_000;

#[tokio::test]
async fn what_the_time_is_is_heard_over_tls_only() {
    let date = [("date", "Sat, 21 Nov 2026 13:00:00 GMT")];
    let (tls, file) = certificate(2000);
    let server = Server::start_tls(tls, move |_| answer(404, &date, "")).await;
    let asked = trusting(&server.url, &file);
    assert_eq!(asked.proof(), None);
    assert_eq!(asked.narinfo(key()).await.unwrap(), None);
    let Some(Proof::Is(heard)) = asked.proof() else { panic!("no date") };
    assert!((1_795_266_000..1_795_266_060).contains(&heard), "{heard}");
    let plain = Server::start(move |_| answer(404, &date, "")).await;
    let asked = upstream(&plain.url, "");
    assert_eq!(asked.narinfo(key()).await.unwrap(), None);
    assert_eq!(asked.proof(), None);
}

#[tokio::test]
async fn another_host_is_not_asked_what_the_time_is() {
    let date = [("date", "Sat, 21 Nov 2026 13:00:00 GMT")];
    let (tls, file) = certificate_of("localhost", 2000);
    let other = Server::start_tls(tls, move |_| answer(200, &date, "text")).await;
    let to = format!("{}/x", other.url.replace("127.0.0.1", "localhost"));
    let server = Server::start(move |_| answer(302, &[("location", &to)], "")).await;
    let asked = trusting(&server.url, &file);
    assert_eq!(asked.narinfo(key()).await.unwrap().unwrap(), "text");
    assert_eq!(asked.proof(), None);
}

#[tokio::test]
async fn a_certificate_of_the_future_proves_that_it_has_begun() {
    let (tls, file) = certificate(3000);
    let server = Server::start_tls(tls, |_| ok("text")).await;
    let asked = trusting(&server.url, &file);
    asked.narinfo(key()).await.unwrap_err();
    let Some(Proof::Begins(least)) = asked.proof() else { panic!("no proof") };
    assert!((YEAR_3000_S..YEAR_3000_S + 60).contains(&least), "{least}");
    // One of an authority that is not trusted proves nothing, nor does one for another host.
    let asked = upstream(&server.url, "");
    asked.narinfo(key()).await.unwrap_err();
    assert_eq!(asked.proof(), None);
    let asked = trusting(&server.url.replace("127.0.0.1", "localhost"), &file);
    asked.narinfo(key()).await.unwrap_err();
    assert_eq!(asked.proof(), None);
}

#[tokio::test]
async fn a_redirect_never_leaves_tls() {
    let plain = Server::start(|_| ok("text")).await;
    let to = format!("{}/x", plain.url);
    let (tls, file) = certificate(2000);
    let server = Server::start_tls(tls, move |_| answer(302, &[("location", &to)], "")).await;
    let error = trusting(&server.url, &file).narinfo(key()).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert!(plain.questions().is_empty());
}
