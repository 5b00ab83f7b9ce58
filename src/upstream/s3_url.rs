//! `s3://bucket?...` as Nix writes it, and the http(s) URLs that it stands for. Pure.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::location;

/// What is escaped in a key: all but the unreserved characters, and the slash between segments.
/// The signature is over the same text.
const KEY_ESCAPES: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A bucket and where it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Its name.
    pub(super) name: String,
    /// The http(s) URL that keys are appended to, ending in a slash.
    pub(super) base: Url,
    /// For the signature.
    pub(super) region: String,
    /// The credentials' profile, where the URL names one.
    pub(super) profile: Option<String>,
}

/// The settings that we read; a store has more (compression, priority, ...), which are the
/// client's business.
#[derive(Default)]
struct Settings {
    profile: Option<String>,
    region: Option<String>,
    endpoint: Option<String>,
    scheme: Option<String>,
    addressing_style: Option<String>,
}

impl Settings {
    fn parse(query: &str) -> Result<Self, &'static str> {
        let mut settings = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8();
            let value = value.map_err(|_| "a setting in the URL is not UTF-8")?;
            let value = Some(value.into_owned()).filter(|value| !value.is_empty());
            match name {
                "profile" => settings.profile = value,
                "region" => settings.region = value,
                "endpoint" => settings.endpoint = value,
                "scheme" => settings.scheme = value,
                "addressing-style" => settings.addressing_style = value,
                _ => {}
            }
        }
        Ok(settings)
    }
}

impl Bucket {
    /// From the whole URL. The error is a sentence.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix("s3://").ok_or("it does not begin with s3://")?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let bucket = place.trim_end_matches('/');
        if bucket.contains('@') {
            return Err("an s3:// URL has no user data: use credentials-file");
        }
        if bucket.contains('/') {
            return Err("an s3:// URL names a bucket and no path in it");
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if bucket.is_empty() || bucket.starts_with('.') || !bucket.bytes().all(is_name) {
            return Err("the bucket's name is not letters, digits, `-`, `.` and `_`");
        }
        let settings = Settings::parse(query)?;
        let region = settings.region.unwrap_or_else(|| "us-east-1".to_owned());
        if !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            return Err("the region is not letters, digits, `-` and `_`");
        }
        let scheme = settings.scheme.as_deref().unwrap_or("https");
        let endpoint = endpoint(settings.endpoint.as_deref(), scheme, &region)?;
        let is_virtual = match settings.addressing_style.as_deref() {
            None | Some("auto") => settings.endpoint.is_none(),
            Some("path") => false,
            Some("virtual") => true,
            Some(_) => return Err("addressing-style is auto, path or virtual"),
        };
        // A dot would be a level of its own in the host's name, which certificates do not cover.
        let base = if is_virtual && !bucket.contains('.') {
            virtual_host(endpoint, bucket)?
        } else {
            endpoint.join(&format!("{bucket}/")).map_err(|_| "the bucket has no URL")?
        };
        Ok(Self { name: bucket.to_owned(), base, region, profile: settings.profile })
    }

    /// Whether it is one of Amazon's.
    pub(super) fn is_aws(&self) -> bool {
        self.base.host_str().is_some_and(|host| host.ends_with(".amazonaws.com"))
    }

    /// The URL of a key.
    pub(super) fn key(&self, key: &str) -> Result<String, &'static str> {
        location::plain_name(key)?;
        Ok(format!("{}{}", self.base, utf8_percent_encode(key, KEY_ESCAPES)))
    }

    /// The key that a narinfo's relative URL means.
    pub(super) fn key_of_url(url: &str) -> Result<String, &'static str> {
        let path = url.split_once(['?', '#']).map_or(url, |(path, _)| path);
        let key = percent_decode_str(path).decode_utf8().map_err(|_| "the URL is not UTF-8")?;
        Ok(key.into_owned())
    }
}

