//! Finds a cache and asks it who it is: by name, by address, or by what announces itself. Trusts
//! nothing that it hears but what it shows to people.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::cli::exchange;
use crate::config::DEFAULT_NAME;
use crate::mdns::{self, Browser, Found};
use crate::nix::PublicKey;
use crate::pinned::{self, CaFingerprint};

/// How long caches have to announce themselves: two questions, the second after a second.
const FIND_WAIT: Duration = Duration::from_secs(3);

/// How long the cache may take for one answer, a TLS handshake of an old Pi included.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Where plain HTTP is unless said otherwise.
const HTTP_PORT: u16 = 80;

/// Addresses that are tried and kept: a machine with more has most of them on other networks.
const ADDRESSES_MAX: usize = 16;

/// A cache that was asked who it is.
#[derive(Debug, Clone)]
pub(super) struct Met {
    /// The mDNS host name, without `.local`.
    pub(super) name: String,
    /// As it was asked for: a name or an address.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) addresses: Vec<IpAddr>,
    /// Its TLS, where that is by a CA of its own.
    pub(super) tls: Option<MetTls>,
    /// Its own keys, the one that signs first.
    pub(super) keys: Vec<PublicKey>,
}

/// The TLS of a cache.
#[derive(Debug, Clone)]
pub(super) struct MetTls {
    pub(super) port: u16,
    pub(super) ca_pem: Bytes,
    pub(super) ca: CaFingerprint,
}

/// Where a cache is to be asked.
struct Where {
    host: String,
    port: u16,
    addresses: Vec<IpAddr>,
    label: Option<String>,
}

/// Finds it, asks it, and checks that its TLS is by the CA that it shows.
pub(super) async fn meet(wanted: Option<&str>, mdns: &mdns::Config) -> anyhow::Result<Met> {
    let at = match wanted {
        Some(wanted) => locate(wanted, mdns).await?,
        None => the_only_one(mdns).await?,
    };
    let mut failed = None;
    for address in at.addresses.iter().take(ADDRESSES_MAX) {
        match ask(&at, SocketAddr::new(*address, at.port)).await {
            Ok(met) => return Ok(met),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.context("it has no address")?.context(format!("ask the cache {}", at.host)))
}

/// Where `[http://]HOST[:PORT]` is; a `.local` name that the system does not know is asked of the
/// house.
async fn locate(wanted: &str, mdns: &mdns::Config) -> anyhow::Result<Where> {
    let bare = wanted.strip_prefix("http://").unwrap_or(wanted).trim_end_matches('/');
    anyhow::ensure!(!bare.contains('/'), "{wanted:?} is neither a name nor an address");
    let (host, port) = split(bare).with_context(|| format!("{wanted:?} has no sound port"))?;
    if let Ok(address) = host.parse::<IpAddr>() {
        let port = port.unwrap_or(HTTP_PORT);
        return Ok(Where { host, port, addresses: vec![address], label: None });
    }
    let label = host.strip_suffix(".local").map(str::to_owned);
    let resolved = tokio::net::lookup_host((host.as_str(), port.unwrap_or(HTTP_PORT))).await;
    let resolved: Vec<IpAddr> =
        resolved.map(|all| all.map(|it| it.ip()).collect()).unwrap_or_default();
    if !resolved.is_empty() {
        let port = port.unwrap_or(HTTP_PORT);
        return Ok(Where { host, port, addresses: resolved, label });
    }
    let Some(label) = label else {
        anyhow::bail!("{host} is not known here: give its address, or its .local name");
    };
    let found = found(mdns, |it| it.name == label).await?;
    let found = found.into_iter().find(|it| it.name == label);
    let found = found.with_context(|| {
        format!("{host} is not known here, and no cache of this network announces itself by it")
    })?;
    Ok(Where {
        host,
        port: port.unwrap_or(found.port),
        addresses: found.addresses,
        label: Some(label),
    })
}

fn split(bare: &str) -> Option<(String, Option<u16>)> {
    if let Some(rest) = bare.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port.parse().ok()?),
            None => None,
        };
        return Some((host.to_owned(), port));
    }
    match bare.split_once(':') {
        // More than one colon is an IPv6 address without brackets.
        Some((host, port)) if !port.contains(':') => {
            Some((host.to_ascii_lowercase(), Some(port.parse().ok()?)))
        }
        Some(_) | None => Some((bare.trim_end_matches('.').to_ascii_lowercase(), None)),
    }
}

async fn the_only_one(mdns: &mdns::Config) -> anyhow::Result<Where> {
    let mut all = found(mdns, |_| false).await?;
    let one = all.pop().context(
        "no cache announces itself in this network: give its address, `snowberry join HOST`",
    )?;
    let mut names: Vec<String> = all.into_iter().map(|it| format!("{}.local", it.name)).collect();
    let host = format!("{}.local", one.name);
    names.push(host.clone());
    anyhow::ensure!(names.len() == 1, "there are several caches, name one: {}", names.join(", "));
    Ok(Where { host, port: one.port, addresses: one.addresses, label: Some(one.name) })
}

/// What announces itself within [`FIND_WAIT`], or until one `is_enough`.
async fn found(
    mdns: &mdns::Config,
    is_enough: impl Fn(&Found) -> bool,
) -> anyhow::Result<Vec<Found>> {
    let browser = Browser::start(mdns).context("listen for caches")?;
    let mut watch = browser.found();
    let enough = watch.wait_for(|all| all.iter().any(&is_enough));
    drop(timeout(FIND_WAIT, enough).await);
    let all = watch.borrow().to_vec();
    Ok(all)
}

