//! What a configuration must be beyond its types. All problems at once; opens no socket.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;

use super::{Config, Files, Problem, mdns, push, tls};
use crate::http;
use crate::nix::PublicKey;
use crate::units::ByteSize;
use crate::upstream;

/// What a label of the domain name system may have.
const NAME_LEN_MAX: usize = 63;

/// zstd's levels above this need windows that cheap machines cannot hold.
const COMPRESSION_LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// Below this not even one NAR of a compiler fits, and everything would stream through uncached.
const BUDGET_MIN: ByteSize = ByteSize(8 << 20);

/// Everything that is wrong.
pub(super) fn problems(config: &Config, files: Files) -> Vec<Problem> {
    let mut told = Vec::new();
    let mut tell = |message: String| told.push(Problem::of_the_whole(message));
    if config.listen.as_ref().is_some_and(Vec::is_empty) {
        tell("listen: an empty list; leave it out for 127.0.0.1:8500".to_owned());
    }
    if !is_label(&config.name) {
        tell(format!(
            "name: {:?} is not made of lower-case letters, digits and inner hyphens",
            config.name
        ));
    }
    for name in &config.names {
        if name.is_empty() || !name.split('.').all(|label| is_label(&label.to_ascii_lowercase())) {
            tell(format!("names: {name:?} is no host name (without port)"));
        }
    }
    for prefix in &config.allow {
        if prefix.parse::<http::Prefix>().is_err() {
            tell(format!(
                "allow: {prefix:?} is no address prefix such as 203.0.113.0/24 or 2001:db8::/32"
            ));
        }
    }
    if !config.state_dir.is_absolute() {
        tell(format!("state-dir: {} is not absolute", config.state_dir.display()));
    }
    let store = &config.store;
    if let Some(path) = store.path.as_ref().filter(|path| !path.is_absolute()) {
        tell(format!("store.path: {} is not absolute", path.display()));
    }
    if store.budget.is_some_and(|budget| budget < BUDGET_MIN) {
        tell(format!("store.budget: less than {BUDGET_MIN}"));
    }
    if let Some(level) = store.compression_level.filter(|level| !COMPRESSION_LEVELS.contains(level))
    {
        tell(format!("store.compression-level: {level} is not from 1 to 19"));
    }
    told.extend(push::problems(&config.push, &config.admin));
    told.extend(mdns::problems(&config.mdns));
    told.extend(tls::problems(&config.tls, files));
    let mut tell = |message: String| told.push(Problem::of_the_whole(message));
    let mut urls = HashSet::new();
    for upstream in &config.upstreams {
        let shown = without_user(&upstream.url);
        if !urls.insert(upstream.url.as_str()) {
            tell(format!("upstream {shown}: named twice"));
        }
        for message in of_upstream(upstream, files) {
            tell(format!("upstream {shown}: {message}"));
        }
    }
    told
}

fn of_upstream(config: &upstream::Config, looked_for: Files) -> Vec<String> {
    let mut told = Vec::new();
    if !["https://", "http://", "s3://", "file:///"]
        .iter()
        .any(|start| config.url.starts_with(start))
    {
        told.push("url: neither https://, http://, s3:// nor file:///".to_owned());
    }
    if config.trusted_public_keys.is_empty() && !config.unsigned {
        let message = "no trusted-public-keys: give them, or say unsigned = true if everything \
                       it has may be taken on trust";
        told.push(message.to_owned());
    }
    for key in &config.trusted_public_keys {
        if let Err(error) = PublicKey::parse(key) {
            told.push(format!("trusted-public-keys: {error}"));
        }
    }
    let files = [
        ("ca-file", &config.ca_file),
        ("credentials-file", &config.credentials_file),
        ("netrc-file", &config.netrc_file),
        ("headers-file", &config.headers_file),
    ];
    for (key, path) in files {
        if let Some(Err(error)) = path.as_deref().map(|path| readable(path, looked_for)) {
            told.push(format!("{key}: {error}"));
        }
    }
    told
}

pub(super) fn readable(path: &Path, files: Files) -> Result<(), String> {
    if !path.is_absolute() {
        return Err(format!("{} is not absolute", path.display()));
    }
    if files == Files::Elsewhere {
        return Ok(());
    }
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if is_file { Ok(()) } else { Err(format!("{} is no file", path.display())) }
}

fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty()
        && text.len() <= NAME_LEN_MAX
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A URL for people: what stands before an `@` in its authority may be a password.
pub(super) fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}