fn endpoint(text: Option<&str>, scheme: &str, region: &str) -> Result<Url, &'static str> {
    let url = match text {
        None => format!("{scheme}://s3.{region}.amazonaws.com"),
        Some(url) if url.contains("://") => url.to_owned(),
        Some(host) => format!("{scheme}://{host}"),
    };
    let url = Url::parse(&url).map_err(|_| "the endpoint is no URL and no host")?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("the endpoint is neither http nor https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an endpoint has no user data: use credentials-file");
    }
    Ok(location::base(url))
}

fn virtual_host(mut endpoint: Url, bucket: &str) -> Result<Url, &'static str> {
    let wrong = "addressing-style virtual needs an endpoint with a name";
    let host = endpoint.domain().map(|host| format!("{bucket}.{host}")).ok_or(wrong)?;
    endpoint.set_host(Some(&host)).map_err(|_| wrong)?;
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_nix_writes_them() {
        let check = |text: &str, base: &str, region: &str| {
            let bucket = Bucket::parse(text).unwrap();
            assert_eq!((bucket.base.as_str(), bucket.region.as_str()), (base, region), "{text}");
        };
        let guides = "s3://nix-cache?profile=nixbuilder&endpoint=s3.homelab.local";
        check(guides, "https://s3.homelab.local/nix-cache/", "us-east-1");
        assert_eq!(Bucket::parse(guides).unwrap().profile.as_deref(), Some("nixbuilder"));
        check(
            "s3://nix-cache?endpoint=https://minio.homelab.local:443&region=home",
            "https://minio.homelab.local/nix-cache/",
            "home",
        );
        check(
            "s3://b?endpoint=127.0.0.1:9000&scheme=http",
            "http://127.0.0.1:9000/b/",
            "us-east-1",
        );
        check("s3://b?endpoint=http%3A%2F%2Fm%3A9000%2Fs3", "http://m:9000/s3/b/", "us-east-1");
        check("s3://b?endpoint=http://m&scheme=https", "http://m/b/", "us-east-1");
        check("s3://b", "https://b.s3.us-east-1.amazonaws.com/", "us-east-1");
        check("s3://b?region=eu-west-1", "https://b.s3.eu-west-1.amazonaws.com/", "eu-west-1");
        check("s3://b.c", "https://s3.us-east-1.amazonaws.com/b.c/", "us-east-1");
        check("s3://b?addressing-style=path", "https://s3.us-east-1.amazonaws.com/b/", "us-east-1");
        check(
            "s3://b?endpoint=m.example&addressing-style=virtual",
            "https://b.m.example/",
            "us-east-1",
        );
        check(
            "s3://b/?compression=zstd&secret-key=/k&parallel-compression=true&endpoint=",
            "https://b.s3.us-east-1.amazonaws.com/",
            "us-east-1",
        );
    }

    #[test]
    fn what_is_no_bucket_is_refused() {
        for text in [
            "s3://",
            "s3://?endpoint=m",
            "s3://b/prefix",
            "s3://key:secret@b",
            "s3://b?endpoint=ftp://m",
            "s3://b?endpoint=https://k:s@m",
            "s3://b?addressing-style=odd",
            "s3://b?endpoint=127.0.0.1&addressing-style=virtual",
            "s3://b?region=a.b/c",
            "s3://b c",
        ] {
            assert!(Bucket::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_are_escaped_once() {
        let bucket = Bucket::parse("s3://b?endpoint=http://m").unwrap();
        let check = |key: &str, url: &str| assert_eq!(bucket.key(key).unwrap(), url);
        check("nar/x.nar.zst", "http://m/b/nar/x.nar.zst");
        check("realisations/sha256:0!out.doi", "http://m/b/realisations/sha256%3A0%21out.doi");
        check("log/a+b c~d", "http://m/b/log/a%2Bb%20c~d");
        assert!(bucket.key("nar/../../other/x").is_err());
        assert_eq!(Bucket::key_of_url("nar/a%2Bb.nar?hash=1").unwrap(), "nar/a+b.nar");
    }
}
