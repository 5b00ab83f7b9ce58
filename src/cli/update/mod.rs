//! `update`: the next version of an appliance, from a server or a file; its confirmation after the
//! restart, and the way back.

mod confirm;
mod shown;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use tokio::runtime::Runtime;

use super::{ConfigArgs, Ended, log, out, runtime};
use crate::appliance::{LAYOUT_FILE, Layout, UpdateState};
use crate::config::Config;
use crate::store;
use crate::units::Span;
use crate::update::{self, Downgrade, Folder, Head, Machine, PATIENCE, Package, Server};

use shown::Shown;

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry update --check
      what runs, what the other slot holds, and what the server of update.url has
  sudo snowberry update
      fetches the newest version, installs it and restarts into it
  sudo snowberry update snowberry-0.2.0-arm64.update
      the same with a file, such as one from a stick; nothing is asked of any server
  sudo snowberry update --rollback
      restarts into the version before, when it ran well once

A line or a plug that fails is no harm: what was fetched is gone on with by the next run, and the
slot that runs is never written. An update counts only when a release key of this image signed it.
docs/updates.md tells more.";

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(super) struct UpdateArgs {
    /// An update file; without it the newest version of the server that update.url names.
    #[arg(conflicts_with_all = ["rollback", "confirm"])]
    file: Option<PathBuf>,
    /// Only say what there is.
    #[arg(long, conflicts_with_all = ["rollback", "confirm"])]
    check: bool,
    /// Restart into the other slot, when it holds a version that ran well.
    #[arg(long, conflicts_with = "confirm")]
    rollback: bool,
    /// After a boot: watch a version that runs on trial, and keep it or go back.
    #[arg(long)]
    confirm: bool,
    /// Install a file although it is not newer than what runs.
    #[arg(long, requires = "file")]
    allow_downgrade: bool,
    /// Do nothing without update.url, with a cache that is not well, and for a version that did not
    /// come up well before: what the timer does.
    #[arg(long, conflicts_with_all = ["file", "check", "rollback", "confirm"])]
    if_configured: bool,
    /// Leave the restart to somebody else; it must be with the argument "0 tryboot".
    #[arg(long)]
    no_reboot: bool,
    /// Where the image says how its card is laid out.
    #[arg(long, value_name = "FILE", default_value = LAYOUT_FILE)]
    appliance: PathBuf,
    /// What the kernel says.
    #[arg(long, value_name = "DIR", default_value = "/proc", hide = true)]
    proc: PathBuf,
    /// How long a version on trial must be well without a break.
    #[arg(long, value_name = "SPAN", hide = true)]
    well_for: Option<Span>,
    /// Within how long.
    #[arg(long, value_name = "SPAN", hide = true)]
    within: Option<Span>,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &UpdateArgs) -> anyhow::Result<Ended> {
    // Confirming must go on whatever a configuration says: the way back depends on it.
    if args.confirm {
        log::start()?;
        return confirm::run(args, &machine(args)?);
    }
    let config = args.config.load()?;
    if args.if_configured && config.update.url.is_none() {
        return Ok(Ended::Well);
    }
    let machine = machine(args)?;
    if args.rollback {
        update::roll_back(&machine, now(), &mut Shown::default()).context("roll back")?;
        out::line(&format!("slot {} is booted once at the restart", machine.running.other()))?;
        return restart(args);
    }
    if args.check {
        return shown::check(args.file.as_deref(), &config, &machine);
    }
    let folder = machine.folder()?;
    let _alone = alone(&folder)?;
    let done = match &args.file {
        Some(file) => of_file(args, file, &machine),
        None => of_server(args, &config, &machine, &folder),
    };
    match done {
        Ok(true) => restart(args),
        Ok(false) => Ok(Ended::Well),
        Err(error) => {
            failed(&machine, &folder, &error);
            Err(error)
        }
    }
}

fn machine(args: &UpdateArgs) -> anyhow::Result<Machine> {
    let layout = Layout::read(&args.appliance)?;
    Ok(Machine::read(layout, &args.proc, store::FORMAT)?)
}

/// Seconds since 1970 by this machine's clock, which may be wrong: nothing but what is shown depends
/// on it.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Two at once would write one slot.
fn alone(folder: &Folder) -> Result<std::fs::File, update::Error> {
    let path = folder.file("lock");
    let error = |act, source| update::Error::Io { act, path: path.clone(), source };
    let lock = std::fs::File::create(&path).map_err(|source| error("make", source))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(update::Error::Busy),
        Err(std::fs::TryLockError::Error(source)) => Err(error("lock", source)),
    }
}

