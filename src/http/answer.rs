//! One request in, one answer out: route, the right handler, the counting.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, Version};
use tracing::debug;

use super::appliance::Appliance;
use super::body::Body;
use super::figures::Figures;
use super::front::Front;
use super::host_rule;
use super::machine::Machines;
use super::refusal::Refusal;
use super::reply::{Media, Reply};
use super::route::{Object, Route, route};
use super::server::Ends;
use super::status::Status;
use super::upload::{self, Upload};
use super::{Site, auth, nar, narinfo, page};
use crate::cache::{HealthState, StoreState};
use crate::metrics::{Ended, Kind, UpstreamLabel};

/// What is not to be had here.
const ABSENT: (Reply, Ended) = (Reply::Absent, Ended::Absent);

/// Everything that answers need; one for all connections.
pub(super) struct Desk {
    site: Arc<Site>,
    front: Front,
    figures: Figures,
    page_policy: HeaderValue,
    machines: Machines,
}

impl Desk {
    /// Prepares what never changes.
    pub(super) fn new(site: Arc<Site>) -> Self {
        let (store_dir, names) = (site.store_dir.clone(), site.names.clone());
        Self {
            front: Front::new(store_dir, site.public_keys.clone(), names),
            figures: Figures::new(&site.metrics),
            page_policy: page::policy(),
            machines: Machines::default(),
            site,
        }
    }

