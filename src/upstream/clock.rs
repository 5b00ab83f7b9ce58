//! What an upstream proves about the time: the `Date` of what it answers over TLS, and the beginning
//! of its certificate where that is still to come by this machine's clock. Nothing here sets a clock.
//!
//! TLS needs a clock that is nearly right, so one that is months back hears no `Date` at all. But a
//! certificate that an authority signed, and that is right for this host in all but its time, shows
//! that the time is not before its beginning, whoever hands it over. A clock that is set to that
//! beginning lets the next question through, whose answer then brings the `Date`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::{AGE, DATE};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Certificates of one chain that may each begin later than the one before: webpki takes so many.
const CHAIN_LEN_MAX: usize = 6;

/// A clock that was set to a beginning is seconds short of it, as long as reading and setting took.
/// No other beginning waits for that: a minute passes by itself.
const BEGINS_OFF_MAX_S: i64 = 60;

/// What the time is by one upstream, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It is that, by the `Date` of an answer.
    Is(u64),
    /// It is that or later, by the `Date` of an answer that a cache on the way kept.
    AtLeast(u64),
    /// It is that or later, as its certificate begins then. No answer was heard.
    Begins(u64),
}

impl Proof {
    /// By how many seconds a clock that says `now_s` is behind, negative when it is ahead; `None`
    /// where nothing is proven. Of several dates the earliest counts, so that one that is wrong
    /// takes nobody along, and so it is with certificates. Those count while there is no date: an
    /// answer over TLS means that the clock is right enough for the certificate of who gave it.
    pub fn behind_s(proofs: impl IntoIterator<Item = Self>, now_s: u64) -> Option<i64> {
        let now_s = i64::try_from(now_s).ok()?;
        let behind = |time_s: u64| i64::try_from(time_s).ok().map(|time_s| time_s - now_s);
        let mut dates: Option<i64> = None;
        let mut begins: Option<i64> = None;
        for proof in proofs {
            let (earliest, behind_s) = match proof {
                Self::Is(time_s) => (&mut dates, behind(time_s)),
                // A clock beyond it is not wrong by that.
                Self::AtLeast(time_s) => (&mut dates, behind(time_s).map(|it| it.max(0))),
                Self::Begins(time_s) => {
                    (&mut begins, behind(time_s).filter(|it| *it > BEGINS_OFF_MAX_S))
                }
            };
            *earliest = earliest.iter().copied().chain(behind_s).min();
        }
        dates.or(begins)
    }

    fn later_by(self, passed_s: u64) -> Self {
        match self {
            Self::Is(time_s) => Self::Is(time_s.saturating_add(passed_s)),
            Self::AtLeast(time_s) => Self::AtLeast(time_s.saturating_add(passed_s)),
            Self::Begins(time_s) => Self::Begins(time_s.saturating_add(passed_s)),
        }
    }
}

/// What one upstream has proven, with the time that went by since.
#[derive(Debug, Default)]
pub(super) struct Clock {
    held: Mutex<Option<Told>>,
}

/// It was this time then.
#[derive(Debug, Clone, Copy)]
struct Told {
    proof: Proof,
    at: Instant,
}

impl Told {
    fn proof(self, now: Instant) -> Proof {
        self.proof.later_by(now.saturating_duration_since(self.at).as_secs())
    }
}

