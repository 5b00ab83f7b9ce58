//! Says `<name>.local` and the service to the house: takes a name that nobody else has, follows the
//! interfaces, gives a name up to who has it too, and says goodbye.
//!
//! mdns-sd's own probing is not used, because it renames per interface and record, takes
//! systemd-resolved's link-local address of this same machine for a stranger's, and never looks
//! again once it has announced. So the name is asked for first, and listened for as long as it is
//! ours; whatever answers with an address of this machine is no conflict.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use mdns_sd::{DaemonEvent, HostnameResolutionEvent, Receiver, ServiceInfo};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::interfaces::{Selection, is_said};
use super::names::{NAMES_MAX, candidate, keeps};
use super::speaker::{self, Speaker};
use super::{Announced, Config, Error, SERVICE_TYPE, txt};

/// How long others have to say that a name is theirs: mdns-sd asks at once and again after a
/// second, since Wi-Fi loses multicast packets.
const CLAIM_WAIT: Duration = Duration::from_millis(1500);

/// Rest after so many names were taken that somebody must be claiming all of them.
const NAMES_PAUSE: Duration = Duration::from_mins(1);

/// Between two repetitions of what we say to who has lost the name to us: it will leave at the
/// first, and two that both insist must not shout.
const DEFEND_PAUSE: Duration = Duration::from_secs(10);

/// Before mDNS is tried again when its thread ended or could not start.
const AGAIN_PAUSE: Duration = Duration::from_secs(30);

/// What `stop` waits for the goodbyes: two answers of mdns-sd's thread and the pause between them.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// Announces a cache until it is stopped or dropped. It owns its thread, so that it answers the
/// house however busy the daemon is.
#[derive(Debug)]
pub struct Announcer {
    name: watch::Receiver<String>,
    running: Running,
}

#[derive(Debug)]
enum Running {
    /// Nothing is announced. The sender keeps the name's watchers waiting for ever.
    Silent {
        _taken: watch::Sender<String>,
    },
    Thread {
        stop: CancellationToken,
        ended: oneshot::Receiver<()>,
        thread: thread::JoinHandle<()>,
    },
}

impl Announcer {
    /// Announces on the interfaces of the LAN that these sockets listen on. Switched off, or with
    /// sockets on loopback only, it starts no thread and sends nothing.
    pub fn start(
        config: &Config,
        announced: Announced,
        listening: &[SocketAddr],
    ) -> Result<Self, Error> {
        let (taken, name) = watch::channel(announced.name.clone());
        let selection = Selection::new(config.interfaces.clone(), Some(listening));
        if !config.enabled || selection.is_silent() {
            return Ok(Self { name, running: Running::Silent { _taken: taken } });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(Error::Thread)?;
        let stop = CancellationToken::new();
        let (end, ended) = oneshot::channel();
        let voice = Voice { announced, selection, taken, stop: stop.clone() };
        let thread = thread::Builder::new().name("mdns-announce".to_owned()).spawn(move || {
            runtime.block_on(voice.speak());
            // Dropped at the end, which is all that `stop` waits for.
            drop(end);
        });
        let thread = thread.map_err(Error::Thread)?;
        Ok(Self { name, running: Running::Thread { stop, ended, thread } })
    }

    /// Whether anything is announced, or would be once there is a network.
    pub const fn is_speaking(&self) -> bool {
        matches!(self.running, Running::Thread { .. })
    }

    /// The host label that was taken, such as `snowberry-2` when `snowberry` is another machine's.
    pub fn name(&self) -> watch::Receiver<String> {
        self.name.clone()
    }

    /// Says goodbye and ends.
    pub async fn stop(mut self) {
        let silent = Running::Silent { _taken: watch::channel(String::new()).0 };
        if let Running::Thread { stop, ended, thread } =
            std::mem::replace(&mut self.running, silent)
        {
            stop.cancel();
            if tokio::time::timeout(STOP_WAIT, ended).await.is_ok() && thread.join().is_err() {
                error!("the announcing thread panicked");
            }
        }
    }
}

impl Drop for Announcer {
    /// The thread says goodbye and ends by itself.
    fn drop(&mut self) {
        if let Running::Thread { stop, .. } = &self.running {
            stop.cancel();
        }
    }
}

/// What the thread owns.
struct Voice {
    announced: Announced,
    selection: Selection,
    taken: watch::Sender<String>,
    stop: CancellationToken,
}

impl Voice {
    async fn speak(self) {
        loop {
            let ended = match Speaker::open(self.selection.clone()) {
                Ok((speaker, interfaces)) => Claimant::new(&self, speaker, interfaces).run().await,
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            error!(
                error = &error as &dyn std::error::Error,
                pause_s = AGAIN_PAUSE.as_secs(),
                "mdns failed, will try again"
            );
            if self.stop.run_until_cancelled(tokio::time::sleep(AGAIN_PAUSE)).await.is_none() {
                return;
            }
        }
    }
}

/// What one wait brought.
enum Event {
    Stop,
    Deadline,
    /// An address came or went.
    Interfaces,
    /// Addresses of other machines that have the name that is asked for.
    Others(Vec<IpAddr>),
}

/// What is announced now.
struct Standing {
    fullname: String,
    addresses: Vec<IpAddr>,
    defended: Option<Instant>,
}

struct Claimant<'a> {
    voice: &'a Voice,
    speaker: Speaker,
    interfaces: Receiver<DaemonEvent>,
    holders: Option<Receiver<HostnameResolutionEvent>>,
    /// Ours on the interfaces where mDNS is spoken.
    addresses: BTreeSet<IpAddr>,
    standing: Option<Standing>,
    /// Which name is tried, from 1.
    nth: u32,
}

impl<'a> Claimant<'a> {
    fn new(voice: &'a Voice, speaker: Speaker, interfaces: Receiver<DaemonEvent>) -> Self {
        let addresses = BTreeSet::new();
        Self { voice, speaker, interfaces, holders: None, addresses, standing: None, nth: 1 }
    }