/// Whether there is something to restart into.
fn of_file(args: &UpdateArgs, file: &Path, machine: &Machine) -> anyhow::Result<bool> {
    let package = Package::open(file, &machine.keys()?)?;
    let downgrade = if args.allow_downgrade { Downgrade::Allowed } else { Downgrade::Refused };
    install(machine, &package, downgrade)?;
    Ok(true)
}

fn of_server(
    args: &UpdateArgs,
    config: &Config,
    machine: &Machine,
    folder: &Folder,
) -> anyhow::Result<bool> {
    let url = config.update.url.as_deref().context(
        "no update.url is configured: give a FILE, or set it in the configuration (without \
         update.url nothing is asked of anybody)",
    )?;
    let runtime = runtime::one_thread()?;
    let keys = machine.keys()?;
    let server = Server::new(&config.update, url, PATIENCE)?;
    let head = runtime::wait(&runtime, server.latest(&keys))?;
    let version = &head.manifest.version;
    match update::admit(&head.manifest, machine, Downgrade::Refused) {
        Err(update::Error::NotNewer { .. }) => {
            out::line(&format!("{} runs, the server has {version}", machine.version))?;
            // The trouble of an earlier night is over; that of a trial is not.
            if folder.record().state == UpdateState::Failed {
                let record =
                    folder.change(|record| record.stands(UpdateState::Idle, now(), None))?;
                machine.tell(&record, false, None);
            }
            return Ok(false);
        }
        admitted => admitted?,
    }
    if args.if_configured {
        if folder.record().refused.contains(version) {
            out::line(&format!(
                "{version} did not come up well here, or was taken back: left out"
            ))?;
            return Ok(false);
        }
        // It could not be confirmed, and would be refused for good for what is none of its faults.
        if let Some(ill) = runtime::wait(&runtime, confirm::probe(&machine.layout.health)) {
            anyhow::bail!("{version} is not installed while all is not well: {ill}");
        }
    }
    let record = folder.change(|record| record.stands(UpdateState::Downloading, now(), None))?;
    machine.tell(&record, false, Some(version));
    let package = fetched(&runtime, (&server, &head), folder, machine)?;
    install(machine, &package, Downgrade::Refused)?;
    update::forget(folder)?;
    Ok(true)
}

/// The file of this head, whole and verified. One that was gone on with and is not right is fetched
/// once more from its start.
fn fetched(
    runtime: &Runtime,
    (server, head): (&Server, &Head),
    folder: &Folder,
    machine: &Machine,
) -> anyhow::Result<Package> {
    let keys = machine.keys()?;
    let mut again = false;
    loop {
        let mut shown = Shown::default();
        let path = runtime::wait(runtime, server.fetch(head, folder, &mut shown))?;
        let package = Package::open(&path, &keys)?;
        match package.verify(&mut shown) {
            Err(update::Error::Damaged { .. }) if !again => {
                again = true;
                update::forget(folder)?;
            }
            verified => {
                verified?;
                return Ok(package);
            }
        }
    }
}

fn install(machine: &Machine, package: &Package, downgrade: Downgrade) -> anyhow::Result<()> {
    let mut shown = Shown::default();
    update::install(machine, package, downgrade, now(), &mut shown)
        .context("install the update")?;
    let version = &package.head().manifest.version;
    let slot = machine.running.other();
    out::line(&format!("{version} is in slot {slot}, which is booted once at the restart"))
}

/// What is shown on the page until the next try. A version on trial is not talked over.
fn failed(machine: &Machine, folder: &Folder, error: &anyhow::Error) {
    let is_settled = machine.config().is_ok_and(|(_, booted)| booted == machine.running);
    let busy = error.downcast_ref().is_some_and(|it| matches!(it, update::Error::Busy));
    if !is_settled || busy {
        return;
    }
    let told = Some(format!("{error:#}"));
    let change = folder.change(|record| record.stands(UpdateState::Failed, now(), told));
    match change {
        Ok(record) => machine.tell(&record, false, None),
        Err(error) => out::note(&format!("snowberry: {error}")),
    }
}

/// Into the slot that `tryboot.txt` names, once: the firmware takes the argument for that.
fn restart(args: &UpdateArgs) -> anyhow::Result<Ended> {
    if args.no_reboot {
        out::line("restart with `reboot \"0 tryboot\"` to try it")?;
        return Ok(Ended::Well);
    }
    systemctl(&["reboot", "--reboot-argument=0 tryboot"])
}

/// Back into the slot of `config.txt`.
fn systemctl(arguments: &[&str]) -> anyhow::Result<Ended> {
    let ended = Command::new("systemctl").args(arguments).status().context("run systemctl")?;
    anyhow::ensure!(ended.success(), "systemctl {} ended with {ended}", arguments.join(" "));
    Ok(Ended::Well)
}
