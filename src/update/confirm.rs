//! What is done after each boot: a version on trial is watched, and then stays or goes; what came of
//! an earlier trial is written down.
//!
//! Whether this is a trial is known by the kernel's command line against `config.txt`, and by nothing
//! that could be lost. Staying is one step: `config.txt` names this slot from then on. The record
//! follows; a power cut between the two boots this slot, which is then what `config.txt` says, and the
//! record is made up for.

use std::future::Future;
use std::time::{Duration, Instant};

use super::Watcher;
use super::error::Error;
use super::fat::{self, Writable};
use super::machine::{CONFIG, Machine, TRYBOOT};
use super::network;
use super::record::{Folder, Holds, Record, Trial};
use super::trial::{Look, Verdict, Watch};
use crate::appliance::{UpdateState, with_slot};

/// Well for so long without a break before a version may stay.
pub const WELL_FOR: Duration = Duration::from_mins(1);

/// A version must be well within so long: a store on a slow disk opens in some seconds, one that must
/// be looked through after a power cut in minutes.
pub const WITHIN: Duration = Duration::from_mins(10);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What there is to confirm.
#[derive(Debug)]
pub enum Boot {
    /// This slot is the one that is always booted: nothing is left to do.
    Settled,
    /// This slot runs once, and has to prove itself.
    OnTrial(Box<OnTrial>),
}

/// A version on trial.
#[derive(Debug)]
pub struct OnTrial {
    /// `config.txt` as it is to be.
    config: String,
    /// What is known of the trial; nothing without the data partition.
    trial: Option<Trial>,
    folder: Option<Folder>,
}

/// Looks at how this boot came about, and writes down what came of an earlier trial. Tells the daemon.
pub fn look(machine: &Machine, now: u64) -> Result<Boot, Error> {
    let folder = machine.folder().map_err(|error| {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "nothing can be kept about updates");
    });
    let folder = folder.ok();
    let tryboot = machine.boot_config(TRYBOOT);
    let config = match machine.config() {
        Ok((_, booted)) if booted == machine.running => {
            let record = settle(machine, folder.as_ref(), now)?;
            machine.tell(&record, false, None);
            return Ok(Boot::Settled);
        }
        Ok((config, _)) => with_slot(&config, machine.running),
        // Garbage, but what booted this slot is there: it is put in its place when all is well.
        Err(error) => match tryboot {
            Ok((tryboot, slot)) if slot == machine.running => Some(tryboot),
            Ok(_) | Err(_) => return Err(error),
        },
    };
    let config = config.ok_or_else(|| Error::NoPrefix(machine.layout.boot.join(CONFIG)))?;
    let mut record = Record::default();
    if let Some(folder) = &folder {
        record = folder.change(|record| {
            if let Some(trial) = record.trial.as_mut().filter(|it| it.slot == machine.running) {
                trial.begun = true;
            }
            record.stands(UpdateState::Confirming, now, None);
        })?;
    } else {
        record.stands(UpdateState::Confirming, now, None);
    }
    machine.tell(&record, true, Some(&machine.version));
    let trial = record.trial.filter(|trial| trial.slot == machine.running);
    Ok(Boot::OnTrial(Box::new(OnTrial { config, trial, folder })))
}

/// This slot is the one that is always booted.
fn settle(machine: &Machine, folder: Option<&Folder>, now: u64) -> Result<Record, Error> {
    let Some(folder) = folder else { return Ok(Record::default()) };
    let holds = running(machine);
    let before = folder.record();
    let boot_id = machine.boot_id();
    let is_over = |trial: &Trial| trial.boot_id != boot_id || boot_id.is_empty();
    let over = before.trial.clone().filter(is_over);
    if over.is_none() && before.holds(machine.running) == Some(&holds) {
        // The usual boot writes nothing.
        return Ok(before);
    }
    folder.change(|record| {
        record.set_holds(machine.running, Some(holds));
        let Some(trial) = over else { return };
        record.trial = None;
        if trial.slot == machine.running {
            record.stands(UpdateState::Idle, now, None);
            return;
        }
        let why = match (&record.last_error, trial.begun) {
            (Some(error), _) => error.clone(),
            (None, true) => "it restarted before it was confirmed, or the power went".to_owned(),
            (None, false) => "it did not come up".to_owned(),
        };
        let why = format!("{} was tried and did not stay: {why}", trial.version);
        record.refuse(trial.version);
        record.stands(UpdateState::RolledBack, now, Some(why));
    })
}

/// What runs, which is well. What cannot be looked at is no way back later, and nothing else.
fn running(machine: &Machine) -> Holds {
    let print = machine.print(machine.running).unwrap_or_else(|error| {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "cannot look at the slot that runs");
        String::new()
    });
    Holds { version: machine.version.clone(), confirmed: true, print }
}

impl OnTrial {
    /// Looks every two seconds until the watch has a verdict: at the network, and at the daemon by
    /// `probe`, which says what is not well with it.
    pub async fn judge<F, P>(&self, machine: &Machine, mut watch: Watch, mut probe: P) -> Verdict
    where
        F: Future<Output = Option<String>>,
        P: FnMut() -> F,
    {
        let began = Instant::now();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            let ill = match self.network(machine) {
                Some(ill) => Some(ill.to_owned()),
                None => probe().await,
            };
            match watch.look(began.elapsed(), Look { ill }) {
                Verdict::Wait => {}
                verdict @ (Verdict::Stay | Verdict::Back(_)) => return verdict,
            }
        }
    }

    fn network(&self, machine: &Machine) -> Option<&'static str> {
        if !network::has_address(&machine.proc) {
            return Some("this machine has no network address");
        }
        let had_route = self.trial.as_ref().is_some_and(|trial| trial.had_route);
        (had_route && !network::has_default_route(&machine.proc))
            .then_some("there is no default route, which the version before had")
    }

    /// It stays: this slot is booted from now on.
    pub fn stay(
        &self,
        machine: &Machine,
        now: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<(), Error> {
        watcher.step("judged well")?;
        let boot = Writable::open(&machine.layout.boot)?;
        fat::replace(&machine.layout.boot, CONFIG, &self.config)?;
        watcher.step("config.txt replaced")?;
        fat::remove(&machine.layout.boot.join(TRYBOOT))?;
        boot.close()?;
        watcher.step("tryboot.txt removed")?;
        let mut record = Record::default();
        if let Some(folder) = &self.folder {
            let holds = running(machine);
            record = folder.change(|record| {
                record.set_holds(machine.running, Some(holds));
                record.trial = None;
                record.stands(UpdateState::Idle, now, None);
            })?;
        } else {
            record.stands(UpdateState::Idle, now, None);
        }
        machine.tell(&record, false, None);
        watcher.step("confirmed")
    }

    /// It goes: why is written down for the version before, which the next restart boots.
    pub fn back(&self, machine: &Machine, why: &str, now: u64) -> Result<(), Error> {
        let mut record = Record::default();
        if let Some(folder) = &self.folder {
            record = folder.change(|record| {
                record.stands(UpdateState::Failed, now, Some(why.to_owned()));
            })?;
        } else {
            record.stands(UpdateState::Failed, now, Some(why.to_owned()));
        }
        machine.tell(&record, true, Some(&machine.version));
        Ok(())
    }
}
