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

/// A year: what is said to be older was not kept by any cache that means well.
const AGE_MAX_S: u64 = 366 * 24 * 3600;

/// What the time is by one upstream, in seconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proof {
    /// By its `Date`.
    pub date_s: Option<u64>,
    /// At least, by its certificate.
    pub least_s: Option<u64>,
}

impl Proof {
    /// By how many seconds a clock that says `now_s` is behind, negative when it is ahead; `None`
    /// where nothing is proven. Of several dates the earliest counts, so that one that is wrong by
    /// years takes nobody along.
    pub fn behind_s(proofs: impl IntoIterator<Item = Self>, now_s: u64) -> Option<i64> {
        let now_s = i64::try_from(now_s).ok()?;
        let behind = |time_s: u64| i64::try_from(time_s).ok().map(|time_s| time_s - now_s);
        let mut dates: Option<i64> = None;
        let mut least: Option<i64> = None;
        for proof in proofs {
            if let Some(date) = proof.date_s.and_then(behind) {
                dates = Some(dates.map_or(date, |known| known.min(date)));
            }
            // A clock beyond it is not wrong by that.
            let bound = proof.least_s.and_then(behind).filter(|bound| *bound > 0);
            least = least.max(bound);
        }
        dates.max(least)
    }
}

/// What one upstream has proven. Each is the latest that it said, with the time that went by since.
#[derive(Debug, Default)]
pub(super) struct Clock {
    held: Mutex<(Option<Told>, Option<Told>)>,
}

/// It was this time then.
#[derive(Debug, Clone, Copy)]
struct Told {
    time_s: u64,
    at: Instant,
}

impl Told {
    fn now_s(self, now: Instant) -> u64 {
        self.time_s.saturating_add(now.saturating_duration_since(self.at).as_secs())
    }
}

impl Clock {
    fn held(&self) -> MutexGuard<'_, (Option<Told>, Option<Told>)> {
        // Each change leaves it whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The head of an answer came over TLS. Caches on the way leave the date of an answer that they
    /// kept, and say its age.
    pub(super) fn answered(&self, headers: &HeaderMap, now: Instant) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let date = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        let Some(date) = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok()) else { return };
        let age_s = text(AGE).and_then(|age| age.trim().parse::<u64>().ok()).unwrap_or(0);
        let time_s = date.as_secs().saturating_add(age_s.min(AGE_MAX_S));
        later(&mut self.held().0, Told { time_s, at: now });
    }

    /// A certificate that is right but for its time begins then.
    fn begins(&self, time_s: u64, now: Instant) {
        later(&mut self.held().1, Told { time_s, at: now });
    }

    /// What it is now.
    pub(super) fn proof(&self, now: Instant) -> Proof {
        let (date, least) = *self.held();
        Proof {
            date_s: date.map(|told| told.now_s(now)),
            least_s: least.map(|told| told.now_s(now)),
        }
    }
}

/// An answer that a cache kept without saying so is no step back.
fn later(held: &mut Option<Told>, told: Told) {
    if held.is_none_or(|held| held.now_s(told.at) <= told.time_s) {
        *held = Some(told);
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
        if let Err(error) = &verified
            && let Some(begins_s) = beginning(error, verified_at)
        {
            self.clock.begins(begins_s, Instant::now());
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

    #[test]
    fn a_date_goes_on_with_the_time_that_went_by() {
        let (clock, now) = (Clock::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        clock.answered(&head(&[("date", "nonsense")]), now);
        clock.answered(&head(&[]), now);
        assert_eq!(clock.proof(now), Proof::default());
        clock.answered(&head(&[("date", "Sat, 21 Nov 2026 13:00:00 GMT")]), now);
        let at = |seconds| clock.proof(after(seconds)).date_s;
        assert_eq!(at(0), Some(1_795_266_000));
        assert_eq!(at(90), Some(1_795_266_090));
        // One that was kept somewhere: with its age it says the same, without it less.
        let kept = [("date", "Sat, 21 Nov 2026 12:00:00 GMT"), ("age", "3700")];
        clock.answered(&head(&kept[..1]), after(100));
        assert_eq!(at(100), Some(1_795_266_100));
        clock.answered(&head(&kept), after(100));
        assert_eq!(at(100), Some(1_795_266_100));
        clock.answered(&head(&[("date", "Sat, 21 Nov 2026 13:05:00 GMT")]), after(100));
        assert_eq!(at(101), Some(1_795_266_301));
    }

    #[test]
    fn the_earliest_date_counts_and_no_less_than_certificates_prove() {
        let date = |date_s| Proof { date_s: Some(date_s), least_s: None };
        let least = |least_s| Proof { date_s: None, least_s: Some(least_s) };
        let check = |proofs: &[Proof], behind_s: Option<i64>| {
            assert_eq!(Proof::behind_s(proofs.iter().copied(), 1000), behind_s, "{proofs:?}");
        };
        check(&[], None);
        check(&[Proof::default()], None);
        check(&[date(1500)], Some(500));
        check(&[date(400)], Some(-600));
        check(&[date(9_000_000), date(1500)], Some(500));
        check(&[date(1500), least(1700)], Some(700));
        check(&[date(1500), least(1200)], Some(500));
        check(&[least(1700), least(1800)], Some(800));
        // The clock is beyond them: that proves nothing.
        check(&[least(900)], None);
        check(&[date(400), least(900)], Some(-600));
        check(&[date(u64::MAX)], None);
    }
}
