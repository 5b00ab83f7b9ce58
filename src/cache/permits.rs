//! Memory of codecs is a budget: who decodes or encodes holds a permit for it, first come first
//! served.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::ingest::{Codec, Form};
use super::locked;

/// The grain of the budget: fine enough for small NARs, coarse enough for a semaphore's count.
const UNIT_BYTES: u64 = 64 * 1024;

/// How long a client waits for codec memory before it is sent to its next substituter.
const WAIT: Duration = Duration::from_secs(20);

/// How long an upload waits for it: Nix waits 300 s for an answer, and the bytes behind wait too.
const UPLOAD_WAIT: Duration = Duration::from_mins(1);

/// Uploads get at most one half of the budget: whoever reads needs the other.
const UPLOAD_PART: usize = 2;

/// While memory runs short one half of the budget is withdrawn.
const WITHDRAWN_PART: u32 = 2;

/// So much of it stays: one xz stream of the usual preset, its encoder and the buffers between them.
const LEFT_BYTES_MIN: u64 = 14 << 20;

/// It is withdrawn in so many steps, each behind those who wait already.
const WITHDRAWN_STEPS: u32 = 8;

/// Buffers between the stages of one ingest, at most.
const BUFFERS_BYTES: u64 = 1 << 20;

/// The budget.
#[derive(Debug)]
pub(super) struct Permits {
    units: Arc<Semaphore>,
    /// What uploads may have of it: they last as long as their sender likes.
    upload_units: Arc<Semaphore>,
    units_all: u32,
    /// What needs more than this is not unpacked at all: a Pi has other things to do.
    alone_bytes_max: u64,
    waiting: AtomicUsize,
    /// Told whenever a share is asked for.
    asked: Notify,
    is_tight: watch::Sender<bool>,
    withdrawn: Mutex<Option<OwnedSemaphorePermit>>,
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    held: OwnedSemaphorePermit,
    _of_uploads: Option<OwnedSemaphorePermit>,
}

