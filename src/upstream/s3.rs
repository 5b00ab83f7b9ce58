//! `s3://` buckets: the same keys as an http cache has paths, anonymous or signed.

use std::sync::Arc;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};

use super::client::Lane;
use super::credentials::{CredentialsError, Provider};
use super::error::{Asked, Error};
use super::http::{self, Http};
use super::put::Left;
use super::s3_url::Bucket;
use super::{Resume, answer};

/// A bucket.
pub(super) struct S3 {
    pub(super) bucket: Bucket,
    provider: Arc<Provider>,
    /// Its connections; and a narinfo's absolute URL is asked as any http cache's would be,
    /// without a signature.
    http: Http,
    /// Multipart uploads whose sender has gone.
    pub(super) left: Left,
}

impl S3 {
    /// `http` has the bucket's URL as its base, and no secrets.
    pub(super) fn new(bucket: Bucket, provider: Provider, http: Http) -> Self {
        Self { bucket, provider: Arc::new(provider), http, left: Left::default() }
    }

    /// An object by its key.
    pub(super) async fn object(
        &self,
        key: &str,
        asked: &Asked,
    ) -> Result<Option<Response<Incoming>>, Error> {
        self.ask(key, None, Lane::Small, asked).await
    }

    /// A NAR file by the URL of a narinfo.
    pub(super) async fn nar(
        &self,
        url: &str,
        resume: Option<&Resume>,
        asked: &Asked,
    ) -> Result<Option<Response<Incoming>>, Error> {
        if url.contains("://") || url.starts_with("//") {
            return self.http.nar(url, resume, asked).await;
        }
        let key =
            Bucket::key_of_url(url).map_err(|why| Error::Url { asked: asked.clone(), why })?;
        self.ask(&key, resume, Lane::Bulk, asked).await
    }

    /// Its connections.
    pub(super) fn transport(&self) -> &super::client::Transport {
        self.http.transport()
    }

    async fn ask(
        &self,
        key: &str,
        resume: Option<&Resume>,
        lane: Lane,
        asked: &Asked,
    ) -> Result<Option<Response<Incoming>>, Error> {
        let refuse = |why| Error::Url { asked: asked.clone(), why };
        let url = self.bucket.key(key).map_err(refuse)?;
        let uri = Uri::try_from(url).map_err(|_| refuse("the key makes no URL"))?;
        let mut request = http::question(uri, resume);
        let credentials = |source| {
            let upstream = Arc::clone(&asked.upstream);
            Error::Credentials { upstream, source }
        };
        if let Some(keys) = self.credentials().await.map_err(credentials)? {
            sign_request(
                &mut request,
                &keys,
                &self.bucket.region,
                Payload::Empty,
                SystemTime::now(),
            )
            .map_err(credentials)?;
        }
        let response = self.http.transport().send(lane, request, asked).await?;
        answer::judge(response, asked).await
    }

    /// The keys as they are now; `None` means anonymous.
    pub(super) async fn credentials(&self) -> Result<Option<Credentials>, CredentialsError> {
        if let Some(recent) = self.provider.recent() {
            return recent;
        }
        let provider = Arc::clone(&self.provider);
        let read = tokio::task::spawn_blocking(move || provider.read()).await;
        read.map_err(|_| CredentialsError::Sign)?
    }
}

/// What a signature says of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload {
    /// There is none.
    Empty,
    /// There is one, with this SHA-256.
    Sha256([u8; 32]),
    /// There is one, and TLS looks after it.
    #[cfg(test)]
    Unsigned,
}

/// Signs the headers of a request with what S3 wants: the path as it stands, encoded once, and
/// the payload's hash as a header.
pub(super) fn sign_request<B>(
    request: &mut Request<B>,
    keys: &Credentials,
    region: &str,
    payload: Payload,
    at: SystemTime,
) -> Result<(), CredentialsError> {
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host = host.and_then(|host| HeaderValue::try_from(host).ok());
    let host = host.ok_or(CredentialsError::Sign)?;
    request.headers_mut().insert(HOST, host);
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let identity = keys.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("s3")
        .time(at)
        .settings(settings)
        .build()
        .map_err(|_| CredentialsError::Sign)?
        .into();
    let body = match payload {
        Payload::Empty => SignableBody::Bytes(b""),
        Payload::Sha256(digest) => SignableBody::Precomputed(base16(&digest)),
        #[cfg(test)]
        Payload::Unsigned => SignableBody::UnsignedPayload,
    };
    // Proxies change other headers.
    let headers = ["host", "content-type", "content-md5"].into_iter().filter_map(|name| {
        let value = request.headers().get(name)?.to_str().ok()?;
        Some((name, value))
    });
    let uri = request.uri().to_string();
    let signable = SignableRequest::new(request.method().as_str(), uri, headers, body)
        .map_err(|_| CredentialsError::Sign)?;
    let signed = sign(signable, &params).map_err(|_| CredentialsError::Sign)?;
    signed.into_parts().0.apply_to_request_http1x(request);
    for name in ["authorization", "x-amz-security-token"] {
        if let Some(value) = request.headers_mut().get_mut(name) {
            value.set_sensitive(true);
        }
    }
    Ok(())
}

/// As a signature names a digest.
pub(super) fn base16(digest: &[u8; 32]) -> String {
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        for digit in [byte >> 4, byte & 0xf] {
            text.extend(char::from_digit(digit.into(), 16));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::Method;
    use hyper::header::CONTENT_TYPE;

    use super::*;

    /// Signs as the known answers were made (by curl) and returns the Authorization header.
    fn signed(method: Method, content_type: Option<&'static str>, payload: Payload) -> String {
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_static(
            "http://127.0.0.1:12540/mybucket/nar/\
             0s266z35rvqgdz0nisk38kb5xbivg3s0z6fs9p93x8rbgfaj8qkp.nar.zst",
        );
        if let Some(value) = content_type {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(value));
        }
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let keys = Credentials::new("AKIDEXAMPLE", secret, None, None, "test");
        // 2026-11-21T03:36:36Z
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_232_196);
        sign_request(&mut request, &keys, "eu-west-1", payload, at).unwrap();
        assert_eq!(request.headers().get("x-amz-date").unwrap(), "20261121T033636Z");
        let header = request.headers().get("authorization").unwrap();
        assert!(header.is_sensitive());
        header.to_str().unwrap().to_owned()
    }

    fn check(authorization: &str, signed_headers: &str, signature: &str) {
        let wanted = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261121/eu-west-1/s3/aws4_request, \
             SignedHeaders={signed_headers}, Signature={signature}"
        );
        assert_eq!(authorization, wanted);
    }

    #[test]
    fn signatures_are_those_of_curl() {
        let bare = "host;x-amz-content-sha256;x-amz-date";
        check(
            &signed(Method::GET, None, Payload::Empty),
            bare,
            "411715a0093160e7571c0c0951e712e67ab20517787a691542cb4c899f01b244",
        );
        check(
            &signed(Method::HEAD, None, Payload::Empty),
            bare,
            "a8d18ff69c3ccf0da89f1fc0e0ed76e63ef46728205c893461bf6a7520549f68",
        );
        check(
            &signed(Method::PUT, Some("application/x-nix-nar"), Payload::Unsigned),
            "content-type;host;x-amz-content-sha256;x-amz-date",
            "2d88fa4a54036faa5488b6b80d509ecb35775bbcb27f0f83c0cea0d3005bcf05",
        );
    }
}