async fn ask(at: &Where, address: SocketAddr) -> anyhow::Result<Met> {
    let plain = Asker { address, host: host_header(&at.host, at.port), tls: None };
    let status = plain.status().await?;
    let label = label(&status, at.label.as_deref());
    let (keys, tls) = match tls_port(&status) {
        None => (plain.keys().await?, None),
        Some(port) => {
            let tls = plain.ca(port, &status).await?;
            // What is shown from here on comes over TLS, from who has the key of that CA.
            let keys = match &tls {
                None => plain.keys().await?,
                Some(tls) => {
                    let name = format!("{label}.local");
                    let address = SocketAddr::new(address.ip(), port);
                    let tls = Some((tls.ca_pem.clone(), name.clone()));
                    Asker { address, host: name, tls }.keys().await?
                }
            };
            (keys, tls)
        }
    };
    let mut addresses = vec![address.ip()];
    addresses.extend(at.addresses.iter().filter(|it| **it != address.ip()));
    addresses.truncate(ADDRESSES_MAX);
    Ok(Met { name: label, host: at.host.clone(), port: at.port, addresses, tls, keys })
}

fn tls_port(status: &Value) -> Option<u16> {
    status.get("tls")?.get("port")?.as_u64()?.try_into().ok()
}

/// The label that the cache has in the house, by its own word; else as it was asked for, else its name.
fn label(status: &Value, asked: Option<&str>) -> String {
    let text = |key: &str| status.get(key).and_then(Value::as_str);
    let label = text("local_name").and_then(|name| name.strip_suffix(".local"));
    label.or(asked).or_else(|| text("name")).unwrap_or(DEFAULT_NAME).to_owned()
}

fn host_header(host: &str, port: u16) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    if port == HTTP_PORT { host } else { format!("{host}:{port}") }
}

/// Asks one address, plain or by TLS.
struct Asker {
    address: SocketAddr,
    host: String,
    /// The CA that is trusted, and the name that is wanted.
    tls: Option<(Bytes, String)>,
}

impl Asker {
    async fn status(&self) -> anyhow::Result<Value> {
        let body =
            self.get("/api/status").await?.context("it has no /api/status: is it a snowberry?")?;
        serde_json::from_slice(&body).context("read /api/status: is it a snowberry?")
    }

    async fn keys(&self) -> anyhow::Result<Vec<PublicKey>> {
        let Some(body) = self.get("/public-key").await? else { return Ok(Vec::new()) };
        let text = std::str::from_utf8(&body).context("read /public-key")?;
        let keys: Result<_, _> = text.lines().map(PublicKey::parse).collect();
        keys.context("read /public-key")
    }

    /// `None`: its certificate is not by a CA of its own.
    async fn ca(&self, port: u16, status: &Value) -> anyhow::Result<Option<MetTls>> {
        let Some(ca_pem) = self.get("/ca.pem").await? else { return Ok(None) };
        let ca = CaFingerprint::of_pem(&ca_pem).context("read /ca.pem")?;
        let told = status.get("tls").and_then(|tls| tls.get("ca_sha256")).and_then(Value::as_str);
        anyhow::ensure!(
            told == Some(ca.to_hex().as_str()),
            "/ca.pem and /api/status tell of two CAs: somebody is in between, or the cache was just \
             set up anew; try again"
        );
        Ok(Some(MetTls { port, ca_pem, ca }))
    }

    /// `None`: it is not there.
    async fn get(&self, path: &str) -> anyhow::Result<Option<Bytes>> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let asked = timeout(ANSWER_WAIT, self.exchange(path)).await;
        let asked = asked.with_context(|| format!("no answer within {ANSWER_WAIT:?}"));
        let (status, body) = asked
            .and_then(|answer| answer)
            .with_context(|| format!("ask {scheme}://{}{path}", self.address))?;
        match status {
            StatusCode::OK => Ok(Some(body)),
            StatusCode::NOT_FOUND => Ok(None),
            other => anyhow::bail!("{path}: the answer is {other}"),
        }
    }

    async fn exchange(&self, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::get(path).header(header::HOST, &self.host);
        let request = request.body(Full::<Bytes>::default()).context("make the question")?;
        let stream = TcpStream::connect(self.address).await.context("connect")?;
        let Some((ca_pem, name)) = &self.tls else { return exchange::over(stream, request).await };
        let config = Arc::new(pinned::client_config(ca_pem).context("use its CA")?);
        let name = ServerName::try_from(name.clone()).context("use its name")?;
        let stream = TlsConnector::from(config).connect(name, stream).await.context("speak TLS")?;
        exchange::over(stream, request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_told_apart() {
        for (text, host, port) in [
            ("snowberry.local", "snowberry.local", None),
            ("Snowberry.Local.", "snowberry.local", None),
            ("192.168.1.7:8500", "192.168.1.7", Some(8500)),
            ("[fd00::7]:81", "fd00::7", Some(81)),
            ("[fd00::7]", "fd00::7", None),
            ("fd00::7", "fd00::7", None),
        ] {
            assert_eq!(split(text), Some((host.to_owned(), port)), "{text}");
        }
        for text in ["a:b", "a:70000", "[fd00::7", "[fd00::7]:x"] {
            assert_eq!(split(text), None, "{text}");
        }
        assert_eq!(host_header("fd00::7", 81), "[fd00::7]:81");
        assert_eq!(host_header("snowberry.local", 80), "snowberry.local");
    }

    #[test]
    fn the_label_in_the_house_comes_before_the_name() {
        let status = serde_json::json!({"name": "snowberry", "local_name": "snowberry-2.local"});
        assert_eq!(label(&status, Some("pi")), "snowberry-2");
        let status = serde_json::json!({"name": "attic", "local_name": null});
        assert_eq!(label(&status, Some("pi")), "pi");
        assert_eq!(label(&status, None), "attic");
    }
}
