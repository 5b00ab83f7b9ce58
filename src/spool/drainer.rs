//! What a drainer does each time: looks, asks whether the cache takes anything, copies batch by
//! batch, and says what became of it. Everything that must outlive it is in the folder; it may be
//! killed at any moment and does a batch again at worst.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::copy::{self, Ended, nix_copy};
use super::folder::Folder;
use super::look::{Seen, Sizes, Waiting, Why, look};
use super::pace::Pace;
use super::pass::{Failures, Pass};
use super::probe::{self, Answer};
use super::status::{Status, Trouble};
use super::{Config, Entry, Error, token, with_causes};
use crate::nix::StorePath;

/// How long the folder is not looked at while the kernel tells what comes: ages pass all the same.
pub(super) const LOOK_WAIT: Duration = Duration::from_mins(10);

/// Until a path that failed alone is tried again: whoever mends it can ask for it sooner.
const PARKED_REST: Duration = Duration::from_hours(1);

/// A clock that goes back, or two looks in one second, must not make a drainer spin.
const REST_MIN: Duration = Duration::from_secs(1);

/// The folder's name for what Nix remembers.
const CACHE: &str = "cache";

/// How a batch ended.
enum Batch {
    /// The next one may go.
    GoOn,
    /// Nix said why not.
    Failed(String),
    Stopped,
}

/// What a drainer knows from one time to the next.
pub(super) struct Drainer {
    config: Config,
    folder: Folder,
    started: Instant,
    pace: Pace,
    failures: Failures,
    sizes: Sizes,
    status: Status,
    saved: Option<Status>,
}

impl Drainer {
    pub(super) fn new(config: Config) -> Self {
        let folder = Folder::new(&config);
        Self {
            started: Instant::now(),
            pace: Pace::default(),
            failures: Failures::new(),
            sizes: Sizes::new(),
            status: Status::load(folder.path()),
            saved: None,
            folder,
            config,
        }
    }

    /// Nothing rests any longer.
    pub(super) fn hurry(&mut self) {
        self.pace.reset();
        self.failures.clear();
        self.status.parked.iter_mut().for_each(|parked| parked.due_s = 0);
    }

    /// How many paths were ever dropped for the bounds.
    pub(super) fn dropped_count(&self) -> u64 {
        self.status.dropped
    }

    /// Why something still waits.
    pub(super) fn why(&self) -> Option<String> {
        let trouble = self.status.trouble.as_ref().map(|trouble| &trouble.message);
        trouble.or_else(|| self.status.parked.last().map(|parked| &parked.reason)).cloned()
    }

    /// How long it may rest if nothing comes.
    pub(super) fn rest(&self) -> Duration {
        let wait = self.pace.wait(self.started.elapsed());
        let next_s = self.status.parked.iter().map(|parked| parked.due_s).min();
        let parked = next_s.map(|due_s| Duration::from_secs(due_s.saturating_sub(now_s())));
        let rest = if wait.is_zero() { parked.unwrap_or(LOOK_WAIT) } else { wait };
        rest.clamp(REST_MIN, LOOK_WAIT)
    }

    /// Looks, and copies what is due. The bounds hold for what a try left behind, so that nothing
    /// is dropped that could just as well have been pushed.
    pub(super) async fn step(&mut self, stop: &CancellationToken, is_there: bool) {
        let tried = match self.look(false).await {
            Ok(waiting) => self.work(waiting, stop, is_there).await,
            Err(reason) => {
                self.in_trouble(reason);
                false
            }
        };
        let is_left = self.status.trouble.is_some() || !self.status.parked.is_empty();
        if tried
            && is_left
            && !stop.is_cancelled()
            && let Err(reason) = self.look(true).await
        {
            debug!(reason, "the spool cannot be listed");
        }
        self.save();
    }

    async fn look(&mut self, bounds_count: bool) -> Result<Vec<Waiting>, String> {
        let (config, mut sizes) = (self.config.clone(), std::mem::take(&mut self.sizes));
        let now_s = now_s();
        let looked = spawn_blocking(move || {
            let seen = look(&config, &mut sizes, now_s, bounds_count);
            (seen, sizes)
        });
        let (seen, sizes) = looked.await.map_err(|error| with_causes(&error))?;
        self.sizes = sizes;
        let Seen { waiting, dropped, retry, unheld } = seen.map_err(|error| with_causes(&error))?;
        if retry {
            self.hurry();
        }
        for (path, why) in &dropped {
            self.dropped(path, *why, now_s);
        }
        if let Some((entries, reason)) = &unheld
            && self.status.unheld.is_none()
        {
            warn!(entries, reason, "builds that wait are not kept from garbage collection");
        }
        self.status.unheld = unheld.map(|(_, reason)| reason);
        self.status.waiting_bytes = waiting.iter().fold(0, |sum, it| sum.saturating_add(it.bytes));
        let waits = |path: &str| waiting.iter().any(|it| it.path.base_name() == path);
        self.status.parked.retain(|parked| waits(&parked.path));
        Ok(waiting)
    }