impl Clock {
    fn held(&self) -> MutexGuard<'_, Option<Told>> {
        // Each change leaves it whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The head of an answer came over TLS.
    ///
    /// Most caches on the way leave the date of an answer that they kept, and say its age; Fastly
    /// says its age as well, but the time now as its date. So the age is added to nothing: it only
    /// tells that the date may be old. Such a date may raise what is held and no more; any other
    /// is the upstream's last word, also where that is a step back.
    pub(super) fn answered(&self, headers: &HeaderMap, now: Instant) {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        let Some(date) = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok()) else { return };
        let date_s = date.as_secs();
        let was_kept = headers.get(AGE).is_some_and(|age| age != "0");
        let mut held = self.held();
        let proof = match held.map(|told| told.proof(now)) {
            Some(Proof::Is(known_s)) if was_kept => Proof::Is(known_s.max(date_s)),
            Some(Proof::AtLeast(known_s)) if was_kept => Proof::AtLeast(known_s.max(date_s)),
            None | Some(Proof::Begins(_)) if was_kept => Proof::AtLeast(date_s),
            None | Some(Proof::Is(_) | Proof::AtLeast(_) | Proof::Begins(_)) => Proof::Is(date_s),
        };
        *held = Some(Told { proof, at: now });
    }

    /// A certificate that is right but for its time begins then: that is worth less than a date.
    fn begins(&self, time_s: u64, now: Instant) {
        let mut held = self.held();
        if held.is_none_or(|told| matches!(told.proof, Proof::Begins(_))) {
            *held = Some(Told { proof: Proof::Begins(time_s), at: now });
        }
    }

    /// A certificate is right, so one that was not yet is no longer what is offered.
    fn has_begun(&self) {
        self.held().take_if(|told| matches!(told.proof, Proof::Begins(_)));
    }

    /// What it is now.
    pub(super) fn proof(&self, now: Instant) -> Option<Proof> {
        self.held().map(|told| told.proof(now))
    }
}

/// rustls' own verifier, with its verdicts, which remembers what certificates of the future prove.
#[derive(Debug)]
pub(super) struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    clock: Arc<Clock>,
}

impl Verifier {
    pub(super) fn new(inner: Arc<WebPkiServerVerifier>, clock: Arc<Clock>) -> Self {
        Self { inner, clock }
    }
}

/// Since when a certificate is right that was refused because that is still to come.
fn beginning(
    error: &rustls::Error,
    verified_at: impl Fn(UnixTime) -> Result<ServerCertVerified, rustls::Error>,
) -> Option<u64> {
    let mut begins = not_before(error)?;
    for _ in 0..CHAIN_LEN_MAX {
        match verified_at(begins) {
            Ok(_) => return Some(begins.as_secs()),
            Err(error) => begins = not_before(&error).filter(|later| *later > begins)?,
        }
    }
    None
}

