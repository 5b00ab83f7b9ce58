//! From a configuration to an upstream: keys, files, connections. Asks nobody.

use std::path::Path;
use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderValue};
use url::Url;

use super::client::{self, TlsError, Transport};
use super::config::{Config, ConfigError, redact};
use super::credentials::{Provider, read_bounded};
use super::folder::Folder;
use super::http::{self, Http};
use super::s3::S3;
use super::s3_url::Bucket;
use super::{Kind, location, secrets};
use crate::nix::{PublicKey, TrustedKeys};

/// The keys, or `None` for `unsigned = true`.
pub(super) fn trusted_keys(config: &Config) -> Result<Option<TrustedKeys>, ConfigError> {
    let url = || redact(&config.url);
    match (config.trusted_public_keys.is_empty(), config.unsigned) {
        (true, true) => Ok(None),
        (true, false) => Err(ConfigError::NoKeys { url: url() }),
        (false, true) => Err(ConfigError::KeysAndUnsigned { url: url() }),
        (false, false) => {
            let keys = config.trusted_public_keys.iter().map(|text| PublicKey::parse(text));
            let keys: Result<Vec<_>, _> = keys.collect();
            let keys = keys.map_err(|source| ConfigError::Key { url: url(), source })?;
            Ok(Some(TrustedKeys::new(keys)))
        }
    }
}

/// What the URL names.
pub(super) fn kind(config: &Config) -> Result<Kind, ConfigError> {
    let scheme = config.url.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("http" | "https") => http(config),
        Some("s3") => s3(config),
        Some("file") => folder(config),
        _ => Err(wrong_url(config, "it begins with none of https://, http://, s3:// and file:///")),
    }
}

fn wrong_url(config: &Config, why: &'static str) -> ConfigError {
    ConfigError::Url { url: redact(&config.url), why }
}

fn parse(config: &Config) -> Result<Url, ConfigError> {
    Url::parse(&config.url).map_err(|_| wrong_url(config, "it does not parse as a URL"))
}

/// Refuses keys of the configuration that this kind would not read.
fn pointless(config: &Config, keys: &[(&'static str, bool)]) -> Result<(), ConfigError> {
    match keys.iter().find(|(_, is_set)| *is_set) {
        Some((key, _)) => Err(ConfigError::Pointless { url: redact(&config.url), key }),
        None => Ok(()),
    }
}

fn http(config: &Config) -> Result<Kind, ConfigError> {
    if config.push {
        return Err(ConfigError::NoTarget { url: redact(&config.url) });
    }
    pointless(config, &[("credentials-file", config.credentials_file.is_some())])?;
    let url = parse(config)?;
    let of_url = secrets::of_url(&url);
    let netrc = match &config.netrc_file {
        Some(path) => netrc(config, path, url.host_str().unwrap_or(""))?,
        None => None,
    };
    let headers = match &config.headers_file {
        Some(path) => headers(config, path)?,
        None => HeaderMap::new(),
    };
    let base = location::base(url);
    let h2 = base.scheme() == "https";
    let transport = transport(config, &base, h2)?;
    Ok(Kind::Http(Box::new(Http::new(base, http::secrets(headers, of_url, netrc), transport))))
}

fn s3(config: &Config) -> Result<Kind, ConfigError> {
    pointless(
        config,
        &[
            ("netrc-file", config.netrc_file.is_some()),
            ("headers-file", config.headers_file.is_some()),
        ],
    )?;
    let bucket = Bucket::parse(&config.url).map_err(|why| wrong_url(config, why))?;
    let file = config.credentials_file.as_deref();
    let provider = Provider::new(file, bucket.profile.as_deref(), |name| std::env::var(name).ok());
    let found = provider
        .read()
        .map_err(|source| ConfigError::Credentials { url: redact(&config.url), source })?;
    if found.is_none() && bucket.profile.is_some() {
        let upstream = redact(&config.url);
        tracing::warn!(%upstream, "profile has no credentials, asking anonymously");
    }
    // S3 servers prefer HTTP/1.1, and some answer h2 wrongly.
    let transport = transport(config, &bucket.base, false)?;
    let http = Http::new(bucket.base.clone(), HeaderMap::new(), transport);
    Ok(Kind::S3(Box::new(S3::new(bucket, provider, http))))
}

fn folder(config: &Config) -> Result<Kind, ConfigError> {
    pointless(
        config,
        &[
            ("ca-file", config.ca_file.is_some()),
            ("credentials-file", config.credentials_file.is_some()),
            ("netrc-file", config.netrc_file.is_some()),
            ("headers-file", config.headers_file.is_some()),
        ],
    )?;
    let folder = Folder::new(&parse(config)?).map_err(|why| wrong_url(config, why))?;
    Ok(Kind::Folder(folder))
}

fn transport(config: &Config, base: &Url, h2: bool) -> Result<Transport, ConfigError> {
    let tls = client::tls(config.ca_file.as_deref()).map_err(|error| {
        let url = redact(&config.url);
        let path = config.ca_file.clone().unwrap_or_default();
        let key = "ca-file";
        match error {
            TlsError::Read(source) => ConfigError::File { url, key, path, source },
            TlsError::NoCertificate => {
                let why = "has no certificate in PEM that can be used".to_owned();
                ConfigError::Contents { url, key, path, why }
            }
            TlsError::Setup(source) => ConfigError::Tls { url, source },
        }
    })?;
    Ok(Transport::new(base, &tls, h2))
}

fn text_of(config: &Config, key: &'static str, path: &Path) -> Result<String, ConfigError> {
    read_bounded(path).map_err(|source| ConfigError::File {
        url: redact(&config.url),
        key,
        path: path.to_owned(),
        source: Arc::new(source),
    })
}

fn netrc(config: &Config, path: &Path, host: &str) -> Result<Option<HeaderValue>, ConfigError> {
    let key = "netrc-file";
    let found = secrets::netrc(&text_of(config, key, path)?, host);
    let missing = || ConfigError::Contents {
        url: redact(&config.url),
        key,
        path: path.to_owned(),
        why: format!("has neither `machine {host}` nor `default`"),
    };
    found.map(Some).ok_or_else(missing)
}

fn headers(config: &Config, path: &Path) -> Result<HeaderMap, ConfigError> {
    let key = "headers-file";
    secrets::headers(&text_of(config, key, path)?).map_err(|why| ConfigError::Contents {
        url: redact(&config.url),
        key,
        path: path.to_owned(),
        why,
    })
}
