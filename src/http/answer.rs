//! One request in, one answer out: route, the right handler, the counting.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderValue};
use hyper::{Method, Request, Response, Version};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::appliance::Appliance;
use super::body::Body;
use super::clients::Nar;
use super::front::Front;
use super::history::{Sample, float};
use super::host_rule;
use super::ledger::{Ledger, now_s};
use super::machine::Machines;
use super::refusal::Refusal;
use super::reply::{Media, Reply};
use super::route::{Object, Route, route};
use super::server::Ends;
use super::status::{Sources, Status};
use super::upload::{self, Upload};
use super::{Site, auth, nar, narinfo, page};
use crate::cache::{HealthState, StoreState};
use crate::metrics::{Counter, Ended, Kind, UpstreamLabel};
use crate::nix::StorePathHash;

/// What is not to be had here.
const ABSENT: (Reply, Ended) = (Reply::Absent, Ended::Absent);

/// How often what has no counter is looked at: the plots show the most of an hour.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Everything that answers need; one for all connections.
pub(super) struct Desk {
    site: Arc<Site>,
    front: Front,
    ledger: Arc<Ledger>,
    page_policy: HeaderValue,
    machines: Machines,
}

impl Desk {
    /// Prepares what never changes.
    pub(super) fn new(site: Arc<Site>) -> Self {
        let (store_dir, names) = (site.store_dir.clone(), site.names.clone());
        let ledger = Arc::new(Ledger::new(&site.metrics));
        site.cache.keep_history(Arc::<Ledger>::clone(&ledger));
        Self {
            front: Front::new(store_dir, site.public_keys.clone(), names),
            ledger,
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
        let key = key_of_nar(&route).filter(|_| request.method() == Method::GET);
        let is_for_people = is_for_people(&route);
        let (reply, ended) = match self.front.answer(&route, &request) {
            Some(answer) => answer,
            None => self.ask(route, &request, body, ends).await,
        };
        let took = began.elapsed();
        self.ledger.figures.note(kind, ended, took);
        if !matches!(kind, Kind::Other) {
            let nar = key.filter(|_| ended != Ended::Absent).map(|key| self.nar(key, &reply));
            self.site.clients.note(ends.peer.ip(), ended, nar, began);
        }
        let (method, path, version) = (request.method(), request.uri().path(), request.version());
        debug!(%method, path, ?version, outcome = ?ended, took_us = took.as_micros(), "answered");
        // What people read of the cache is not what it is for.
        let served_bytes = &self.site.metrics.served_bytes;
        let served_bytes = if is_for_people { Counter::default() } else { served_bytes.clone() };
        let mut response = reply.into_response(served_bytes);
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
            Route::Metrics => (self.metrics(request).await, Ended::Hit),
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
        let (status, now_s) = (self.status().await, now_s());
        let history = self.ledger.history(now_s);
        let (hours, days) = (history.hours(now_s), history.days(now_s, page::DAYS_SHOWN_MAX));
        drop(history);
        let clients = self.site.page_clients.then(|| self.site.clients.shown(Instant::now()));
        let view = page::View { status: &status, address: &address, hours, days, clients };
        Reply::Page(page::render(view).into(), self.page_policy.clone())
    }

    async fn status(&self) -> Status {
        let machine = self.machines.current().await;
        let appliance = Appliance::read(&self.site.notes).await;
        let (site, ledger) = (&*self.site, &*self.ledger);
        Status::collect(Sources { site, ledger, machine, appliance, now_s: now_s() })
    }

    /// Looks at what has no counter, until stopped. Nothing is written for it.
    pub(super) async fn watch(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            // What is not well is dated from when it was first seen.
            let status = self.status().await;
            let sample = Sample {
                used_bytes: status.store.degraded.is_none().then_some(status.store.used_bytes),
                waiting: status.queue.waiting,
                temperature_c: status.host.machine.temperature_c,
            };
            self.ledger.sample(now_s(), &sample);
        }
    }

