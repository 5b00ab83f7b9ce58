//! A narinfo that binds an upload: checked, signed, published and queued in one durable step.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::{debug, info};

use super::others::{Found, Said};
use super::{Inner, Push, Refusal, now_s};
use crate::nix::{Compression, NarInfo, NarName, Signature, StorePath, StorePathHash, UploadName};
use crate::store::{self, Acceptance, Alias, HeldNar, Origin, StoredNarInfo};

/// How long the other upstreams are waited for when a narinfo is put: with hundreds of paths in
/// one copy, more would be minutes.
const OTHERS_WAIT: Duration = Duration::from_millis(500);

/// Signatures of one path: real ones have one to three, and each signer may add one.
const SIGNATURES_MAX: usize = 64;

/// Paths that may be accepted at once; two narinfos of one path never are, or the one would lose
/// the other's signature. Many more than the processors of any client.
const TURNS: usize = 64;

/// Whose turn it is.
pub(super) struct Turns(Vec<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..TURNS).map(|_| Semaphore::new(1)).collect())
    }
}

impl Turns {
    /// Waits until nobody else accepts this path.
    async fn of(&self, key: StorePathHash) -> Option<SemaphorePermit<'_>> {
        let byte = key.as_bytes().first().copied().unwrap_or_default();
        self.0.get(usize::from(byte) % TURNS)?.acquire().await.ok()
    }
}

/// What is known of a path here.
type Known = Option<(StoredNarInfo, Option<HeldNar>)>;

/// A narinfo whose NAR is here.
struct Bound {
    narinfo: NarInfo,
    nar: HeldNar,
    upload: Option<(UploadName, Alias)>,
}

/// What becomes of a path that is put.
enum Verdict {
    /// Ours: published and queued, with these signatures besides its own.
    Ours { signatures: Vec<Signature>, is_signed: bool },
    /// Another upstream has it: published as that upstream's, with these signatures as well.
    Theirs { found: Box<Found>, signatures: Vec<Signature> },
    /// Dropped: the path is known with another NAR.
    Dropped,
}

impl Push {
    /// Takes a narinfo put at `/<key>.narinfo`. It is durable and queued when this returns.
    pub async fn narinfo(&self, key: StorePathHash, text: Bytes) -> Result<(), Refusal> {
        self.check_open()?;
        let inner = &self.inner;
        let narinfo = NarInfo::parse(&text, &inner.config.store_dir)?;
        let found = narinfo.store_path.hash();
        if found != key {
            return Err(Refusal::OtherPath { expected: key, found });
        }
        if narinfo.signatures.len() > SIGNATURES_MAX {
            return Err(Refusal::Signatures(SIGNATURES_MAX));
        }
        let _turn = inner.turns.of(key).await;
        let bound = inner.bind(narinfo).await?;
        let known = inner.store.lookup(key).await?;
        if let Some((stored, Some(_))) = &known {
            if !is_same(&stored.narinfo, &bound.narinfo) {
                inner.drop_differing(&bound.narinfo.store_path, "here");
                return Ok(());
            }
            if has_all(stored, &bound) {
                return Ok(());
            }
        }
        let (stored, is_queued) = match inner.judge(&bound, &known).await {
            Verdict::Dropped => {
                inner.cache.path_is_elsewhere(key);
                inner.drop_differing(&bound.narinfo.store_path, "upstream");
                return Ok(());
            }
            Verdict::Ours { signatures, is_signed } => {
                let narinfo = inner.merged(&bound, known, signatures, is_signed)?;
                (StoredNarInfo { narinfo, upstream: String::new(), origin: Origin::Ours }, true)
            }
            Verdict::Theirs { found, signatures } => {
                let merged = inner.merged(&bound, known, signatures, false)?;
                // Where the NAR is had again once it is evicted: from them, by their name for it.
                let Found { narinfo: theirs, upstream, .. } = *found;
                let signatures = merged.signatures;
                let (upstream, origin) = (upstream.to_string(), Origin::Upstream);
                (
                    StoredNarInfo { narinfo: NarInfo { signatures, ..theirs }, upstream, origin },
                    false,
                )
            }
        };
        self.publish(stored, bound, is_queued).await
    }