    fn dropped(&mut self, path: &StorePath, why: Why, now_s: u64) {
        match why {
            Why::Age | Why::Bytes => {
                self.status.dropped += 1;
                warn!(%path, why = why.phrase(), "a build was dropped before it was pushed");
            }
            Why::Gone => {
                self.status.gone += 1;
                warn!(%path, why = why.phrase(), "a build was gone before it was pushed");
            }
            Why::Excluded => {
                info!(%path, "a build is not to be pushed");
                return;
            }
        }
        self.status.drop_one(path, why.phrase(), now_s);
        self.failures.remove(path);
    }

    /// Whether anything was tried.
    async fn work(
        &mut self,
        waiting: Vec<Waiting>,
        stop: &CancellationToken,
        is_there: bool,
    ) -> bool {
        let now_s = now_s();
        let is_due = |waiting: &Waiting| !self.status.is_parked(&waiting.path, now_s);
        let due: Vec<Waiting> = waiting.into_iter().filter(is_due).collect();
        if due.is_empty() {
            self.at_ease();
            return false;
        }
        if !is_there {
            let since_s = self.status.trouble.as_ref().map_or(now_s, |it| it.since_s);
            let message = "the cache is away: what waits is pushed once it is back".to_owned();
            self.status.trouble = Some(Trouble { message, since_s });
            self.status.next_try_s = None;
            return true;
        }
        if !self.pace.wait(self.started.elapsed()).is_zero() {
            return false;
        }
        match self.pass(due, stop).await {
            Ok(()) => self.at_ease(),
            Err(reason) => self.in_trouble(reason),
        }
        true
    }

    fn at_ease(&mut self) {
        self.status.trouble = None;
        self.status.next_try_s = None;
    }

    fn in_trouble(&mut self, message: String) {
        let chance = getrandom::u32().map_or(1.0, |n| f64::from(n) / f64::from(u32::MAX));
        let elapsed = self.started.elapsed();
        self.pace.failed(elapsed, chance);
        let wait = self.pace.wait(elapsed);
        let before = self.status.trouble.take();
        if before.as_ref().is_none_or(|before| before.message != message) {
            warn!(reason = message, "nothing can be pushed from the spool now, will retry");
        } else {
            debug!(reason = message, wait_s = wait.as_secs(), "nothing can be pushed still");
        }
        let since_s = before.map_or_else(now_s, |before| before.since_s);
        self.status.trouble = Some(Trouble { message, since_s });
        self.status.next_try_s = Some(now_s() + wait.as_secs());
    }

    /// Tries all that is due; an error is the reason why nothing can be pushed now.
    async fn pass(&mut self, due: Vec<Waiting>, stop: &CancellationToken) -> Result<(), String> {
        let token = token::of(&self.config).map_err(|error| with_causes(&error))?;
        let token = token.as_deref();
        let mut answer = self.ask(token).await?;
        let sizes = due.iter().map(|it| (it.path.clone(), it.bytes)).collect();
        let entries: HashMap<StorePath, Vec<Entry>> =
            due.into_iter().map(|it| (it.path, it.entries)).collect();
        let mut pass = Pass::new(sizes, &self.failures);
        let mut last_reason = None;
        while let Some(batch) = pass.next() {
            let batch = self.batch(batch, &entries, &mut pass, (token, stop)).await;
            match batch.map_err(|error| with_causes(&error))? {
                Batch::Stopped => return Ok(()),
                Batch::GoOn => self.save(),
                Batch::Failed(reason) => {
                    answer = match self.ask(token).await {
                        Ok(answer) => answer,
                        Err(away) => {
                            self.end(pass, false);
                            return Err(away);
                        }
                    };
                    last_reason = Some(reason);
                    if pass.is_stuck() {
                        break;
                    }
                }
            }
        }
        let is_well = !pass.is_stuck() && answer == Answer::Takes;
        let is_well = self.end(pass, is_well);
        last_reason.filter(|_| !is_well).map_or(Ok(()), Err)
    }

