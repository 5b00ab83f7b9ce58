//! Every fault of an upstream, for narinfos and for NARs, seen by a plain HTTP client. The client
//! gets 200 or 404, in time; a wrong NAR never ends cleanly; and once the upstream is well again,
//! so is the path.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

mod table;
#[path = "../made/mod.rs"]
mod made;
#[path = "../world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use made::{Made, MadeCache};
use snowberry::nix::{NarInfo, StoreDir};
use table::{Case, NAR_CASES, NARINFO_CASES, Trouble};
use tokio::task::JoinSet;
use world::{Answer, NARINFO_LIMIT, Scripted, Settings, Snowberry, until};

/// A NAR body begins or is refused within this, whatever the upstream does: 30 s, and what a loaded
/// machine adds.
const NAR_HEAD_LIMIT: Duration = Duration::from_secs(32);

/// One upstream, one path in it, one snowberry in front of it.
struct Lab {
    case: &'static Case,
    made: Made,
    cache: MadeCache,
    upstream: Scripted,
    snowberry: Snowberry,
}

impl Lab {
    async fn start(case: &'static Case) -> Self {
        let made = Made::noise(&name_of(case), case.nar_len).packed(case.compression);
        let cache = MadeCache::below(case.bucket(), [&made]);
        let upstream = Scripted::serve(cache.root()).await;
        let url = case.upstream_url(&upstream);
        let snowberry = Settings::new().upstream(&url, &made::public_key()).start().await;
        Self { case, made, cache, upstream, snowberry }
    }

    fn begin(&self, part: &str) {
        match self.case.trouble {
            Trouble::Refused => self.upstream.refuse(),
            Trouble::Fault(fault) => self.upstream.fault(part, fault),
            Trouble::Gone => {
                self.cache.remove_nar(&self.made);
            }
        }
    }

    fn end(&self) {
        self.upstream.heal();
        self.cache.add(&self.made);
    }

    /// The narinfo, held to what every narinfo must be, whatever the upstream does.
    async fn narinfo(&self) -> Option<NarInfo> {
        let answer = self.snowberry.narinfo(&self.made.store_path_hash().to_string()).await;
        let name = self.case.name;
        assert!(answer.all_after <= NARINFO_LIMIT, "{name}: narinfo after {:?}", answer.all_after);
        assert!(answer.whole, "{name}: a narinfo that was cut");
        match answer.status {
            404 => None,
            200 => {
                let narinfo = NarInfo::parse(&answer.body, &StoreDir::default()).unwrap();
                let fingerprint = narinfo.fingerprint(&StoreDir::default());
                let right = self.made.narinfo().fingerprint(&StoreDir::default());
                assert_eq!(fingerprint, right, "{name}: another narinfo");
                let signed = narinfo.signatures.iter();
                let key = made::key().public();
                assert!(signed.clone().any(|signature| key.verifies(&fingerprint, signature)));
                Some(narinfo)
            }
            other => panic!("{name}: narinfo {other}"),
        }
    }

    /// Asks for the NAR. What ends cleanly with 200 must be right; what is not 200 must be 404.
    async fn nar(&self) -> Answer {
        let answer = self.snowberry.client().get(&self.made.nar_url()).await;
        let name = self.case.name;
        assert!(matches!(answer.status, 200 | 404), "{name}: NAR {}", answer.status);
        assert!(answer.head_after <= NAR_HEAD_LIMIT, "{name}: NAR after {:?}", answer.head_after);
        if answer.status == 200 && answer.whole {
            assert!(self.made.is_in(&answer.body), "{name}: a wrong NAR ended cleanly");
        }
        answer
    }

    /// Asks as a client does, narinfo and then NAR, until both are there.
    async fn expect_well(&self) {
        let healed = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        loop {
            ticks.tick().await;
            if self.narinfo().await.is_some() {
                let answer = self.nar().await;
                if answer.status == 200 && answer.whole {
                    return;
                }
            }
            let (name, limit) = (self.case.name, self.case.well_after);
            assert!(healed.elapsed() < limit, "{name}: not well {limit:?} after the upstream");
        }
    }
}

/// Two cases with one name are two paths all the same.
fn name_of(case: &Case) -> String {
    let plain: String =
        case.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{plain}-{}", case.bucket())
}

async fn narinfo_goes_wrong(lab: Lab) {
    lab.begin(".narinfo");
    for _ in 0..2 {
        assert_eq!(lab.narinfo().await, None, "{}: whose narinfo is that?", lab.case.name);
    }
    lab.end();
    lab.expect_well().await;
}

async fn nar_goes_wrong(lab: Lab) {
    let name = lab.case.name;
    assert!(lab.narinfo().await.is_some(), "{name}: the narinfo is well and was not served");
    lab.begin("/nar/");
    if lab.case.continues {
        let asked = async {
            let what = format!("{name}: the question for the NAR");
            until(&what, Duration::from_secs(5), async || {
                (lab.upstream.asked("/nar/") > 0).then_some(())
            })
            .await;
            lab.upstream.heal();
        };
        let (answer, ()) = tokio::join!(lab.nar(), asked);
        assert!(answer.whole && answer.status == 200, "{name}: not continued elsewhere");
        assert_eq!(lab.upstream.ranges().len(), 1, "{name}: {:?}", lab.upstream.ranges());
        return;
    }
    let answer = lab.nar().await;
    let right = answer.status == 200 && answer.whole;
    assert!(!right, "{name}: the right NAR out of nowhere");
    lab.narinfo().await;
    lab.end();
    lab.expect_well().await;
}

/// Runs all cases at once, each with its own upstream and its own snowberry, and tells every one
/// that failed.
async fn check<R: Future<Output = ()> + Send + 'static>(
    cases: &'static [Case],
    run: impl Fn(Lab) -> R,
) {
    let mut labs = Vec::new();
    for case in cases {
        labs.push(Lab::start(case).await);
    }
    let mut running = JoinSet::new();
    let mut names = std::collections::HashMap::new();
    for lab in labs {
        let name = (lab.case.name, lab.case.bucket());
        names.insert(running.spawn(run(lab)).id(), name);
    }
    let mut failed = Vec::new();
    while let Some(ended) = running.join_next_with_id().await {
        if let Err(error) = ended {
            failed.push(names.get(&error.id()).copied());
        }
    }
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), cases.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narinfo_that_cannot_be_had_is_404_in_time_and_comes_when_the_upstream_is_well() {
    check(NARINFO_CASES, narinfo_goes_wrong).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nar_that_goes_wrong_never_ends_cleanly_and_comes_when_the_upstream_is_well() {
    check(NAR_CASES, nar_goes_wrong).await;
}