impl Permits {
    /// Of so many bytes, of which one that is alone may take more, up to `alone_bytes_max`.
    pub(super) fn new(budget_bytes: u64, alone_bytes_max: u64) -> Self {
        let units_all = units(budget_bytes).max(1);
        let count = usize::try_from(units_all).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            units: Arc::new(Semaphore::new(count)),
            upload_units: Arc::new(Semaphore::new((count / UPLOAD_PART).max(1))),
            units_all,
            alone_bytes_max,
            waiting: AtomicUsize::new(0),
            asked: Notify::new(),
            is_tight: watch::Sender::new(false),
            withdrawn: Mutex::default(),
        }
    }

    /// Waits for a share; `None` when it is too big or did not come in time. One that is bigger
    /// than the budget takes all of it.
    pub(super) async fn take(&self, bytes: u64) -> Option<Permit> {
        self.asked.notify_one();
        if !self.could_ever(bytes) || !self.could_now(bytes) {
            return None;
        }
        let wanted = units(bytes).min(self.units_all);
        let _waiting = Waiting::new(&self.waiting);
        let held = timeout(WAIT, Arc::clone(&self.units).acquire_many_owned(wanted)).await;
        Some(Permit { held: held.ok()?.ok()?, _of_uploads: None })
    }

    /// A share for somebody whom nobody waits for: only where there is one now.
    pub(super) fn take_spare(&self, bytes: u64) -> Option<Permit> {
        self.asked.notify_one();
        let wanted = units(bytes).min(self.units_all);
        if !self.could_ever(bytes) || self.is_tight() || self.are_wanted() {
            return None;
        }
        let held = Arc::clone(&self.units).try_acquire_many_owned(wanted).ok()?;
        Some(Permit { held, _of_uploads: None })
    }

    /// The same for an upload, within the part of the budget that uploads may have, and with more
    /// patience: an old client whose upload is refused cannot try again.
    pub(super) async fn take_for_upload(&self, bytes: u64) -> Option<Permit> {
        self.asked.notify_one();
        if !self.could_ever(bytes) {
            return None;
        }
        let wanted = units(bytes).min(self.units_all);
        let part = (self.units_all / u32::try_from(UPLOAD_PART).unwrap_or(1)).max(1);
        let both = async {
            // In front of the others it would only keep them waiting.
            let mut tight = self.is_tight.subscribe();
            tight.wait_for(|is_tight| !is_tight || self.fits_withdrawn(bytes)).await.ok()?;
            let part = Arc::clone(&self.upload_units).acquire_many_owned(wanted.min(part)).await;
            let _waiting = Waiting::new(&self.waiting);
            let held = Arc::clone(&self.units).acquire_many_owned(wanted).await;
            Some(Permit { held: held.ok()?, _of_uploads: Some(part.ok()?) })
        };
        timeout(UPLOAD_WAIT, both).await.ok()?
    }

    /// Makes a share as big as `bytes` without waiting; `false` when the budget has it not now.
    pub(super) fn enlarge(&self, permit: &mut Permit, bytes: u64) -> bool {
        if !self.could_ever(bytes) || !self.could_now(bytes) {
            return false;
        }
        let has = u32::try_from(permit.held.num_permits()).unwrap_or(u32::MAX);
        let more = units(bytes).min(self.units_all).saturating_sub(has);
        match Arc::clone(&self.units).try_acquire_many_owned(more) {
            Ok(held) => {
                permit.held.merge(held);
                true
            }
            Err(_) => false,
        }
    }

    /// Whether somebody waits for memory: a fill that nobody follows gives its share up then.
    pub(super) fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether so much is given at all.
    pub(super) const fn could_ever(&self, bytes: u64) -> bool {
        bytes <= self.alone_bytes_max
    }

    fn is_tight(&self) -> bool {
        *self.is_tight.borrow()
    }

    fn fits_withdrawn(&self, bytes: u64) -> bool {
        units(bytes) <= self.units_all - self.withdrawn_max()
    }

    /// What is withdrawn while memory runs short.
    fn withdrawn_max(&self) -> u32 {
        let rest = self.units_all.saturating_sub(units(LEFT_BYTES_MIN));
        rest.min(self.units_all / WITHDRAWN_PART)
    }

    /// Whether so much may be given as long as memory is as it is: what does not fit into what is
    /// left of the budget had better be asked for elsewhere than waited for.
    fn could_now(&self, bytes: u64) -> bool {
        !self.is_tight() || self.fits_withdrawn(bytes)
    }

    /// Returns once a share was asked for since this last returned.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Whether nobody has a share.
    pub(super) fn are_idle(&self) -> bool {
        let withdrawn = locked(&self.withdrawn).as_ref().map_or(0, share);
        self.units.available_permits() + withdrawn
            >= usize::try_from(self.units_all).unwrap_or(Semaphore::MAX_PERMITS)
    }

    /// Memory runs short: from now on only the smaller budget is given, and nothing to who merely
    /// works ahead. Returns once the rest is withdrawn, which those who have it give back in their
    /// time; cancelled, it goes on with the next call.
    pub(super) async fn withdraw(&self) {
        self.is_tight.send_replace(true);
        let goal = self.withdrawn_max();
        loop {
            let has = locked(&self.withdrawn).as_ref().map_or(0, share);
            let left = goal.saturating_sub(u32::try_from(has).unwrap_or(u32::MAX));
            let step = left.min(self.units_all.div_ceil(WITHDRAWN_STEPS));
            if step == 0 {
                return;
            }
            let Ok(more) = Arc::clone(&self.units).acquire_many_owned(step).await else { return };
            let mut withdrawn = locked(&self.withdrawn);
            match withdrawn.as_mut() {
                // It is well again meanwhile, or somebody else withdraws too.
                _ if !self.is_tight() => return,
                Some(before) => before.merge(more),
                None => *withdrawn = Some(more),
            }
        }
    }

    /// Memory does not run short any more.
    pub(super) fn restore(&self) {
        self.is_tight.send_replace(false);
        drop(locked(&self.withdrawn).take());
    }
}