    /// Answers a request that came over a connection with these ends.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        ends: Ends,
    ) -> Result<Response<Body>, Infallible> {
        let began = Instant::now();
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        let route = route(request.method(), request.uri().path());
        let kind = kind_of(&route);
        let (reply, ended) = match self.front.answer(&route, &request) {
            Some(answer) => answer,
            None => self.ask(route, &request, body, ends).await,
        };
        let took = began.elapsed();
        self.figures.note(kind, ended, took);
        let (method, path, version) = (request.method(), request.uri().path(), request.version());
        debug!(%method, path, ?version, outcome = ?ended, took_us = took.as_micros(), "answered");
        let mut response = reply.into_response(self.site.metrics.served_bytes.clone());
        // On HTTP/1.1 hyper sends no body to a HEAD, on h2 it would.
        if *method == Method::HEAD && version == Version::HTTP_2 {
            response.body_mut().forgo();
        }
        Ok(response)
    }

    async fn ask(
        &self,
        route: Route<'_>,
        request: &Request<()>,
        body: Incoming,
        ends: Ends,
    ) -> (Reply, Ended) {
        match route {
            Route::Put(object) => self.put(Some(object), request, body, ends).await,
            Route::Write => self.put(None, request, body, ends).await,
            Route::Object(object) => self.object(object, request).await,
            Route::Pushed(object) => self.pushed(object, request).await,
            Route::Healthz => (self.healthz(), Ended::Hit),
            Route::Page => (self.page(request, ends).await, Ended::Hit),
            Route::Status => {
                (Reply::Shown(Media::Json, self.status().await.json().into()), Ended::Hit)
            }
            Route::Metrics => (self.metrics(), Ended::Hit),
            Route::CaPem => {
                match self.site.tls.as_ref().and_then(|(identity, _)| identity.ca_pem()) {
                    Some(pem) => (Reply::Found(Media::Pem, pem), Ended::Hit),
                    None => ABSENT,
                }
            }
            // Answered in front.
            Route::PublicKey | Route::Unknown => ABSENT,
        }
    }

    async fn object(&self, object: Object<'_>, request: &Request<()>) -> (Reply, Ended) {
        let cache = &self.site.cache;
        match object {
            Object::Narinfo(key) => narinfo::answer(cache, key).await,
            Object::Nar(name) => nar::answer(cache, name, nar_request(request)).await,
            Object::Upload(name) => nar::alias(cache, name, nar_request(request), true).await,
            Object::Listing(key) => narinfo::listing(cache, key).await,
            Object::Document(family, path) => narinfo::document(cache, family, &path).await,
            // Answered in front.
            Object::CacheInfo | Object::OtherNar => ABSENT,
        }
    }

    /// What `/push` has: only what is whole here, and nothing is fetched for it.
    async fn pushed(&self, object: Object<'_>, request: &Request<()>) -> (Reply, Ended) {
        let Site { cache, push, .. } = &*self.site;
        let shown = |body: Option<Bytes>, media| match body {
            Some(body) => (Reply::Found(media, body), Ended::Hit),
            None => ABSENT,
        };
        match object {
            Object::Narinfo(key) => shown(push.view_narinfo(key).await, Media::Narinfo),
            Object::Nar(name) => nar::held_only(cache, name, nar_request(request)).await,
            Object::Upload(name) => nar::alias(cache, name, nar_request(request), false).await,
            Object::Listing(key) => shown(push.view_listing(key).await, Media::Json),
            Object::Document(family, path) => {
                let body = push.view_document(&path).await;
                shown(body, narinfo::media(family, &path))
            }
            // Answered in front.
            Object::CacheInfo | Object::OtherNar => ABSENT,
        }
    }

    async fn put(
        &self,
        object: Option<Object<'_>>,
        request: &Request<()>,
        body: Incoming,
        ends: Ends,
    ) -> (Reply, Ended) {
        let upload = Upload::new(request, body);
        if !self.front.is_ours(request) {
            return upload.refused(Refusal::Host).await;
        }
        let (tokens, plain) = (&self.site.tokens, self.site.push_plain);
        let guard = auth::Guard { tokens, plain, is_tls: ends.is_tls };
        if let Err(why) = auth::check(guard, request.headers(), ends.peer.ip()).await {
            return upload.refused(why).await;
        }
        upload::answer(&self.site.push, object, upload).await
    }

    async fn page(&self, request: &Request<()>, ends: Ends) -> Reply {
        let host = host_rule::host_of(request).unwrap_or("localhost");
        let address = match (ends.is_tls, self.site.plain_port) {
            // What people paste is read by Nix, which knows nothing of our CA.
            (true, Some(port)) => {
                let mut local = ends.local;
                local.set_port(port);
                page::address(&page::at_port(host, port), local)
            }
            (true, None) => format!("https://{host}"),
            (false, _) => page::address(host, ends.local),
        };
        let html = page::render(&self.status().await, &address);
        Reply::Page(html.into(), self.page_policy.clone())
    }

    async fn status(&self) -> Status {
        let machine = self.machines.current().await;
        let appliance = Appliance::read(&self.site.notes).await;
        let found = (machine, appliance);
        Status::collect(&self.site, self.figures.totals(), found, SystemTime::now())
    }

    /// Always well for a supervisor: without its store the cache lives on, and starting it again
    /// mends no disk.
    fn healthz(&self) -> Reply {
        match self.site.cache.store_state() {
            StoreState::Open => Reply::text("ok\n"),
            StoreState::Degraded { .. } => Reply::text("degraded: the store cannot be used\n"),
        }
    }

    fn metrics(&self) -> Reply {
        let metrics = &self.site.metrics;
        let figures = self.site.cache.store_figures();
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics.store_bytes.set(gauge(figures.used_bytes));
        metrics.store_budget_bytes.set(gauge(figures.budget_bytes));
        for (upstream, health) in self.site.cache.upstreams() {
            let up = i64::from(health.state == HealthState::Up);
            metrics.upstream_up.get_or_create(&UpstreamLabel { upstream }).set(up);
        }
        Reply::Shown(Media::OpenMetrics, metrics.text().into())
    }
}

fn nar_request(request: &Request<()>) -> nar::Request<'_> {
    let (method, version) = (request.method(), request.version());
    nar::Request { method, version, headers: request.headers() }
}

const fn kind_of(route: &Route<'_>) -> Kind {
    match route {
        Route::Object(object) => match object {
            Object::Narinfo(_) => Kind::Narinfo,
            Object::Nar(_) | Object::Upload(_) | Object::OtherNar => Kind::Nar,
            Object::Listing(_) => Kind::Listing,
            Object::Document(..) => Kind::Document,
            Object::CacheInfo => Kind::Other,
        },
        // What writers ask is no hit and no miss of those who read.
        Route::Pushed(_)
        | Route::Put(_)
        | Route::Page
        | Route::Status
        | Route::Metrics
        | Route::Healthz
        | Route::PublicKey
        | Route::CaPem
        | Route::Write
        | Route::Unknown => Kind::Other,
    }
}
