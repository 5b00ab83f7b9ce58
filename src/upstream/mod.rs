//! Other caches, as a client sees them: http(s), S3, a folder. Knows no disk of ours.

mod config;
mod error;
mod health;
mod clock;
mod location;
mod encoding;
mod xml;
mod secrets;
mod credentials;
mod client;
mod answer;
mod body;
mod http;
mod s3_url;
mod s3;
mod folder;
mod open;
mod waiting;
mod put;
mod bucket;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Response;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::limit::Limit;
use crate::metrics::{Metrics, UpstreamLabel};
use crate::nix::narinfo::NARINFO_LEN_MAX;
use crate::nix::{CacheInfo, StoreDir, StorePathHash, TrustedKeys};
use crate::units::ByteSize;

pub use body::NarBody;
pub use bucket::{BucketAdmin, Step, StepError, user_policy};
pub use clock::Proof;
pub use config::{Config, ConfigError};
pub use credentials::CredentialsError;
pub(crate) use encoding::Encoding;
pub use encoding::EncodingError;
pub use error::{Asked, Error};
pub use health::{Health, HealthState};
pub use put::{Object, ObjectHead, Setback, Source};

use folder::Folder;
use health::Breaker;
use http::Http;
use put::Puts;
use s3::S3;
use waiting::Waiting;

/// How long we wait.
const PATIENCE: Patience = Patience {
    slow: Duration::from_secs(2),
    answer: Duration::from_secs(15),
    given_up: Duration::from_secs(5),
};

/// Small questions in flight: a house's clients ask 25 at a time each.
const SMALL_QUESTIONS_MAX: usize = 64;

/// Small questions that took too long and run on, for the next who asks: a silent upstream must not
/// hold the places of those that may be answered.
const LATE_QUESTIONS_MAX: usize = 64;

/// NARs in flight: more than the ingest's memory allows at once.
const NARS_MAX: usize = 64;

/// Lowest bound on what is fetched from an upstream: with all those in flight, each NAR still gets
/// something every few seconds, and is not taken for dead.
const LIMIT_MIN: ByteSize = ByteSize(16 << 10);

/// Longest small document: the `.ls` of the biggest packages has some MiB, logs have fewer.
pub const DOCUMENT_LEN_MAX: usize = 16 * 1024 * 1024;

/// Longest nix-cache-info: three lines.
const CACHE_INFO_LEN_MAX: usize = 64 * 1024;

/// Where to go on in a NAR file.
#[derive(Debug, Clone)]
pub struct Resume {
    /// Bytes that came already.
    pub offset: u64,
    /// The strong `ETag` of what came; the answer must be the same object.
    pub etag: Option<String>,
}

/// One other cache. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    inner: Arc<Inner>,
}

/// The kinds of cache.
enum Kind {
    Http(Box<Http>),
    S3(Box<S3>),
    Folder(Folder),
}

/// The waits of an upstream.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// A small question without an answer after this time counts as trouble at once, so that the
    /// breaker knows a silent upstream before many clients have waited for it. An answer that comes
    /// later is a success.
    slow: Duration,
    /// A small question is answered whole within this time, and the head of a NAR comes: what
    /// takes longer is no use to a build any more.
    answer: Duration,
    /// A question that its asker gave up after this long without an answer counts as trouble;
    /// one given up sooner says nothing about the upstream.
    given_up: Duration,
}

/// Questions of one kind in flight.
struct Places {
    all: Arc<Semaphore>,
    /// Where a question goes on that is slow; `None` where being slow is no trouble.
    late: Option<Arc<Semaphore>>,
}

/// What all clones share.
struct Inner {
    url: Arc<str>,
    keys: Option<TrustedKeys>,
    store_dir: StoreDir,
    kind: Kind,
    is_target: bool,
    patience: Patience,
    started: Instant,
    breaker: Mutex<Breaker>,
    /// Its nix-cache-info names another store directory.
    is_foreign: AtomicBool,
    small: Places,
    nars: Places,
    /// Of what NARs bring in.
    limit: Limit,
    puts: Puts,
    metrics: Metrics,
    label: UpstreamLabel,
}