fn share(held: &OwnedSemaphorePermit) -> usize {
    held.num_permits()
}

/// Counts one that waits, also when its waiting is cancelled.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// What one ingest costs: the decoder's window as far as the NAR can fill it, the encoder, and the
/// buffers between them.
pub(super) fn cost_bytes(codec: Codec, form: Form, nar_size: u64) -> u64 {
    let decoder = codec.window_bytes.min(nar_size);
    let encoder = match form {
        Form::Kept => 0,
        Form::Recompressed { level } => encoder_bytes(level, nar_size),
    };
    decoder + encoder + BUFFERS_BYTES.min(nar_size.saturating_mul(4))
}

/// Memory of zstd's encoder by level, rounded up (measured by `ZSTD_sizeof_CCtx`, see the test);
/// its tables shrink with the NAR.
fn encoder_bytes(level: i32, nar_size: u64) -> u64 {
    let most = match level {
        ..=2 => 2 << 20,
        3..=4 => 5 << 20,
        5..=8 => 13 << 20,
        9..=12 => 48 << 20,
        13..=15 => 72 << 20,
        16.. => 112 << 20,
    };
    let factor = if level <= 4 { 16 } else { 24 };
    let window = nar_size.checked_next_power_of_two().unwrap_or(u64::MAX);
    window.saturating_mul(factor).saturating_add(256 << 10).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::Compression;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_small_nar_costs_little_whatever_its_window() {
        let codec = Codec { compression: Compression::Xz, window_bytes: 64 * MIB };
        let form = Form::Recompressed { level: 3 };
        assert!(cost_bytes(codec, form, 10_000) < 2 * MIB);
        assert!(cost_bytes(codec, form, 1 << 30) > 64 * MIB);
        assert!(cost_bytes(codec, form, 1 << 30) < 72 * MIB);
    }

    #[test]
    fn the_encoder_takes_no_more_than_it_is_thought_to() {
        for level in 1..=19 {
            for nar_size in [1_000, 100_000, 3_000_000, 1 << 30] {
                let mut encoder = zstd::zstd_safe::CCtx::create();
                let level_is = zstd::zstd_safe::CParameter::CompressionLevel(level);
                encoder.set_parameter(level_is).unwrap();
                encoder.set_pledged_src_size(Some(nar_size)).unwrap();
                let mut out = vec![0; 1 << 16];
                let mut input = zstd::zstd_safe::InBuffer::around(&[0; 900]);
                let mut output = zstd::zstd_safe::OutBuffer::around(out.as_mut_slice());
                encoder.compress_stream(&mut output, &mut input).unwrap();
                let takes = u64::try_from(encoder.sizeof()).unwrap();
                let thought = encoder_bytes(level, nar_size);
                assert!(takes <= thought, "level {level}, {nar_size}: {takes} > {thought}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_longer_than_twenty_seconds_gets_nothing() {
        let permits = Permits::new(48 * MIB, 160 * MIB);
        let first = permits.take(100 * MIB).await;
        assert!(first.is_some(), "one that is bigger than the budget takes all of it");
        let began = tokio::time::Instant::now();
        assert!(permits.take(MIB).await.is_none());
        assert_eq!(began.elapsed().as_secs(), 20);
        drop(first);
        assert!(permits.take(MIB).await.is_some());
        assert!(permits.take(161 * MIB).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_leave_half_of_it_to_readers_and_wait_longer() {
        let permits = Permits::new(48 * MIB, 160 * MIB);
        let first = permits.take_for_upload(24 * MIB).await;
        assert!(first.is_some());
        let began = tokio::time::Instant::now();
        assert!(permits.take_for_upload(MIB).await.is_none());
        assert_eq!(began.elapsed().as_secs(), 60);
        assert!(permits.take(24 * MIB).await.is_some(), "the other half is the readers'");
        drop(first);
        // One that is bigger than their part takes all of it, and what it needs of the rest.
        let big = permits.take_for_upload(40 * MIB).await;
        assert!(big.is_some());
        assert!(permits.take(9 * MIB).await.is_none());
        drop(big);
        assert!(permits.take(48 * MIB).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_spare_is_taken_only_while_nobody_waits() {
        let permits = Permits::new(48 * MIB, 160 * MIB);
        let spare = permits.take_spare(40 * MIB);
        assert!(spare.is_some());
        assert!(permits.take_spare(40 * MIB).is_none());
        let client = permits.take(40 * MIB);
        tokio::pin!(client);
        assert!(futures_util::poll!(&mut client).is_pending());
        assert!(permits.take_spare(MIB).is_none(), "a client waits");
        drop(spare);
        assert!(client.await.is_some());
        assert!(permits.take_spare(MIB).is_some());
        assert!(permits.could_ever(160 * MIB) && !permits.could_ever(161 * MIB));
    }

    #[tokio::test(start_paused = true)]
    async fn shares_are_given_in_the_order_of_asking() {
        let permits = Permits::new(48 * MIB, 160 * MIB);
        let first = permits.take(40 * MIB).await.unwrap();
        let big = permits.take(48 * MIB);
        tokio::pin!(big);
        assert!(futures_util::poll!(&mut big).is_pending());
        assert!(permits.are_wanted());
        let small = permits.take(MIB);
        tokio::pin!(small);
        assert!(futures_util::poll!(&mut small).is_pending(), "the big one was first");
        drop(first);
        assert!(big.await.is_some());
        assert!(small.await.is_some());
        assert!(!permits.are_wanted());
    }

    #[tokio::test(start_paused = true)]
    async fn the_smallest_budget_still_has_a_usual_stream_while_memory_runs_short() {
        let permits = Permits::new(16 * MIB, 21 * MIB);
        permits.withdraw().await;
        let codec = Codec { compression: Compression::Xz, window_bytes: 8 * MIB };
        let cost = cost_bytes(codec, Form::Recompressed { level: 3 }, 100 * MIB);
        let share = permits.take(cost).await;
        assert!(share.is_some(), "{cost}");
        assert!(permits.take(MIB).await.is_none(), "it is all that there is");
        drop(share);
        permits.restore();
        assert!(permits.take(16 * MIB).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn while_memory_runs_short_half_of_it_is_given_and_none_to_who_works_ahead() {
        let permits = Permits::new(48 * MIB, 160 * MIB);
        let reader = permits.take(40 * MIB).await;
        let withdrawing = permits.withdraw();
        tokio::pin!(withdrawing);
        assert!(futures_util::poll!(&mut withdrawing).is_pending(), "a reader has it");
        let began = tokio::time::Instant::now();
        assert!(permits.take(25 * MIB).await.is_none(), "more than there will be");
        assert!(began.elapsed().is_zero(), "who gets nothing does not wait for it");
        assert!(permits.take_spare(MIB).is_none());
        drop(reader);
        withdrawing.await;
        assert!(permits.are_idle());
        let first = permits.take(24 * MIB).await;
        assert!(first.is_some() && !permits.are_idle());
        assert!(permits.take(MIB).await.is_none(), "it is all that there is");
        assert_eq!(began.elapsed().as_secs(), 20);
        let upload = permits.take_for_upload(40 * MIB);
        tokio::pin!(upload);
        assert!(futures_util::poll!(&mut upload).is_pending());
        drop(first);
        assert!(permits.take(24 * MIB).await.is_some(), "it keeps nobody waiting");
        permits.restore();
        assert!(upload.await.is_some());
        assert!(permits.take(48 * MIB).await.is_some() && permits.are_idle());
    }
}
