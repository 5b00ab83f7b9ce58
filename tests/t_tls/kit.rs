//! A snowberry with TLS, and curl as who asks it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::world::{Settings, Snowberry, parts};

/// A snowberry with TLS on a port of loopback.
pub(crate) struct Secured {
    pub(crate) snowberry: Snowberry,
    pub(crate) tls: SocketAddr,
    /// Its CA as it hands it out; empty with a certificate from elsewhere.
    pub(crate) ca_pem: String,
}

impl Secured {
    pub(crate) async fn start(settings: Settings) -> Self {
        let snowberry = settings.set(r#"tls.listen=["127.0.0.1:0"]"#).start().await;
        snowberry.ready().await;
        Self::of(snowberry).await
    }

    async fn of(snowberry: Snowberry) -> Self {
        let tls = snowberry.tls_address().await;
        let answer = snowberry.client().get("/ca.pem").await;
        let ca_pem = if answer.status == 200 { answer.text().to_owned() } else { String::new() };
        Self { snowberry, tls, ca_pem }
    }

    /// The CA in a file.
    pub(crate) fn ca_file(&self, folder: &Path) -> PathBuf {
        let path = folder.join("ca.pem");
        std::fs::write(&path, &self.ca_pem).unwrap();
        path
    }

    pub(crate) fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.tls.port())
    }
}

/// What curl was told.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) exit: Option<i32>,
    /// `2` or `1.1`.
    pub(crate) version: String,
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    pub(crate) stderr: String,
}

/// Runs curl, trusting this CA alone. None: the test was noted as skipped and must return.
pub(crate) async fn curl(ca_file: &Path, arguments: &[&str]) -> Option<Got> {
    let program = parts::program("curl")?;
    let folder = tempfile::tempdir().unwrap();
    let body = folder.path().join("body");
    let mut command = Command::new(program);
    command.args(["--silent", "--show-error", "--max-time", "60", "--cacert"]).arg(ca_file);
    command.args(["--write-out", "%{http_version} %{http_code}", "--output"]).arg(&body);
    command.args(arguments).env_remove("http_proxy").env_remove("https_proxy");
    command.env("NO_PROXY", "*").env("HOME", folder.path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let written = String::from_utf8(output.stdout).unwrap();
    let (version, status) = written.split_once(' ').unwrap();
    Some(Got {
        exit: output.status.code(),
        version: version.to_owned(),
        status: status.parse().unwrap(),
        body: std::fs::read(&body).unwrap_or_default(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A handshake as `forward` and `join` make it: the CA is pinned.
pub(crate) async fn pinned(
    ca_pem: &str,
    address: SocketAddr,
    name: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let config = snowberry::pinned::client_config(ca_pem.as_bytes()).unwrap();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}