    /// Returns when it was stopped and has said goodbye.
    async fn run(mut self) -> Result<(), mdns_sd::Error> {
        while !self.voice.stop.is_cancelled() {
            if self.said().is_empty() {
                self.withdraw().await;
                self.next(None).await?;
            } else if self.claim().await? {
                self.announce()?;
                self.hold().await?;
            }
        }
        self.withdraw().await;
        self.speaker.close().await;
        Ok(())
    }

    fn label(&self) -> String {
        candidate(&self.voice.announced.name, self.nth)
    }

    fn said(&self) -> Vec<IpAddr> {
        self.addresses.iter().copied().filter(|address| is_said(*address)).collect()
    }

    /// Asks the house for the name, on interfaces that may be new. Whether it is ours now; not, when
    /// it is somebody else's, or when something changed and all must be looked at again.
    async fn claim(&mut self) -> Result<bool, mdns_sd::Error> {
        self.holders = Some(self.speaker.ask(&host(&self.label()))?);
        let (deadline, said) = (Instant::now() + CLAIM_WAIT, self.said());
        loop {
            match self.next(Some(deadline)).await? {
                Event::Deadline => return Ok(true),
                Event::Stop => return Ok(false),
                Event::Interfaces if self.said() != said => return Ok(false),
                Event::Interfaces => {}
                Event::Others(others) => {
                    self.give_way(&others).await?;
                    return Ok(false);
                }
            }
        }
    }

    /// Another machine has the name: ours is the next one.
    async fn give_way(&mut self, others: &[IpAddr]) -> Result<(), mdns_sd::Error> {
        let lost = self.label();
        self.withdraw().await;
        self.nth += 1;
        if self.nth <= NAMES_MAX {
            warn!(name = lost, next = self.label(), holder = ?others,
                "another machine has this name, the next one is tried");
            return Ok(());
        }
        warn!(
            name = lost,
            names = NAMES_MAX,
            pause_s = NAMES_PAUSE.as_secs(),
            "other machines have all the names that are tried, will try again"
        );
        self.nth = 1;
        self.holders = None;
        let deadline = Instant::now() + NAMES_PAUSE;
        while !matches!(self.next(Some(deadline)).await?, Event::Deadline | Event::Stop) {}
        Ok(())
    }