    async fn publish(
        &self,
        stored: StoredNarInfo,
        bound: Bound,
        is_queued: bool,
    ) -> Result<(), Refusal> {
        let inner = &self.inner;
        let key = stored.narinfo.store_path.hash();
        let targets = if is_queued { inner.target_urls() } else { Vec::new() };
        let upload = bound.upload.map(|(name, _)| name);
        let acceptance = Acceptance { stored, nar: bound.nar, upload, targets };
        inner.store.accept(acceptance, now_s()).await?;
        inner.cache.path_came(key);
        debug!(%key, is_queued, "path accepted");
        if is_queued {
            self.tell_queued();
        }
        Ok(())
    }

    /// Says that something was queued.
    pub(super) fn tell_queued(&self) {
        self.inner.queued.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Refuses while the store cannot be used: before any body is read.
    pub fn check_open(&self) -> Result<(), Refusal> {
        match self.inner.store.state() {
            store::State::Open => Ok(()),
            store::State::Degraded { reason, .. } => Err(Refusal::Degraded(reason)),
        }
    }
}

/// Whether two narinfos are of one NAR, with one fingerprint.
fn is_same(a: &NarInfo, b: &NarInfo) -> bool {
    a.store_path == b.store_path && a.nar_hash == b.nar_hash && a.references == b.references
}

/// Whether nothing of this narinfo is new: it was acknowledged before, and is durable.
fn has_all(stored: &StoredNarInfo, bound: &Bound) -> bool {
    let known = &stored.narinfo.signatures;
    stored.origin == Origin::Ours
        && bound.upload.as_ref().is_none_or(|(_, alias)| alias.bound)
        && bound.narinfo.signatures.iter().all(|signature| known.contains(signature))
}

impl Inner {
    pub(super) fn target_urls(&self) -> Vec<String> {
        self.upstreams().targets.iter().map(|target| target.url().to_string()).collect()
    }

    fn drop_differing(&self, path: &StorePath, place: &'static str) {
        self.metrics.push_differs.inc();
        // No target gets it.
        for desk in &self.upstreams().desks {
            desk.differs(path.base_name().to_owned());
        }
        info!(%path, place, "a push was dropped, the path is known with another NAR");
    }

    /// Finds the NAR that a narinfo names and holds every line of it to what came.
    async fn bind(&self, narinfo: NarInfo) -> Result<Bound, Refusal> {
        let file_name = narinfo.url.strip_prefix("nar/").unwrap_or_default();
        if let Some(name) = NarName::parse(file_name) {
            // Our own narinfo comes back with another signature. A file of another time may be
            // named in it, so its hash and size say nothing.
            if name.key != narinfo.store_path.hash() {
                return Err(Refusal::Url(narinfo.url));
            }
            if narinfo.compression != Compression::Zstd {
                return Err(Refusal::compression(narinfo.compression, Compression::Zstd));
            }
            if name.nar_hash != narinfo.nar_hash {
                return Err(Refusal::nar_hash(&narinfo.nar_hash, &name.nar_hash));
            }
            let nar = self.store.nar(name.nar_hash).await?;
            let nar = nar.ok_or_else(|| Refusal::NoNar(narinfo.url.clone()))?;
            if narinfo.nar_size != nar.nar_size() {
                return Err(Refusal::line("NarSize:", &narinfo.nar_size, &nar.nar_size()));
            }
            return Ok(Bound { narinfo, nar, upload: None });
        }
        let name = UploadName::parse(file_name).ok_or_else(|| Refusal::Url(narinfo.url.clone()))?;
        let absent = || Refusal::NoNar(narinfo.url.clone());
        let alias = self.store.alias(name).await?.ok_or_else(absent)?;
        check_lines(&narinfo, name, &alias)?;
        let nar = self.store.nar(alias.nar_hash).await?.ok_or_else(absent)?;
        Ok(Bound { narinfo, nar, upload: Some((name, alias)) })
    }

