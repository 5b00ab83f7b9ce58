//! One request in, one answer out: route, the right handler, the counting.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, Response};
use tracing::debug;

use super::body::Body;
use super::figures::Figures;
use super::front::Front;
use super::host_rule;
use super::machine::Machines;
use super::reply::{Media, Reply};
use super::route::{Route, route};
use super::status::Status;
use super::{Site, nar, narinfo, page};
use crate::cache::{HealthState, StoreState};
use crate::metrics::{Ended, Kind, UpstreamLabel};

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

    /// Answers a request that came to our address `local`.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        local: SocketAddr,
    ) -> Result<Response<Body>, Infallible> {
        let began = Instant::now();
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        let route = route(request.method(), request.uri().path());
        let kind = kind_of(&route);
        let (reply, ended) = match self.front.answer(&route, &request, body).await {
            Some(answer) => answer,
            None => self.ask(route, &request, local).await,
        };
        let took = began.elapsed();
        self.figures.note(kind, ended, took);
        let (method, path) = (request.method(), request.uri().path());
        debug!(%method, path, outcome = ?ended, took_us = took.as_micros(), "answered");
        Ok(reply.into_response(self.site.metrics.served_bytes.clone()))
    }

    async fn ask(
        &self,
        route: Route<'_>,
        request: &Request<()>,
        local: SocketAddr,
    ) -> (Reply, Ended) {
        let cache = &self.site.cache;
        match route {
            Route::Narinfo(key) => narinfo::answer(cache, key).await,
            Route::Nar(name) => {
                let (method, version) = (request.method(), request.version());
                let request = nar::Request { method, version, headers: request.headers() };
                nar::answer(cache, name, request).await
            }
            Route::Listing(key) => narinfo::listing(cache, key).await,
            Route::Document(family, path) => narinfo::document(cache, family, &path).await,
            Route::Healthz => (self.healthz(), Ended::Hit),
            Route::Page => (self.page(request, local).await, Ended::Hit),
            Route::Status => {
                (Reply::Shown(Media::Json, self.status().await.json().into()), Ended::Hit)
            }
            Route::Metrics => (self.metrics(), Ended::Hit),
            // Answered in front.
            Route::CacheInfo
            | Route::PublicKey
            | Route::NarFile
            | Route::Write
            | Route::Unknown => (Reply::Absent, Ended::Absent),
        }
    }

    async fn page(&self, request: &Request<()>, local: SocketAddr) -> Reply {
        let host = host_rule::host_of(request).unwrap_or("localhost");
        let html = page::render(&self.status().await, &page::address(host, local));
        Reply::Page(html.into(), self.page_policy.clone())
    }

    async fn status(&self) -> Status {
        let machine = self.machines.current().await;
        Status::collect(&self.site, self.figures.totals(), machine, SystemTime::now())
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

const fn kind_of(route: &Route<'_>) -> Kind {
    match route {
        Route::Narinfo(_) => Kind::Narinfo,
        Route::Nar(_) | Route::NarFile => Kind::Nar,
        Route::Listing(_) => Kind::Listing,
        Route::Document(..) => Kind::Document,
        Route::CacheInfo
        | Route::Page
        | Route::Status
        | Route::Metrics
        | Route::Healthz
        | Route::PublicKey
        | Route::Write
        | Route::Unknown => Kind::Other,
    }
}
