//! What the other upstreams say of a path: the same NAR, another one, nothing, or no answer.
//!
//! Asked with `/push/<hash>.narinfo` or at the latest when the narinfo is put, and once more by
//! the worker where nobody answered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::{Inner, Push};
use crate::nix::{NarHash, NarInfo, Signature, StorePathHash, TrustedKeys};
use crate::upstream::Upstream;

/// How long what all of them said is believed: from the first question of a copy to the narinfo of
/// its last path.
const HEARD_TTL: Duration = Duration::from_mins(10);

/// Paths of which it is remembered: a large closure.
const HEARD_MAX: usize = 16 * 1024;

/// Questions behind the answers at once: a client asks 25 at a time, an upstream takes 64.
const ASKED_MAX: usize = 64;

/// How long a question behind the answers may take.
const ASKED_WAIT: Duration = Duration::from_secs(5);

/// Signatures of one narinfo that are verified, at most: real ones have one to three by a trusted
/// name, and a Pi does some thousands a second.
const VERIFIED_MAX: usize = 8;

/// What the other upstreams say of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// One has the same NAR; its signatures that hold.
    Same(Vec<Signature>),
    /// One has the path with another NAR.
    Differs,
    /// All answered, none has it.
    Absent,
    /// Not all answered, and those that did have it not.
    Unknown,
}

/// A narinfo that an upstream has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// As the upstream has it.
    pub(super) narinfo: NarInfo,
    /// Its signatures that hold.
    pub(super) valid: Vec<Signature>,
    /// The upstream's URL without user data.
    pub(super) upstream: Arc<str>,
}

/// What upstreams said of one path, whatever its NAR is here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// The narinfos that count, in no order.
    pub(super) found: Vec<Found>,
    /// Whether one of them did not answer.
    pub(super) is_partial: bool,
}

impl Heard {
    /// A narinfo with this NAR.
    pub(super) fn same(&self, nar_hash: NarHash) -> Option<&Found> {
        self.found.iter().find(|found| found.narinfo.nar_hash == nar_hash)
    }

    /// What it means for this NAR.
    pub(super) fn of(&self, nar_hash: NarHash) -> Said {
        if self.same(nar_hash).is_some() {
            let same = self.found.iter().filter(|found| found.narinfo.nar_hash == nar_hash);
            let mut signatures: Vec<_> = same.flat_map(|found| found.valid.clone()).collect();
            signatures.sort_unstable();
            signatures.dedup();
            return Said::Same(signatures);
        }
        match (self.found.is_empty(), self.is_partial) {
            (false, _) => Said::Differs,
            (true, false) => Said::Absent,
            (true, true) => Said::Unknown,
        }
    }
}

/// What is remembered of them.
pub(super) struct Others {
    heard: Cache<StorePathHash, (Heard, Instant)>,
    asked: Semaphore,
}

impl Default for Others {
    fn default() -> Self {
        Self { heard: Cache::new(HEARD_MAX), asked: Semaphore::new(ASKED_MAX) }
    }
}

impl Others {
    fn recall(&self, key: StorePathHash) -> Option<Heard> {
        let (heard, since) = self.heard.get(&key)?;
        (since.elapsed() < HEARD_TTL).then_some(heard)
    }

    /// Others are asked from now on.
    pub(super) fn forget_all(&self) {
        self.heard.clear();
    }

    /// A part of an answer that may become another one is not kept.
    fn note(&self, key: StorePathHash, heard: &Heard) {
        if !heard.is_partial {
            self.heard.insert(key, (heard.clone(), Instant::now()));
        }
    }
}

impl Inner {
    /// Asks the other upstreams, all at once, and waits for at most `wait`.
    pub(super) async fn others_say(
        &self,
        key: StorePathHash,
        nar_hash: NarHash,
        wait: Duration,
    ) -> Said {
        self.heard_of_others(key, wait).await.of(nar_hash)
    }

    /// The same, with their words.
    pub(super) async fn heard_of_others(&self, key: StorePathHash, wait: Duration) -> Heard {
        if let Some(heard) = self.others_memory.recall(key) {
            return heard;
        }
        let heard = self.hear(&self.upstreams().others, key, wait).await;
        self.others_memory.note(key, &heard);
        heard
    }

