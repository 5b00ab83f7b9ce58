//! `doctor`: on a machine that uses a cache, from the outside in, one line for each thing that must
//! be right, ok or with what to do. It changes nothing and needs no privilege.

mod advice;
mod machine;
mod names;
mod patient;
mod reach;
mod settings;
mod trial;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use rustls_pki_types::ServerName;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::lines::Lines;
use super::{ConfigArgs, Ended, check, runtime};
use crate::config::Config;
use crate::forward::{self, joined::Joined};
use crate::mdns::{Browser, Found};
use crate::nix::{CacheInfo, StorePath};
use crate::pinned::{self, CaFingerprint};
use advice::Way;
use names::Resolved;
use patient::Patient;
use reach::{Answer, Bounds, Door};
use settings::{Settings, Whose};

/// How long caches have to say that they are there: they answer within a tenth of a second, and
/// mdns-sd asks again after one.
const LISTEN_WAIT: Duration = Duration::from_millis(2500);

/// `nix config show` takes a tenth of a second, and ten times that on a cold Pi.
const NIX_WAIT: Duration = Duration::from_secs(20);

/// A nix-cache-info has three lines.
const SMALL: Bounds = Bounds { read_max: 64 << 10, kept_max: 64 << 10 };

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry doctor
      the cache that this machine has joined, else one that is heard in the house
  snowberry doctor snowberry.local
  snowberry doctor 192.168.1.20:8500 --path /nix/store/...-hello-2.12
  snowberry doctor --json | jq '.[] | select(.ok | not)'

A narinfo and a NAR of a path that is here too are asked for, and their time is told; the cache may
fetch the NAR for it. Exit code 1 when something is wrong.";

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The cache, HOST or HOST:PORT.
    host: Option<String>,
    /// The store path to ask for.
    #[arg(long, value_name = "STORE-PATH")]
    path: Option<String>,
    /// Print one JSON list.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    let path = args.path.as_deref().map(|text| {
        let plain = config.store_dir.strip(text).or_else(|_| StorePath::parse(text));
        plain.with_context(|| format!("--path {text}"))
    });
    let path = path.transpose()?;
    let runtime = runtime::one_thread()?;
    let mut examination = Examination { lines: Lines::new(args.json), config, path };
    let told = runtime::wait(&runtime, examination.whole(args.host.as_deref()));
    // A resolver or a nix that still runs must not hold up the end.
    runtime.shutdown_background();
    told?;
    examination.lines.end()
}

struct Examination {
    lines: Lines,
    config: Config,
    path: Option<StorePath>,
}

impl Examination {
    async fn whole(&mut self, host: Option<&str>) -> anyhow::Result<()> {
        self.lines.tell("clock", check::clock(SystemTime::now()))?;
        let joined = self.joined(host.is_some())?;
        let heard = self.house().await?;
        let patient = match (host, &joined) {
            (Some(host), joined) => Some(Patient::named(host, joined.as_ref(), &heard)),
            (None, Some(joined)) => Some(Patient::joined(joined, &heard)),
            (None, None) => heard.first().map(Patient::heard),
        };
        let Some(mut patient) = patient else {
            let wrong = "none is joined and none is heard: is it on, and in this network? \
                         `snowberry join HOST` names it";
            return self.lines.tell("cache", Err(wrong.to_owned()));
        };
        let resolved = self.name(&mut patient, &heard).await?;
        let door = self.doors(&patient).await?;
        let info = match &door {
            Some(door) => self.cache_info(door).await?,
            None => None,
        };
        self.nix(&patient, &resolved, info.as_ref(), door).await?;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.lines.tell("spool", machine::spool(&self.config.spool, now_s))
    }

    /// The cache of this machine.
    fn joined(&mut self, is_named: bool) -> anyhow::Result<Option<Joined>> {
        let (joined, told) = match Joined::read(&self.config.forward.joined_file) {
            Ok(Some(joined)) => {
                let told = format!("{} ({})", joined.name, joined.host);
                (Some(joined), Ok(told))
            }
            Ok(None) if is_named => (None, Ok("none, so another one can be looked at".to_owned())),
            Ok(None) => (None, Err("none: `snowberry join` finds one and trusts it".to_owned())),
            Err(wrong) => (None, Err(reach::with_causes(&wrong))),
        };
        self.lines.tell("joined", told)?;
        Ok(joined)
    }

