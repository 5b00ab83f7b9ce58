//! `http://` and `https://` caches: questions, redirects, secrets.

use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE, USER_AGENT,
};
use hyper::{Request, Response, Uri};
use url::Url;

use super::client::{Lane, Transport};
use super::error::{Asked, Error};
use super::{Resume, answer, location};

/// Redirects that are followed: a cache behind a mirror behind a CDN needs two or three.
const REDIRECTS_MAX: usize = 5;

/// Who asks.
pub(super) const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("snowberry/", env!("CARGO_PKG_VERSION")));

/// An http(s) cache.
pub(super) struct Http {
    base: Url,
    secrets: HeaderMap,
    transport: Transport,
}

impl Http {
    /// `base` as [`location::base`] makes it. `secrets` go to its server and nowhere else.
    pub(super) fn new(base: Url, secrets: HeaderMap, transport: Transport) -> Self {
        Self { base, secrets, transport }
    }

    /// The connections.
    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// An object by its name below the cache.
    pub(super) async fn object(
        &self,
        name: &str,
        asked: &Asked,
    ) -> Result<Option<Response<Incoming>>, Error> {
        let url = location::object(&self.base, name)
            .map_err(|why| Error::Url { asked: asked.clone(), why })?;
        self.follow(url, None, Lane::Small, asked).await
    }

    /// A NAR file by the URL of a narinfo.
    pub(super) async fn nar(
        &self,
        url: &str,
        resume: Option<&Resume>,
        asked: &Asked,
    ) -> Result<Option<Response<Incoming>>, Error> {
        let refuse = |why| Error::Url { asked: asked.clone(), why };
        let url = location::nar(&self.base, url).map_err(refuse)?;
        if !location::same_host(&self.base, &url) && !self.transport.may_reach(&url).await {
            return Err(refuse("the URL is an address of the house, the upstream is not"));
        }
        self.follow(url, resume, Lane::Bulk, asked).await
    }

    /// Asks, follows redirects, and judges the answer.
    async fn follow(
        &self,
        mut url: Url,
        resume: Option<&Resume>,
        lane: Lane,
        asked: &Asked,
    ) -> Result<Option<Response<Incoming>>, Error> {
        let refuse = |why| Error::Redirect { asked: asked.clone(), why };
        for _ in 0..=REDIRECTS_MAX {
            let response = self.once(&url, resume, lane, asked).await?;
            if !answer::is_redirect(&response) {
                return answer::judge(response, asked).await;
            }
            let next = target(&url, response.headers()).map_err(refuse)?;
            let leaves = !location::same_host(&self.base, &next);
            if leaves && !self.transport.may_reach(&next).await {
                return Err(refuse("it leads to an address of the house"));
            }
            url = next;
        }
        Err(refuse("too many"))
    }

    async fn once(
        &self,
        url: &Url,
        resume: Option<&Resume>,
        lane: Lane,
        asked: &Asked,
    ) -> Result<Response<Incoming>, Error> {
        let uri = Uri::try_from(url.as_str())
            .map_err(|_| Error::Url { asked: asked.clone(), why: "the URL does not parse" })?;
        let mut request = question(uri, resume);
        if location::keeps_secrets(&self.base, url) {
            for (name, value) in &self.secrets {
                request.headers_mut().append(name, value.clone());
            }
        }
        let own = location::same_host(&self.base, url);
        let lane = if own { lane } else { Lane::Foreign };
        self.transport.send(lane, request, asked).await
    }
}

/// A GET with what every question says.
pub(super) fn question(uri: Uri, resume: Option<&Resume>) -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, AGENT);
    // Absent means "anything" and some proxies then compress what is compressed.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let Some(resume) = resume.filter(|resume| resume.offset > 0) else {
        return request;
    };
    let range = format!("bytes={}-", resume.offset);
    let range = HeaderValue::try_from(range).expect("digits may stand in a header");
    headers.insert(RANGE, range);
    if let Some(etag) = &resume.etag
        && let Ok(etag) = HeaderValue::try_from(etag)
    {
        headers.insert(IF_RANGE, etag);
    }
    request
}

/// Where a redirect leads; never from TLS to plain text.
fn target(from: &Url, headers: &HeaderMap) -> Result<Url, &'static str> {
    let to = headers.get(LOCATION).ok_or("it has no Location")?;
    let to = to.to_str().map_err(|_| "its Location is not text")?;
    let mut to = from.join(to).map_err(|_| "its Location does not parse")?;
    if !matches!(to.scheme(), "http" | "https") {
        return Err("it leads to neither http nor https");
    }
    if from.scheme() == "https" && to.scheme() != "https" {
        return Err("it leaves TLS");
    }
    // What another server thinks of as our name and password is none of ours.
    location::drop_user(&mut to);
    to.set_fragment(None);
    Ok(to)
}

/// The secrets of a cache: header lines first, then the URL's user data, then netrc.
pub(super) fn secrets(
    mut headers: HeaderMap,
    of_url: Option<HeaderValue>,
    netrc: Option<HeaderValue>,
) -> HeaderMap {
    if !headers.contains_key(AUTHORIZATION)
        && let Some(value) = of_url.or(netrc)
    {
        headers.insert(AUTHORIZATION, value);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_never_leave_tls() {
        let check = |from: &str, to: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, to.parse().unwrap());
            target(&Url::parse(from).unwrap(), &headers).map(String::from)
        };
        assert!(check("https://a.example/x", "http://a.example/x").is_err());
        assert!(check("https://a.example/x", "file:///x").is_err());
        assert_eq!(check("https://a.example/x/y", "z?q=1").unwrap(), "https://a.example/x/z?q=1");
        assert_eq!(check("http://a.example/", "https://b.example/").unwrap(), "https://b.example/");
        assert_eq!(
            check("https://a.example/", "//me:pw@b.example/").unwrap(),
            "https://b.example/"
        );
    }

    #[test]
    fn a_resumed_question_names_the_object_it_goes_on_with() {
        let uri = || Uri::from_static("http://a.example/x");
        let whole = question(uri(), None);
        assert!(whole.headers().get(RANGE).is_none());
        let resume = Resume { offset: 7, etag: Some("\"e\"".into()) };
        let rest = question(uri(), Some(&resume));
        assert_eq!(rest.headers().get(RANGE).unwrap(), "bytes=7-");
        assert_eq!(rest.headers().get(IF_RANGE).unwrap(), "\"e\"");
    }
}
