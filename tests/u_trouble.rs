//! An upstream in every kind of trouble, asked by a plain HTTP client: narinfos are answered in
//! time, a wrong NAR never ends cleanly, and what is well again can be had again.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops and says what it saw"
)]

mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use world::closure::Narinfo;
use world::fault::{
    another_nar_in_zstd, empty, half, malformed, of_another_path, oversized, unsigned,
    with_a_wrong_byte, wrongly_signed,
};
use world::{Answer, Closure, Fault, NARINFO_LIMIT, Scripted, Settings, Snowberry};

/// How many troubles are tried at once on the two cores of a small machine.
const AT_ONCE: usize = 4;
/// "Within seconds" of promise 1, with what the breaker's back-off and a loaded machine add.
const RECOVERY_LIMIT: Duration = Duration::from_secs(20);
/// Absence that was said in so many words is believed for 60 s.
const ABSENCE_LIMIT: Duration = Duration::from_secs(80);
/// Bytes that failed their hash are not asked for again at that upstream for a minute.
const WRONG_HASH_LIMIT: Duration = Duration::from_secs(80);
/// A stall of 15 s, resumed once, and the slow start of 60 s below 1 KiB/s twice.
const NAR_LIMIT: Duration = Duration::from_secs(150);

/// One trouble: what it is called, what goes wrong, how soon it must be forgotten.
type Trouble = (&'static str, Option<Fault>, Duration);

/// What can happen to any answer; `None` refuses connections.
fn anywhere() -> Vec<Trouble> {
    let trouble = |name, fault| (name, Some(fault), RECOVERY_LIMIT);
    vec![
        ("refused", None, RECOVERY_LIMIT),
        trouble("closed", Fault::Closed),
        trouble("silent", Fault::Silent),
        trouble("500", Fault::Status(500)),
        trouble("502", Fault::Status(502)),
        trouble("503", Fault::Status(503)),
        trouble("429", Fault::Status(429)),
        trouble("401", Fault::Status(401)),
        trouble("202", Fault::Status(202)),
        trouble("403 SignatureDoesNotMatch", Fault::S3(403, "SignatureDoesNotMatch")),
        trouble("403 RequestTimeTooSkewed", Fault::S3(403, "RequestTimeTooSkewed")),
        trouble("redirect loop", Fault::RedirectLoop),
        trouble("HTML with 200", Fault::Html),
        trouble("nothing with 200", Fault::Altered(empty)),
        ("404", Some(Fault::Status(404)), ABSENCE_LIMIT),
        ("410", Some(Fault::Status(410)), ABSENCE_LIMIT),
        ("403 without a body", Some(Fault::Status(403)), ABSENCE_LIMIT),
        ("403 AccessDenied", Some(Fault::S3(403, "AccessDenied")), ABSENCE_LIMIT),
    ]
}

fn of_narinfos() -> Vec<Trouble> {
    let trouble = |name, fault| (name, Some(fault), RECOVERY_LIMIT);
    let mut troubles = anywhere();
    troubles.extend([
        trouble("malformed", Fault::Altered(malformed)),
        trouble("oversized", Fault::Altered(oversized)),
        trouble("of another path", Fault::Altered(of_another_path)),
        trouble("unsigned", Fault::Altered(unsigned)),
        trouble("wrongly signed", Fault::Altered(wrongly_signed)),
        trouble("cut", Fault::Cut(100)),
        trouble("stalled", Fault::Stalled(100)),
        trouble("dripping", Fault::Dripping(100)),
    ]);
    troubles
}

fn of_nars() -> Vec<Trouble> {
    let wrong = |name, alter| (name, Some(Fault::Altered(alter)), WRONG_HASH_LIMIT);
    let mut troubles = anywhere();
    troubles.extend([
        ("cut", Some(Fault::Cut(200_000)), RECOVERY_LIMIT),
        ("cut at once", Some(Fault::Cut(0)), RECOVERY_LIMIT),
        ("stalled", Some(Fault::Stalled(200_000)), RECOVERY_LIMIT),
        ("dripping", Some(Fault::Dripping(200_000)), RECOVERY_LIMIT),
        wrong("short", half),
        wrong("wrong bytes", with_a_wrong_byte),
        wrong("wrong compression", another_nar_in_zstd),
    ]);
    troubles
}

/// A snowberry behind one upstream that is still well.
struct Case {
    closure: Arc<Closure>,
    upstream: Scripted,
    snowberry: Snowberry,
}

impl Case {
    async fn start(closure: Arc<Closure>) -> Self {
        let upstream = Scripted::serve(closure.cache("xz")).await;
        let settings = Settings::new().upstream(&upstream.url(), &closure.public_key);
        let snowberry = settings.start().await;
        Self { closure, upstream, snowberry }
    }

    fn begin(&self, part: &str, fault: Option<Fault>) {
        match fault {
            Some(fault) => self.upstream.fault(part, fault),
            None => self.upstream.refuse(),
        }
    }

    async fn narinfo(&self, name: &str) -> Answer {
        self.snowberry.narinfo(self.closure.hash(name)).await
    }

    /// Whether the NAR came whole; its bytes are right then, or this panics.
    async fn nar(&self, url: &str, path: &str) -> Result<(), String> {
        let answer = self.snowberry.client().get(url).await;
        if answer.all_after > NAR_LIMIT {
            return Err(format!("the NAR took {:?}", answer.all_after));
        }
        if answer.status != 200 {
            assert_eq!(answer.status, 404, "{answer:?}");
            return Err("404".into());
        }
        if !answer.whole {
            return Err(format!("cut after {} bytes", answer.body.len()));
        }
        let unpacked = zstd::decode_all(&answer.body[..]);
        assert!(
            unpacked.is_ok_and(|nar| nar == self.closure.nar(path)),
            "a wrong NAR ended cleanly after {} bytes",
            answer.body.len()
        );
        Ok(())
    }
}

/// Runs a check for each trouble, some at a time, and reports all that failed.
async fn for_each<F, R>(troubles: Vec<Trouble>, check: F)
where
    F: Fn(Case, Trouble) -> R + Send + Sync + Copy + 'static,
    R: Future<Output = ()> + Send,
{
    let Some(closure) = Closure::get() else { return };
    let (closure, permits) = (Arc::new(closure), Arc::new(Semaphore::new(AT_ONCE)));
    let mut cases = JoinSet::new();
    for trouble in troubles {
        let (closure, permits) = (Arc::clone(&closure), Arc::clone(&permits));
        cases.spawn(async move {
            let _permit = permits.acquire().await.unwrap();
            let mut inner = JoinSet::new();
            inner.spawn(async move { check(Case::start(closure).await, trouble).await });
            (trouble.0, inner.join_next().await.unwrap().err())
        });
    }
    let mut failed = Vec::new();
    while let Some(case) = cases.join_next().await {
        if let (name, Some(error)) = case.unwrap() {
            let said = error.into_panic();
            let said = said.downcast_ref::<String>().cloned().unwrap_or_default();
            let said: String = said.chars().take(500).collect();
            failed.push(format!("{name}: {said}"));
        }
    }
    assert!(failed.is_empty(), "{} troubles:\n{}", failed.len(), failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn narinfos_in_trouble_are_answered_in_time_and_come_back() {
    for_each(of_narinfos(), narinfo_check).await;
}

async fn narinfo_check(case: Case, (name, fault, limit): Trouble) {
    case.begin(".narinfo", fault);
    // More than a breaker needs to open.
    for path in ["node-6", "node-13", "node-20", "node-27", "node-6", "node-34", "top"] {
        let answer = case.narinfo(path).await;
        assert_eq!(answer.status, 404, "{name}: {answer:?}");
        assert!(answer.all_after < NARINFO_LIMIT, "{name}: {answer:?}");
    }
    let info = case.snowberry.client().get("/nix-cache-info").await;
    assert_eq!(info.status, 200, "{name}");
    case.upstream.heal();
    let mut patience = Patience::new(name, limit);
    loop {
        patience.again().await;
        let answer = case.narinfo("node-6").await;
        assert!(answer.all_after < NARINFO_LIMIT, "{name}, healed: {answer:?}");
        if answer.status == 200 {
            break;
        }
    }
    println!("narinfo {name}: back after {:?}", patience.since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn nars_in_trouble_never_end_cleanly_and_come_back() {
    for_each(of_nars(), nar_check).await;
}

async fn nar_check(case: Case, (name, fault, limit): Trouble) {
    let path = case.closure.path("node-6").to_owned();
    let narinfo = Narinfo::parse(&case.narinfo("node-6").await.body);
    let url = format!("/{}", narinfo.field("URL"));
    case.begin("/nar/", fault);
    let mut outcome = case.nar(&url, &path).await;
    println!("NAR {name}: {outcome:?}");
    assert_ne!(case.upstream.asked("/nar/") + usize::from(fault.is_none()), 0, "{name}");
    // Whatever became of the NAR, narinfos are answered.
    let answer = case.narinfo("node-6").await;
    assert!(matches!(answer.status, 200 | 404), "{name}: {answer:?}");
    assert!(answer.all_after < NARINFO_LIMIT, "{name}: {answer:?}");
    case.upstream.heal();
    let mut patience = Patience::new(name, limit);
    while outcome.is_err() || case.narinfo("node-6").await.status != 200 {
        patience.again().await;
        outcome = case.nar(&url, &path).await;
    }
    println!("NAR {name}: back after {:?}", patience.since.elapsed());
}

/// Patience: a try every half second, as an impatient person makes them, and an end to it.
struct Patience {
    name: &'static str,
    limit: Duration,
    since: Instant,
    ticks: tokio::time::Interval,
}

impl Patience {
    fn new(name: &'static str, limit: Duration) -> Self {
        let ticks = tokio::time::interval(Duration::from_millis(500));
        Self { name, limit, since: Instant::now(), ticks }
    }

    async fn again(&mut self) {
        self.ticks.tick().await;
        assert!(self.since.elapsed() < self.limit, "{}: not back in {:?}", self.name, self.limit);
    }
}