    /// A NAR that is read, by the name that its narinfo gave.
    fn nar(&self, key: StorePathHash, reply: &Reply) -> Nar {
        let narinfo = self.site.cache.ready_narinfo(key).unwrap_or_default();
        let narinfo = std::str::from_utf8(&narinfo).unwrap_or_default();
        let line = |start: &str| narinfo.lines().find_map(|line| line.strip_prefix(start));
        let path = line("StorePath: ").and_then(|path| path.rsplit('/').next());
        let size = line("FileSize: ").or_else(|| line("NarSize: "));
        Nar {
            name: path.map_or_else(|| key.to_string(), str::to_owned),
            size_bytes: reply.nar_len().or_else(|| size.and_then(|size| size.parse().ok())),
        }
    }

    /// Always well for a supervisor: without its store the cache lives on, and starting it again
    /// mends no disk.
    fn healthz(&self) -> Reply {
        match self.site.cache.store_state() {
            StoreState::Open => Reply::text("ok\n"),
            StoreState::Degraded { .. } => Reply::text("degraded: the store cannot be used\n"),
        }
    }

    /// The gauges as the status says them.
    async fn metrics(&self, request: &Request<()>) -> Reply {
        let metrics = &self.site.metrics;
        let status = self.status().await;
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.store_bytes.set(gauge(status.store.used_bytes));
        metrics.store_budget_bytes.set(gauge(status.store.budget_bytes));
        metrics.store_up.set(i64::from(status.store.degraded.is_none()));
        metrics.store_nars.set(gauge(status.store.nars));
        metrics.store_narinfos.set(gauge(status.store.narinfos));
        metrics.disk_free_bytes.set(gauge(status.host.disk_free_bytes));
        metrics.offline_seconds.set(gauge(status.offline_since_s.unwrap_or(0)));
        metrics.uptime_seconds.set(gauge(status.uptime_s));
        metrics.clock_sane.set(i64::from(status.host.clock_sane));
        let machine = &status.host.machine;
        metrics.memory_bytes.set(gauge(machine.memory_bytes.unwrap_or(0)));
        metrics.temperature_celsius.set(machine.temperature_c.map(f64::from));
        metrics.throttled.set(machine.throttled.map(|is| f64::from(u8::from(is))));
        metrics.under_voltage.set(machine.under_voltage.map(|is| f64::from(u8::from(is))));
        let memory = &status.host.memory;
        metrics.memory_room_bytes.set(memory.room_bytes.map(float));
        metrics.memory_short.set(i64::from(memory.short_since_s.is_some()));
        let scrub = &status.scrub;
        metrics.scrub_checked_bytes.set(gauge(scrub.checked_bytes));
        metrics.scrub_size_bytes.set(gauge(scrub.of_bytes));
        metrics.scrub_age_seconds.set(scrub.last_done_s.map(float));
        metrics.scrub_found.set(gauge(scrub.found));
        metrics.scrub_repaired.set(gauge(scrub.repaired));
        metrics.scrub_unrepaired.set(gauge(scrub.unrepaired));
        for (upstream, health) in self.site.cache.upstreams() {
            let up = i64::from(health.state == HealthState::Up);
            metrics.upstream_up.get_or_create(&UpstreamLabel { upstream }).set(up);
        }
        // Prometheus asks for the newer form; what asks for nothing may know the older only.
        let accepts = request.headers().get_all(ACCEPT).iter().filter_map(|it| it.to_str().ok());
        if accepts.into_iter().any(|accept| accept.contains("application/openmetrics-text")) {
            Reply::Shown(Media::OpenMetrics, metrics.text().into())
        } else {
            Reply::Shown(Media::PlainMetrics, metrics.plain_text().into())
        }
    }
}

fn nar_request(request: &Request<()>) -> nar::Request<'_> {
    let (method, version) = (request.method(), request.version());
    nar::Request { method, version, headers: request.headers() }
}

/// What people and their tools read of the cache itself.
const fn is_for_people(route: &Route<'_>) -> bool {
    matches!(route, Route::Page | Route::Status | Route::Metrics | Route::Healthz)
}

/// The path whose NAR is asked for by its canonical name.
const fn key_of_nar(route: &Route<'_>) -> Option<StorePathHash> {
    match route {
        Route::Object(Object::Nar(name)) => Some(name.key),
        Route::Object(_)
        | Route::Pushed(_)
        | Route::Put(_)
        | Route::Page
        | Route::Status
        | Route::Metrics
        | Route::Healthz
        | Route::PublicKey
        | Route::CaPem
        | Route::Write
        | Route::Unknown => None,
    }
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