    fn announce(&mut self) -> Result<(), mdns_sd::Error> {
        let (label, addresses) = (self.label(), self.said());
        let txt = txt::write(&self.voice.announced);
        let mut service = ServiceInfo::new(
            SERVICE_TYPE,
            &label,
            &host(&label),
            addresses.as_slice(),
            self.voice.announced.port,
            txt.as_slice(),
        )?;
        service.set_requires_probe(false);
        let fullname = service.get_fullname().to_owned();
        self.speaker.announce(service)?;
        info!(name = %format_args!("{label}.local"), ?addresses, "announced in the house");
        self.standing = Some(Standing { fullname, addresses, defended: None });
        self.voice.taken.send_if_modified(|taken| {
            let is_new = *taken != label;
            *taken = label;
            is_new
        });
        Ok(())
    }

    /// Keeps the name until it is lost, the addresses change, or the end.
    async fn hold(&mut self) -> Result<(), mdns_sd::Error> {
        loop {
            match self.next(None).await? {
                Event::Stop => return Ok(()),
                Event::Deadline => {}
                Event::Interfaces => {
                    let said = self.said();
                    if self.standing.as_ref().is_none_or(|it| it.addresses != said) {
                        return Ok(());
                    }
                }
                Event::Others(others) => {
                    if !keeps(&self.said(), &others) {
                        return self.give_way(&others).await;
                    }
                    self.defend(&others)?;
                }
            }
        }
    }

    /// Both had taken the name, and it stays ours: said again, since the other's announcement took
    /// ours out of everybody's memory.
    fn defend(&mut self, others: &[IpAddr]) -> Result<(), mdns_sd::Error> {
        let now = Instant::now();
        let defended = self.standing.as_ref().and_then(|it| it.defended);
        if defended.is_some_and(|last| now.duration_since(last) < DEFEND_PAUSE) {
            return Ok(());
        }
        warn!(name = self.label(), holder = ?others, "another machine says our name, it stays ours");
        self.announce()?;
        if let Some(standing) = &mut self.standing {
            standing.defended = Some(now);
        }
        Ok(())
    }

    async fn withdraw(&mut self) {
        if let Some(standing) = self.standing.take() {
            self.speaker.withdraw(&standing.fullname).await;
            info!(name = %format_args!("{}.local", self.label()), "withdrawn from the house");
        }
    }

    /// Waits for the next thing that matters.
    async fn next(&mut self, deadline: Option<Instant>) -> Result<Event, mdns_sd::Error> {
        loop {
            let holders = self.holders.as_ref();
            tokio::select! {
                biased;
                () = self.voice.stop.cancelled() => return Ok(Event::Stop),
                told = self.interfaces.recv_async() => {
                    let told = told.map_err(|_| mdns_sd::Error::DaemonShutdown)?;
                    if self.note(&told) {
                        return Ok(Event::Interfaces);
                    }
                }
                told = async {
                    match holders {
                        Some(holders) => holders.recv_async().await,
                        None => std::future::pending().await,
                    }
                } => match told {
                    Ok(HostnameResolutionEvent::AddressesFound(_, addresses)) => {
                        let others = self.speaker.of_others(speaker::plain(addresses));
                        if !others.is_empty() {
                            return Ok(Event::Others(others));
                        }
                    }
                    Ok(_) => {}
                    // mdns-sd closes what is not read fast enough; it is asked for again.
                    Err(_) => self.holders = Some(self.speaker.ask(&host(&self.label()))?),
                },
                () = async {
                    match deadline {
                        Some(deadline) => tokio::time::sleep_until(deadline).await,
                        None => std::future::pending().await,
                    }
                } => return Ok(Event::Deadline),
            }
        }
    }

    /// Whether an address came or went.
    fn note(&mut self, event: &DaemonEvent) -> bool {
        if let DaemonEvent::IpAdd(address) = event {
            self.addresses.insert(*address)
        } else if let DaemonEvent::IpDel(address) = event {
            self.addresses.remove(address)
        } else {
            false
        }
    }
}

fn host(label: &str) -> String {
    format!("{label}.local.")
}