impl Upstream {
    /// Checks the configuration and reads the files that it names; asks nobody.
    pub fn new(
        config: &Config,
        store_dir: &StoreDir,
        metrics: &Metrics,
    ) -> Result<Self, ConfigError> {
        let url: Arc<str> = config::redact(&config.url).into();
        if config.limit.is_some_and(|limit| limit < LIMIT_MIN) {
            return Err(ConfigError::Limit { url: url.to_string(), min: LIMIT_MIN });
        }
        let label = UpstreamLabel { upstream: url.to_string() };
        metrics.upstream_up.get_or_create(&label).set(1);
        let inner = Inner {
            keys: open::trusted_keys(config)?,
            kind: open::kind(config)?,
            is_target: config.push,
            patience: PATIENCE,
            url,
            store_dir: store_dir.clone(),
            started: Instant::now(),
            breaker: Mutex::new(Breaker::new(Duration::ZERO)),
            is_foreign: AtomicBool::new(false),
            small: Places {
                all: Arc::new(Semaphore::new(SMALL_QUESTIONS_MAX)),
                late: Some(Arc::new(Semaphore::new(LATE_QUESTIONS_MAX))),
            },
            nars: Places { all: Arc::new(Semaphore::new(NARS_MAX)), late: None },
            limit: Limit::new(config.limit.map(|limit| limit.0)),
            puts: Puts::new(),
            metrics: metrics.clone(),
            label,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether it is this very one, of one configuration.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Its URL without user data: for people, for records.
    pub fn url(&self) -> &Arc<str> {
        &self.inner.url
    }

    /// The keys whose signatures count; `None` when it is `unsigned = true`.
    pub fn trusted_keys(&self) -> Option<&TrustedKeys> {
        self.inner.keys.as_ref()
    }

    /// How it is.
    pub fn health(&self) -> Health {
        let health = self.inner.breaker().health(self.inner.started.elapsed());
        if self.is_foreign() {
            return Health { state: HealthState::Refusing, ..health };
        }
        health
    }

    /// What it has proven about the time; nothing unless it was asked over TLS.
    pub fn proof(&self) -> Option<Proof> {
        let transport = match &self.inner.kind {
            Kind::Http(http) => http.transport(),
            Kind::S3(s3) => s3.transport(),
            Kind::Folder(_) => return None,
        };
        transport.proof(Instant::now())
    }

    /// Whether it is not to be asked now: the breaker would keep a question back, or it is for
    /// another store directory.
    pub fn is_resting(&self) -> bool {
        self.is_foreign() || self.inner.breaker().is_resting(self.inner.started.elapsed())
    }

    fn is_foreign(&self) -> bool {
        self.inner.is_foreign.load(Ordering::Relaxed)
    }

    /// Its `nix-cache-info`; a `StoreDir` that is not ours is an error, and then the upstream rests
    /// until it says ours.
    pub async fn cache_info(&self) -> Result<CacheInfo, Error> {
        let inner = &self.inner;
        let upstream = || Arc::clone(&inner.url);
        let asked = inner.asked("nix-cache-info");
        let question = async {
            let text = inner.small("nix-cache-info", CACHE_INFO_LEN_MAX, &asked).await?;
            let text = text.ok_or_else(|| Error::NotACache { upstream: upstream() })?;
            let parsed = CacheInfo::parse(&text);
            let info =
                parsed.map_err(|source| Error::CacheInfo { upstream: upstream(), source })?;
            if info.store_dir == inner.store_dir {
                return Ok(info);
            }
            Err(Error::StoreDir {
                upstream: upstream(),
                theirs: info.store_dir.as_str().into(),
                ours: inner.store_dir.as_str().into(),
            })
        };
        let answer = inner.ask(&inner.small, &asked, question).await.map(|(info, _)| info);
        match &answer {
            Ok(_) => inner.is_foreign.store(false, Ordering::Relaxed),
            Err(Error::StoreDir { .. }) => inner.is_foreign.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
        answer
    }

    /// The narinfo's text (at most `NARINFO_LEN_MAX` bytes, any Content-Encoding undone), `None`
    /// when the upstream has it not. The caller bounds the time.
    pub async fn narinfo(&self, key: StorePathHash) -> Result<Option<Bytes>, Error> {
        self.question(&format!("{key}.narinfo"), NARINFO_LEN_MAX).await
    }

    /// The NAR file at a narinfo's URL (relative, absolute, with query), as it is stored there.
    pub async fn nar(&self, url: &str, resume: Option<Resume>) -> Result<Option<NarBody>, Error> {
        // A query may be a secret of the upstream's, as user data are.
        let plain = url.split_once(['?', '#']).map_or(url, |(path, _)| path);
        let asked = self.inner.asked(&config::redact(plain));
        let inner = &self.inner;
        let resume = resume.as_ref();
        let (head, permit) = inner.ask(&inner.nars, &asked, inner.nar(url, resume, &asked)).await?;
        let held = (Arc::clone(inner), permit);
        let body = match head {
            NarHead::Absent => return Ok(None),
            NarHead::Http(response) => NarBody::of_response(*response, resume, asked, held),
            NarHead::File(file, len) => NarBody::of_file(file, len, resume, asked, held),
        };
        body.map(Some)
    }

    /// A small document (`<hash>.ls`, `log/...`), any Content-Encoding undone; [`Error::TooLong`] beyond
    /// `len_max` bytes.
    pub async fn document(&self, path: &str, len_max: usize) -> Result<Option<Bytes>, Error> {
        self.question(path, len_max.min(DOCUMENT_LEN_MAX)).await
    }

    async fn question(&self, name: &str, len_max: usize) -> Result<Option<Bytes>, Error> {
        let inner = &self.inner;
        let asked = inner.asked(name);
        let question = inner.small(name, len_max, &asked);
        inner.ask(&inner.small, &asked, question).await.map(|(text, _)| text)
    }
}

/// What comes before a NAR's bytes.
enum NarHead {
    Absent,
    Http(Box<Response<Incoming>>),
    File(std::fs::File, u64),
}

impl Inner {
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Each method leaves it whole.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self, object: &str) -> Asked {
        Asked { upstream: Arc::clone(&self.url), object: object.into() }
    }

    fn count_fetched(&self, len: usize) {
        self.metrics.fetched_bytes.inc_by(u64::try_from(len).unwrap_or(u64::MAX));
    }

    /// A small object, whole.
    async fn small(
        &self,
        name: &str,
        len_max: usize,
        asked: &Asked,
    ) -> Result<Option<Bytes>, Error> {
        let response = match &self.kind {
            Kind::Folder(folder) => return folder.read(name, len_max, asked).await,
            Kind::Http(http) => http.object(name, asked).await?,
            Kind::S3(s3) => s3.object(name, asked).await?,
        };
        let Some(response) = response else { return Ok(None) };
        body::read_small(response, len_max, asked, self).await.map(Some)
    }

    async fn nar(
        &self,
        url: &str,
        resume: Option<&Resume>,
        asked: &Asked,
    ) -> Result<NarHead, Error> {
        let response = match &self.kind {
            Kind::Folder(folder) => {
                let found = folder.open_nar(url, asked).await?;
                return Ok(found.map_or(NarHead::Absent, |(file, len)| NarHead::File(file, len)));
            }
            Kind::Http(http) => http.nar(url, resume, asked).await?,
            Kind::S3(s3) => s3.nar(url, resume, asked).await?,
        };
        Ok(response.map_or(NarHead::Absent, |response| NarHead::Http(Box::new(response))))
    }

    /// Asks within bounds of number and time, and remembers how it went.
    async fn ask<T>(
        &self,
        places: &Places,
        asked: &Asked,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<(T, OwnedSemaphorePermit), Error> {
        let busy = || Error::Busy { upstream: Arc::clone(&self.url) };
        let permit = timeout(self.patience.answer, Arc::clone(&places.all).acquire_owned()).await;
        let mut permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
        if !self.breaker().admit(self.started.elapsed()) {
            return Err(Error::Resting { upstream: Arc::clone(&self.url) });
        }
        let since = Instant::now();
        let mut waiting = Waiting { inner: self, asked, since, answered: false, counted: false };
        let mut question = pin!(question);
        let Patience { slow, answer: in_all, .. } = self.patience;
        let at_first = if places.late.is_some() { slow.min(in_all) } else { in_all };
        let mut answer = timeout(at_first, &mut question).await;
        if answer.is_err()
            && let Some(late) = &places.late
        {
            waiting.count();
            if let Ok(place) = Arc::clone(late).try_acquire_owned() {
                permit = place;
                answer = timeout(in_all.saturating_sub(at_first), question).await;
            }
        }
        waiting.answered = true;
        let took = waiting.since.elapsed();
        let seconds = self.metrics.upstream_request_seconds.get_or_create_owned(&self.label);
        seconds.observe(took.as_secs_f64());
        let answer = answer.unwrap_or_else(|_| Err(waiting.silent()));
        match &answer {
            Ok(_) => {
                self.breaker().took(took);
                self.record_success();
            }
            // A question is one trouble, however many ways it goes wrong.
            Err(error) if waiting.counted && error.verdict() == Some(HealthState::Down) => {}
            Err(error) => self.record_trouble(error),
        }
        answer.map(|answer| (answer, permit))
    }

    fn record_success(&self) {
        self.breaker().succeeded(self.started.elapsed());
        self.metrics.upstream_up.get_or_create(&self.label).set(1);
    }

    fn record_trouble(&self, error: &Error) {
        let state = match error.verdict() {
            None => return,
            Some(HealthState::Up) => return self.record_success(),
            Some(state @ (HealthState::Down | HealthState::Refusing)) => state,
        };
        // No random number is no reason to fail: then all wait the longest.
        let chance = getrandom::u32().map_or(1.0, |n| f64::from(n) / f64::from(u32::MAX));
        let now = self.started.elapsed();
        let mut breaker = self.breaker();
        breaker.failed(now, state, error.chain(), chance);
        let is_up = breaker.health(now).state == HealthState::Up;
        drop(breaker);
        self.metrics.upstream_up.get_or_create(&self.label).set(i64::from(is_up));
    }
}