    /// Asks these upstreams, all at once, none of which rests, and waits for at most `wait`.
    pub(super) async fn hear(
        &self,
        upstreams: &[Upstream],
        key: StorePathHash,
        wait: Duration,
    ) -> Heard {
        let deadline = Instant::now() + wait;
        let mut heard = Heard::default();
        let mut questions: FuturesUnordered<_> =
            upstreams.iter().map(|upstream| self.ask(upstream, key)).collect();
        loop {
            match timeout_at(deadline, questions.next()).await {
                Ok(Some(Ok(Some(found)))) => heard.found.push(found),
                Ok(Some(Ok(None))) => {}
                Ok(Some(Err(Trouble))) => heard.is_partial = true,
                Ok(None) => return heard,
                Err(_) => {
                    heard.is_partial = true;
                    return heard;
                }
            }
        }
    }

    async fn ask(&self, upstream: &Upstream, key: StorePathHash) -> Result<Option<Found>, Trouble> {
        if upstream.is_resting() {
            return Err(Trouble);
        }
        let text = upstream.narinfo(key).await.map_err(|error| {
            debug!(upstream = %upstream.url(), %key, error = &error as &dyn std::error::Error,
                "narinfo could not be asked for");
            Trouble
        })?;
        let Some(text) = text else { return Ok(None) };
        let keys = upstream.trusted_keys();
        match self.cache.judge(&text, key, keys) {
            Ok(narinfo) => {
                let fingerprint = narinfo.fingerprint(&self.config.store_dir);
                let keys = keys.map(TrustedKeys::keys).unwrap_or_default();
                let by_name = narinfo.signatures.iter().filter_map(|signature| {
                    let key = keys.iter().find(|key| key.name() == signature.key_name())?;
                    Some((key, signature))
                });
                let holds = by_name
                    .take(VERIFIED_MAX)
                    .filter(|(key, signature)| key.verifies(&fingerprint, signature));
                let valid = holds.map(|(_, signature)| signature.clone()).collect();
                let upstream = Arc::clone(upstream.url());
                Ok(Some(Found { narinfo, valid, upstream }))
            }
            Err(error) => {
                warn!(upstream = %upstream.url(), %key, error = &error as &dyn std::error::Error,
                    "narinfo refused");
                Err(Trouble)
            }
        }
    }
}

/// No usable answer.
struct Trouble;

impl Push {
    /// Asks the other upstreams behind the answer, so that they need not be waited for when the
    /// narinfo is put.
    pub(super) fn ask_others_ahead(&self, key: StorePathHash) {
        let inner = &self.inner;
        if inner.upstreams().others.is_empty() || inner.others_memory.recall(key).is_some() {
            return;
        }
        let push = self.clone();
        inner.cache.behind(async move {
            let inner = &push.inner;
            if let Ok(_place) = inner.others_memory.asked.try_acquire() {
                inner.heard_of_others(key, ASKED_WAIT).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::StoreDir;

    const SAMPLE: &str = include_str!("../../tests/data/9d82wl65gr2phigksgzzimbdf176rx4c.narinfo");

    fn found(nar_hash: Option<NarHash>) -> Found {
        let narinfo = NarInfo::parse(SAMPLE.as_bytes(), &StoreDir::default()).unwrap();
        let valid = narinfo.signatures.clone();
        let nar_hash = nar_hash.unwrap_or(narinfo.nar_hash);
        Found { narinfo: NarInfo { nar_hash, ..narinfo }, valid, upstream: "https://a".into() }
    }

    #[test]
    fn what_was_heard_is_judged_by_the_nar() {
        let (same, other) = (found(None), found(Some(NarHash::from_bytes([1; 32]))));
        let nar_hash = same.narinfo.nar_hash;
        let said = |found: &[&Found], is_partial| {
            let found = found.iter().copied().cloned().collect();
            Heard { found, is_partial }.of(nar_hash)
        };
        assert_eq!(said(&[], false), Said::Absent);
        assert_eq!(said(&[], true), Said::Unknown);
        assert_eq!(said(&[&other], false), Said::Differs);
        // One that has another NAR is enough, whatever the silent ones would say.
        assert_eq!(said(&[&other], true), Said::Differs);
        let signatures = Said::Same(same.valid.clone());
        assert_eq!(said(&[&same, &same], false), signatures);
        assert_eq!(said(&[&other, &same], true), signatures);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_all_of_them_said_is_remembered_and_not_for_ever() {
        let others = Others::default();
        let key = StorePathHash::from_bytes([7; 20]);
        others.note(key, &Heard { found: Vec::new(), is_partial: true });
        assert_eq!(others.recall(key), None);
        let all = Heard::default();
        others.note(key, &all);
        assert_eq!(others.recall(key), Some(all));
        tokio::time::advance(HEARD_TTL).await;
        assert_eq!(others.recall(key), None);
    }
}