    /// Who is heard in the house.
    async fn house(&mut self) -> anyhow::Result<Vec<Found>> {
        if !self.config.mdns.enabled {
            self.lines.tell("house", Ok("mdns.enabled is false, so nobody is heard".to_owned()))?;
            return Ok(Vec::new());
        }
        let heard = match Browser::start(&self.config.mdns) {
            Ok(browser) => {
                // All of them are waited for: which one is ours is seen among all.
                tokio::time::sleep(LISTEN_WAIT).await;
                browser.found().borrow().to_vec()
            }
            Err(error) => {
                self.lines.tell("house", Err(reach::with_causes(&error)))?;
                return Ok(Vec::new());
            }
        };
        let shown: Vec<String> = heard.iter().map(|it| format!("{}.local", it.name)).collect();
        let told = match shown.len() {
            0 => "no cache is heard by multicast DNS; a cache of another network is found by its \
                  address only"
                .to_owned(),
            _ => format!("heard is {}", shown.join(", ")),
        };
        self.lines.tell("house", Ok(told))?;
        Ok(heard)
    }

    async fn name(&mut self, patient: &mut Patient, heard: &[Found]) -> anyhow::Result<Resolved> {
        let resolved = names::resolve(&patient.host).await;
        let is_heard = heard
            .iter()
            .any(|it| it.addresses.iter().any(|address| patient.addresses.contains(address)));
        let told = names::told(&patient.host, &resolved, patient.is_local(), is_heard);
        self.lines.tell("name", told)?;
        for address in &resolved.by_programs {
            if !patient.addresses.contains(address) {
                patient.addresses.push(*address);
            }
        }
        Ok(resolved)
    }

    /// Whether it answers, plain and by TLS; the better door of the two.
    async fn doors(&mut self, patient: &Patient) -> anyhow::Result<Option<Door>> {
        let plain = reach::first(&patient.addresses, patient.port).await;
        let told =
            plain.as_ref().map(|(at, took)| format!("{at} answers in {} ms", took.as_millis()));
        let told = told.map_err(|wrong| {
            let wrong = if wrong.is_empty() { "no address is known" } else { wrong };
            format!("{wrong}: is the cache on, and is this machine in its network?")
        });
        self.lines.tell("port", told)?;
        let plain = plain.ok().map(|(at, _)| Door::plain(at));
        let Some(tls_port) = patient.tls_port else {
            self.lines
                .tell("TLS", Ok("the cache has none, so tokens must not go there".to_owned()))?;
            return Ok(plain);
        };
        let (told, tls) = match self.tls(patient, tls_port, plain.as_ref()).await {
            Ok((told, door)) => (Ok(told), door),
            Err(wrong) => (Err(wrong), None),
        };
        self.lines.tell("TLS", told)?;
        Ok(tls.or(plain))
    }