    /// What the other upstreams and the targets have decides what becomes of a path.
    async fn judge(&self, bound: &Bound, known: &Known) -> Verdict {
        let nar_hash = bound.narinfo.nar_hash;
        let key = bound.narinfo.store_path.hash();
        let upstreams = self.upstreams();
        let at_targets = self.hear(&upstreams.targets, key, OTHERS_WAIT);
        let at_others = self.heard_of_others(key, OTHERS_WAIT);
        let (at_targets, at_others) = tokio::join!(at_targets, at_others);
        // What was acknowledged here once is ours, whoever has it meanwhile.
        let was_ours = matches!(known, Some((stored, Some(_))) if stored.origin == Origin::Ours);
        let mut signatures = match at_targets.of(nar_hash) {
            Said::Same(signatures) => signatures,
            Said::Differs if !was_ours => return Verdict::Dropped,
            Said::Differs | Said::Absent | Said::Unknown => Vec::new(),
        };
        match at_others.of(nar_hash) {
            Said::Same(valid) => {
                signatures.extend(valid);
                let same = at_others.same(nar_hash).filter(|found| {
                    !was_ours && !self.config.everything && is_same(&found.narinfo, &bound.narinfo)
                });
                match same.cloned().map(Box::new) {
                    Some(found) => Verdict::Theirs { found, signatures },
                    None => Verdict::Ours { signatures, is_signed: false },
                }
            }
            Said::Differs if !was_ours => Verdict::Dropped,
            Said::Differs | Said::Absent | Said::Unknown => {
                Verdict::Ours { signatures, is_signed: true }
            }
        }
    }

    /// The narinfo that is published: the uploader's own, with every signature that is known, and
    /// with ours where it is ours.
    fn merged(
        &self,
        bound: &Bound,
        known: Known,
        signatures: Vec<Signature>,
        is_signed: bool,
    ) -> Result<NarInfo, Refusal> {
        let mut narinfo = bound.narinfo.clone();
        narinfo.signatures.extend(signatures);
        if let Some((stored, _)) = known
            && is_same(&stored.narinfo, &narinfo)
        {
            narinfo.signatures.extend(stored.narinfo.signatures);
            narinfo.deriver = narinfo.deriver.or(stored.narinfo.deriver);
            narinfo.ca = narinfo.ca.or(stored.narinfo.ca);
        }
        if is_signed {
            let fingerprint = narinfo.fingerprint(&self.config.store_dir);
            let own = self.own_key.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            narinfo.signatures.extend(own.as_ref().map(|own| own.sign(&fingerprint)));
        }
        narinfo.signatures.sort_unstable();
        narinfo.signatures.dedup();
        if narinfo.signatures.len() > SIGNATURES_MAX {
            return Err(Refusal::Signatures(SIGNATURES_MAX));
        }
        Ok(narinfo)
    }
}

/// Holds a narinfo to the file that came.
fn check_lines(narinfo: &NarInfo, name: UploadName, alias: &Alias) -> Result<(), Refusal> {
    if narinfo.compression != alias.compression {
        return Err(Refusal::compression(narinfo.compression, alias.compression));
    }
    if let Some(said) = narinfo.file_hash
        && said != name.file_hash
    {
        return Err(Refusal::line("FileHash:", &said, &name.file_hash));
    }
    if let Some(said) = narinfo.file_size
        && said != alias.file_size
    {
        return Err(Refusal::line("FileSize:", &said, &alias.file_size));
    }
    if narinfo.nar_hash != alias.nar_hash {
        return Err(Refusal::nar_hash(&narinfo.nar_hash, &alias.nar_hash));
    }
    if narinfo.nar_size != alias.nar_size {
        return Err(Refusal::line("NarSize:", &narinfo.nar_size, &alias.nar_size));
    }
    Ok(())
}