fn not_before(error: &rustls::Error) -> Option<UnixTime> {
    let rustls::Error::InvalidCertificate(why) = error else { return None };
    let CertificateError::NotValidYetContext { not_before, .. } = why else { return None };
    Some(*not_before)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified_at = |at| {
            let inner = &self.inner;
            inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at)
        };
        let verified = verified_at(now);
        match &verified {
            Ok(_) => self.clock.has_begun(),
            Err(error) => {
                if let Some(begins_s) = beginning(error, verified_at) {
                    self.clock.begins(begins_s, Instant::now());
                }
            }
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn head(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (hyper::header::HeaderName::from_static(name), value.parse().unwrap())
        };
        lines.iter().map(line).collect()
    }

    /// One o'clock, and an hour before.
    const ONE_S: u64 = 1_795_266_000;
    const ONE: (&str, &str) = ("date", "Sat, 21 Nov 2026 13:00:00 GMT");
    const NOON: (&str, &str) = ("date", "Sat, 21 Nov 2026 12:00:00 GMT");

    /// By how much a clock is behind that says one o'clock.
    fn behind(clock: &Clock, now: Instant) -> Option<i64> {
        Proof::behind_s(clock.proof(now), ONE_S)
    }

    #[test]
    fn a_date_goes_on_with_the_time_that_went_by() {
        let (clock, now) = (Clock::default(), Instant::now());
        clock.answered(&head(&[("date", "nonsense")]), now);
        clock.answered(&head(&[]), now);
        assert_eq!(clock.proof(now), None);
        clock.answered(&head(&[ONE]), now);
        assert_eq!(clock.proof(now), Some(Proof::Is(ONE_S)));
        assert_eq!(behind(&clock, now + Duration::from_secs(90)), Some(90));
    }

    #[test]
    fn an_age_is_never_added_to_a_date() {
        // Fastly says the time now, and for how long it has had the answer.
        let (clock, now) = (Clock::default(), Instant::now());
        clock.answered(&head(&[ONE, ("age", "70000")]), now);
        assert_eq!(behind(&clock, now), Some(0));
        clock.answered(&head(&[ONE, ("age", "0")]), now);
        assert_eq!(clock.proof(now), Some(Proof::Is(ONE_S)));
    }

    #[test]
    fn an_answer_that_was_kept_only_raises() {
        let (clock, now) = (Clock::default(), Instant::now());
        let age = ("age", "3600");
        clock.answered(&head(&[NOON, age]), now);
        assert_eq!(clock.proof(now), Some(Proof::AtLeast(ONE_S - 3600)));
        // The clock may be right, so it is not ahead.
        assert_eq!(behind(&clock, now), Some(0));
        clock.answered(&head(&[ONE, age]), now);
        clock.answered(&head(&[NOON, age]), now);
        assert_eq!(clock.proof(now), Some(Proof::AtLeast(ONE_S)));
        clock.answered(&head(&[NOON]), now);
        assert_eq!(behind(&clock, now), Some(-3600));
        clock.answered(&head(&[ONE, age]), now);
        clock.answered(&head(&[NOON, age]), now);
        assert_eq!(clock.proof(now), Some(Proof::Is(ONE_S)));
    }

    #[test]
    fn who_was_ahead_and_was_mended_is_believed() {
        let (clock, now) = (Clock::default(), Instant::now());
        clock.answered(&head(&[ONE]), now);
        clock.answered(&head(&[NOON]), now);
        assert_eq!(behind(&clock, now), Some(-3600));
    }

    #[test]
    fn a_certificate_that_is_right_proves_no_longer_what_one_of_the_future_did() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2500, 1, 1);
        params.not_after = rcgen::date_time_ymd(4000, 1, 1);
        let certificate = params.self_signed(&pair).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let clock = Arc::new(Clock::default());
        let verifier = Verifier::new(inner.build().unwrap(), Arc::clone(&clock));
        let verified_at = |time_s| {
            let (name, at) = (ServerName::try_from("a").unwrap(), Duration::from_secs(time_s));
            let at = UnixTime::since_unix_epoch(at);
            verifier.verify_server_cert(certificate.der(), &[], &name, &[], at)
        };
        verified_at(ONE_S).unwrap_err();
        assert!(behind(&clock, Instant::now()).is_some_and(|it| it > 0));
        verified_at(20_000_000_000).unwrap();
        assert_eq!(clock.proof(Instant::now()), None);
        // A date is worth more than either.
        clock.answered(&head(&[ONE]), Instant::now());
        verified_at(ONE_S).unwrap_err();
        verified_at(20_000_000_000).unwrap();
        assert!(matches!(clock.proof(Instant::now()), Some(Proof::Is(_))));
    }

    #[test]
    fn the_earliest_date_counts_and_certificates_only_without_one() {
        let check = |proofs: &[Proof], behind_s: Option<i64>| {
            assert_eq!(Proof::behind_s(proofs.iter().copied(), 1000), behind_s, "{proofs:?}");
        };
        let (is, at_least, begins) = (Proof::Is, Proof::AtLeast, Proof::Begins);
        check(&[], None);
        check(&[is(1500)], Some(500));
        check(&[is(400)], Some(-600));
        check(&[is(9_000_000), is(1500)], Some(500));
        check(&[is(u64::MAX)], None);
        check(&[at_least(1500)], Some(500));
        check(&[at_least(1500), is(1700)], Some(500));
        check(&[at_least(1500), is(1200)], Some(200));
        // The clock is beyond it: it is not ahead by that, and nobody takes it further.
        check(&[at_least(400)], Some(0));
        check(&[at_least(400), is(1500)], Some(0));
        check(&[at_least(400), is(900)], Some(-100));
        check(&[is(1500), begins(1700)], Some(500));
        check(&[is(1000), begins(9_000_000)], Some(0));
        check(&[at_least(400), begins(1700)], Some(0));
        check(&[begins(1700), begins(1800)], Some(700));
        // The clock was set to it, or is beyond it.
        check(&[begins(1060)], None);
        check(&[begins(900)], None);
        check(&[begins(1002), begins(1800)], Some(800));
    }
}