    async fn tls(
        &self,
        patient: &Patient,
        port: u16,
        plain: Option<&Door>,
    ) -> Result<(String, Option<Door>), String> {
        let Some((file, fingerprint)) = &patient.ca else {
            let said = patient.ca_said.map(|it| it.to_string()).unwrap_or_default();
            let told = format!("it says that its CA is {said}: `snowberry join` holds on to it");
            return Ok((told, None));
        };
        let again = "`snowberry join` again writes it";
        let pem = std::fs::read(file).map_err(|error| {
            format!("the CA of the cache, {}: {error}: {again}", file.display())
        })?;
        let held = CaFingerprint::of_pem(&pem)
            .map_err(|error| format!("{}: {error}: {again}", file.display()))?;
        if held != *fingerprint {
            return Err(format!(
                "{} holds {held}, but joined was {fingerprint}: {again}",
                file.display()
            ));
        }
        let mut config = pinned::client_config(&pem).map_err(|error| reach::with_causes(&error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(patient.tls_name.clone())
            .map_err(|error| format!("{}: {error}", patient.tls_name))?;
        let addresses: Vec<IpAddr> = match plain {
            Some(plain) => vec![plain.at.ip()],
            None => patient.addresses.clone(),
        };
        let (at, _) = reach::first(&addresses, port).await?;
        let authority = patient.tls_name.clone();
        let door = Door { at, authority, tls: Some((name, Arc::new(config))) };
        let answer = door.get("/nix-cache-info", SMALL).await?;
        let took = answer.head_took.as_millis();
        Ok((format!("{at} shows a certificate of the CA {held}, in {took} ms"), Some(door)))
    }

    async fn cache_info(&mut self, door: &Door) -> anyhow::Result<Option<CacheInfo>> {
        let (told, info) = match door.get("/nix-cache-info", SMALL).await {
            Ok(answer) => {
                self.lines
                    .tell("clock of the cache", machine::clock(SystemTime::now(), answer.date))?;
                read_info(&answer, self.config.store_dir.as_str())
            }
            Err(wrong) => (Err(wrong), None),
        };
        self.lines.tell("nix-cache-info", told)?;
        Ok(info)
    }

    /// What Nix on this machine makes of it.
    async fn nix(
        &mut self,
        patient: &Patient,
        resolved: &Resolved,
        info: Option<&CacheInfo>,
        door: Option<Door>,
    ) -> anyhow::Result<()> {
        let (user, of_nix) = settings_of(Whose::User).await;
        let how = if of_nix { "as nix tells them" } else { "as its files say, since nix does not" };
        self.lines.tell("settings of Nix", Ok(how.to_owned()))?;
        let default = vec![forward::DEFAULT_LISTEN.parse().context("a constant")?];
        let forward: Vec<SocketAddr> = self.config.forward.listen.clone().unwrap_or(default);
        let ways = patient.ways(&forward);
        let found = ways.substituter(&user);
        let resolves = resolved.by_nix;
        self.lines.tell("substituter", advice::substituter(found.as_ref(), &ways, resolves))?;
        let asker = machine::asker();
        let mut door = door;
        if let Some(found) = &found {
            let (machine, _) = settings_of(Whose::Machine).await;
            self.lines.tell("allowed", advice::allowed(found, &machine, &asker))?;
            let priority = info.and_then(|info| info.priority).map(i64::from);
            self.lines.tell("order", advice::order(found, priority, &user))?;
            if found.way == Way::Forwarder {
                door = self.forwarder(forward.first().copied()).await?.or(door);
            }
        }
        self.lines.tell("absent paths", advice::absence(&user))?;
        self.lines.tell("key", advice::key(patient.public_key.as_deref(), &user))?;
        self.lines.tell("netrc", machine::netrc(user.text("netrc-file"), &asker))?;
        let Some(door) = door else { return Ok(()) };
        let paths = match &self.path {
            Some(path) => vec![path.clone()],
            None => trial::candidates(&self.config.store_dir),
        };
        let tried = trial::run(&door, &paths).await;
        self.lines.tell("narinfo", tried.narinfo)?;
        tried.nar.map_or(Ok(()), |nar| self.lines.tell("NAR", nar))
    }

    async fn forwarder(&mut self, at: Option<SocketAddr>) -> anyhow::Result<Option<Door>> {
        let Some(at) = at else { return Ok(None) };
        let door = Door::plain(at);
        let told = match door.get("/nix-cache-info", SMALL).await {
            Ok(answer) => read_info(&answer, self.config.store_dir.as_str()).0,
            Err(wrong) => Err(format!(
                "{wrong}: start it (systemctl start snowberry-forward.socket, or `snowberry forward`)"
            )),
        };
        let answers = told.is_ok();
        self.lines.tell("forwarder", told)?;
        Ok(answers.then_some(door))
    }
}

fn read_info(answer: &Answer, store_dir: &str) -> (Result<String, String>, Option<CacheInfo>) {
    if answer.status != 200 {
        let wrong =
            format!("the answer was {}: this is no Nix cache, or not a well one", answer.status);
        return (Err(wrong), None);
    }
    match CacheInfo::parse(&answer.body) {
        Ok(info) if info.store_dir.as_str() == store_dir => {
            let priority = info.priority.unwrap_or(0);
            let told = format!("it serves {store_dir} with priority {priority}");
            (Ok(told), Some(info))
        }
        Ok(info) => {
            let other = info.store_dir.as_str();
            let wrong = format!("it serves {other}, and Nix here has {store_dir}: it is of no use");
            (Err(wrong), Some(info))
        }
        Err(error) => (Err(format!("this is no Nix cache: {error}")), None),
    }
}

/// The settings, and whether Nix itself told them.
async fn settings_of(whose: Whose) -> (Settings, bool) {
    let asked = timeout(NIX_WAIT, spawn_blocking(move || Settings::of_nix(whose))).await;
    match asked.ok().and_then(Result::ok).flatten() {
        Some(settings) => (settings, true),
        None => (Settings::of_files(whose), false),
    }
}
