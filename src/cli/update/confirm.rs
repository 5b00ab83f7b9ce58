//! `update --confirm`: run after each boot by its unit, which the cache waits for until it is known
//! whether this is a trial.

use std::time::Duration;

use anyhow::Context;

use super::super::{Ended, exchange, out, runtime};
use super::shown::Shown;
use super::{UpdateArgs, now, systemctl};
use crate::systemd;
use crate::update::{Boot, Machine, Verdict, WELL_FOR, WITHIN, Watch, look};

/// A cache that takes longer on its own machine is not well: it answers this from memory.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// What `/healthz` says when the store is open.
const WELL: &[u8] = b"ok";

pub(super) fn run(args: &UpdateArgs, machine: &Machine) -> anyhow::Result<Ended> {
    let boot = look(machine, now());
    // Whatever was found: the cache must not wait for it.
    systemd::ready();
    let trial = match boot.context("look at how this boot came about")? {
        Boot::Settled => return Ok(Ended::Well),
        Boot::OnTrial(trial) => trial,
    };
    let slot = machine.running;
    out::line(&format!("{} runs on trial in slot {slot}", machine.version))?;
    let watch = Watch::new(
        args.well_for.map_or(WELL_FOR, |span| span.0),
        args.within.map_or(WITHIN, |span| span.0),
    );
    let health = &machine.layout.health;
    let verdict = runtime::alone(trial.judge(machine, watch, || probe(health)))?;
    let why = match verdict {
        Verdict::Stay => match trial.stay(machine, now(), &mut Shown::default()) {
            Ok(()) => {
                out::line(&format!(
                    "{} stays: slot {slot} is booted from now on",
                    machine.version
                ))?;
                return Ok(Ended::Well);
            }
            // It runs well, and goes at the next restart: that is to be seen, and no reason to
            // restart now.
            Err(error) => {
                trial.back(machine, &error.to_string(), now())?;
                return Err(error).context("keep this version");
            }
        },
        // The watch is over: no verdict is left open.
        Verdict::Back(why) => why,
        Verdict::Wait => "it was not watched to the end".to_owned(),
    };
    out::note(&format!(
        "snowberry: {} goes, the version before comes back: {why}",
        machine.version
    ));
    trial.back(machine, &why, now())?;
    if !args.no_reboot {
        systemctl(&["reboot"])?;
    }
    Ok(Ended::Badly)
}

/// What is not well with the cache of this machine, or nothing.
pub(super) async fn probe(authority: &str) -> Option<String> {
    match tokio::time::timeout(ANSWER_WAIT, exchange::get(authority, "/healthz")).await {
        Ok(Ok(body)) if body.trim_ascii() == WELL => None,
        Ok(Ok(body)) => Some(String::from_utf8_lossy(&body).trim().chars().take(200).collect()),
        Ok(Err(error)) => Some(format!("the cache does not answer at {authority}: {error:#}")),
        Err(_) => Some(format!("the cache did not answer at {authority} within {ANSWER_WAIT:?}")),
    }
}