    /// Whether the cache takes anything; an error is the reason why not.
    async fn ask(&self, token: Option<&str>) -> Result<Answer, String> {
        match probe::ask(&self.config.to, token, &self.config.store_dir).await {
            answer @ (Answer::Takes | Answer::Unknown) => Ok(answer),
            Answer::Away(said) => Err(away(&said)),
            Answer::Refuses(said) => Err(format!("the cache refuses: {said}")),
        }
    }

    /// Judges what failed alone. Where others went well, or the cache says that it takes what it is
    /// given, the paths are at fault, else the cache: whether it was well.
    fn end(&mut self, pass: Pass, takes: bool) -> bool {
        let (failed, went_well) = pass.end();
        let (is_well, now_s) = (went_well || takes, now_s());
        for (path, reason) in failed {
            if is_well {
                warn!(%path, reason, "a build cannot be pushed, others go on");
                self.status.park(&path, &reason, now_s, now_s + PARKED_REST.as_secs());
                self.failures.remove(&path);
            } else {
                *self.failures.entry(path).or_default() += 1;
            }
        }
        is_well
    }

    async fn batch(
        &mut self,
        batch: Vec<StorePath>,
        entries: &HashMap<StorePath, Vec<Entry>>,
        pass: &mut Pass,
        (token, stop): (Option<&str>, &CancellationToken),
    ) -> Result<Batch, Error> {
        let paths = batch.iter().map(|path| self.config.store_dir.join(path));
        let prepared = nix_copy(&self.config.to, token, paths)?;
        let ended = copy::run(prepared, &self.folder.path().join(CACHE), stop).await?;
        let of = |path: &StorePath| entries.get(path).into_iter().flatten();
        match ended {
            Ended::Stopped => Ok(Batch::Stopped),
            Ended::Well => {
                batch.iter().flat_map(of).try_for_each(|entry| self.folder.remove(entry))?;
                info!(paths = batch.len(), to = %self.config.to, "pushed from the spool");
                pass.copied();
                self.pace.reset();
                self.at_ease();
                for path in &batch {
                    self.status.unpark(path);
                    self.failures.remove(path);
                    self.status.pushed += 1;
                }
                self.status.pushed_at_s = Some(now_s());
                Ok(Batch::GoOn)
            }
            Ended::Badly(reason) => {
                // Somebody deleted it in the meantime, or Nix forgot it and left its files.
                let is_forgotten = batch.len() == 1 && reason.contains("is not valid");
                let is_gone = |path: &StorePath| {
                    let file = self.folder.in_store(path);
                    file.symlink_metadata().is_err()
                        || (is_forgotten && reason.contains(path.base_name()))
                };
                let (gone, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(is_gone);
                if gone.is_empty() {
                    debug!(paths = rest.len(), reason, "nix copy failed");
                    pass.failed(rest, &reason);
                    return Ok(Batch::Failed(reason));
                }
                for path in &gone {
                    of(path).try_for_each(|entry| self.folder.remove(entry))?;
                    self.status.unpark(path);
                    self.dropped(path, Why::Gone, now_s());
                }
                pass.again(rest);
                Ok(Batch::GoOn)
            }
        }
    }

    /// For `spool status`; a disk that is full says nothing here that is not in the log.
    fn save(&mut self) {
        if self.saved.as_ref() == Some(&self.status) {
            return;
        }
        match self.status.save(self.folder.path()) {
            Ok(()) => self.saved = Some(self.status.clone()),
            Err(error) => {
                debug!(error = &error as &dyn std::error::Error, "the status cannot be written");
            }
        }
    }
}

/// What a forwarder says of its cache, without its advice for people; else who said what.
fn away(said: &str) -> String {
    match said.strip_prefix("snowberry: ").and_then(|said| said.split([':', '.']).next()) {
        Some(sentence) => sentence.to_owned(),
        None => format!("the cache is away: {said}"),
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarder_that_knows_its_cache_to_be_away_is_repeated_without_advice() {
        let said = "snowberry: the cache of this house is away, so nothing can be pushed now: try \
                    again at home, or let the hook do it.";
        assert_eq!(away(said), "the cache of this house is away, so nothing can be pushed now");
        assert_eq!(away("no answer"), "the cache is away: no answer");
    }
}
