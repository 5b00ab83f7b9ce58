//! Whether Nix on this machine would use the cache, from its settings. Pure.

use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use super::settings::Settings;

/// The priority of a cache that says none in the URL, where it is known.
const CACHE_NIXOS_ORG: (&str, i64) = ("cache.nixos.org", 40);

/// What a path that is absent is remembered for, in seconds, before it hurts: what was pushed in
/// between is not seen for so long.
const NEGATIVE_TTL_MAX_S: u64 = 300;

/// What `join` writes.
const LINES: &str = "`snowberry join` writes it";

/// Where the cache is, by whatever URL.
#[derive(Debug, Clone, Default)]
pub(super) struct Ways {
    /// Where the forwarder of this machine listens.
    pub(super) forward: Vec<SocketAddr>,
    /// Names of the cache, in lower case.
    pub(super) names: Vec<String>,
    /// Addresses of the cache.
    pub(super) addresses: Vec<IpAddr>,
    /// Ports of the cache.
    pub(super) ports: Vec<u16>,
}

/// How Nix comes to the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Forwarder,
    Directly,
}

/// A substituter of Nix that leads to the cache.
#[derive(Debug, Clone)]
pub(super) struct Substituter {
    /// As it is written.
    pub(super) text: String,
    url: Url,
    pub(super) way: Way,
}

impl Ways {
    /// The first substituter that leads to the cache.
    pub(super) fn substituter(&self, settings: &Settings) -> Option<Substituter> {
        settings.list("substituters").find_map(|text| {
            let url = Url::parse(text).ok()?;
            let way = self.way(&url)?;
            Some(Substituter { text: text.to_owned(), url, way })
        })
    }

    fn way(&self, url: &Url) -> Option<Way> {
        if !["http", "https"].contains(&url.scheme()) {
            return None;
        }
        let (host, port) = (url.host()?, url.port_or_known_default()?);
        let address = match &host {
            Host::Ipv4(v4) => Some(IpAddr::V4(*v4)),
            Host::Ipv6(v6) => Some(IpAddr::V6(*v6)),
            Host::Domain(_) => None,
        };
        let name = host.to_string().trim_end_matches('.').to_ascii_lowercase();
        let is_forward = |at: &SocketAddr| {
            at.port() == port && (address == Some(at.ip()) || name == "localhost")
        };
        if self.forward.iter().any(is_forward) {
            return Some(Way::Forwarder);
        }
        let is_its = address.is_some_and(|it| self.addresses.contains(&it.to_canonical()))
            || self.names.contains(&name);
        (is_its && self.ports.contains(&port)).then_some(Way::Directly)
    }
}

/// Whether Nix asks it. `resolves` is what Nix itself makes of the name; `None` is unknown.
pub(super) fn substituter(
    found: Option<&Substituter>,
    ways: &Ways,
    resolves: Option<bool>,
) -> Result<String, String> {
    let forward = ways.forward.first().map(|at| format!("http://{at}")).unwrap_or_default();
    let Some(found) = found else {
        return Err(format!(
            "Nix does not ask this cache: {LINES}, or add to nix.conf: extra-substituters = {forward}"
        ));
    };
    let text = &found.text;
    match found.way {
        Way::Forwarder => Ok(format!("{text}, the forwarder of this machine")),
        Way::Directly if resolves == Some(false) => Err(format!(
            "{text} cannot be resolved by Nix, which asks /etc/hosts and DNS and on Linux never \
             multicast DNS, whatever other programs here do: write {forward} instead, with \
             `snowberry forward` running, or the address of the cache"
        )),
        Way::Directly => Ok(format!(
            "{text}, directly (with the cache away, Nix before 2.32 fails its builds and later \
             ones wait: {forward} with `snowberry forward` does neither)"
        )),
    }
}

/// Who asks the daemon to use a substituter.
#[derive(Debug, Clone, Default)]
pub(super) struct Asker {
    pub(super) user: String,
    pub(super) groups: Vec<String>,
    /// Whether Nix goes through a daemon here.
    pub(super) has_daemon: bool,
}

/// Whether the daemon takes this substituter from this user.
pub(super) fn allowed(
    found: &Substituter,
    machine: &Settings,
    asker: &Asker,
) -> Result<String, String> {
    let is_same = |text: &str| plain(text) == plain(&found.text);
    if asker.user == "root" || !asker.has_daemon {
        return Ok("no daemon is in between".to_owned());
    }
    if machine.list("substituters").any(is_same) {
        return Ok("it is in the settings of the machine".to_owned());
    }
    if machine.list("trusted-substituters").any(is_same) {
        return Ok("it is among trusted-substituters".to_owned());
    }
    let is_user = |text: &str| match text.strip_prefix('@') {
        Some(group) => asker.groups.iter().any(|it| it == group),
        None => text == "*" || text == asker.user,
    };
    if machine.list("trusted-users").any(is_user) {
        return Ok(format!("{} is among trusted-users", asker.user));
    }
    Err(format!(
        "the daemon ignores it, because only the settings of {} name it: add to /etc/nix/nix.conf \
         extra-trusted-substituters = {}, and start nix-daemon again",
        asker.user,
        plain(&found.text)
    ))
}

/// Without the settings of the substituter and the slash at the end, as Nix compares them.
fn plain(text: &str) -> &str {
    text.split('?').next().unwrap_or(text).trim_end_matches('/')
}

/// Whether the cache's own key is trusted, as the daemon will see it. Without it, what the house
/// built is not taken; what other caches signed is.
pub(super) fn key(key: Option<&str>, settings: &Settings) -> Result<String, String> {
    let Some(key) = key else {
        return Ok("the cache has none of its own: what other caches signed is taken".to_owned());
    };
    let name = |key: &str| key.split(':').next().unwrap_or_default().to_owned();
    let mut trusted = settings.list("trusted-public-keys");
    if trusted.clone().any(|it| it == key) {
        return Ok(format!("{key} is trusted"));
    }
    if let Some(other) = trusted.find(|it| name(it) == name(key)) {
        return Err(format!(
            "trusted is {other}, and the cache has {key}: if the Pi was flashed again, compare with \
             `snowberry key show` there and correct trusted-public-keys"
        ));
    }
    Ok(format!(
        "{key} is not trusted, so what the house built is not taken from here, only what other \
         caches signed; `snowberry join --trust-key` changes that"
    ))
}

/// In which order Nix asks: the lowest priority first.
pub(super) fn order(
    found: &Substituter,
    priority: Option<i64>,
    settings: &Settings,
) -> Result<String, String> {
    let own = in_url(&found.url).or(priority).unwrap_or(0);
    let mut before = Vec::new();
    let mut unknown = 0;
    let mut is_behind_ours = false;
    for text in settings.list("substituters") {
        if text == found.text {
            is_behind_ours = true;
            continue;
        }
        let url = Url::parse(text).ok();
        let known = url.as_ref().and_then(|url| {
            let (host, priority) = CACHE_NIXOS_ORG;
            in_url(url).or_else(|| (url.host_str() == Some(host)).then_some(priority))
        });
        match known {
            Some(other) if other < own || (other == own && !is_behind_ours) => {
                before.push(format!("{text} ({other})"));
            }
            Some(_) => {}
            None => unknown += 1,
        }
    }
    if !before.is_empty() {
        return Err(format!(
            "{} is asked before this cache ({own}): take ?priority= out of nix.conf, or give the \
             cache a lower number there",
            before.join(", ")
        ));
    }
    let others = match unknown {
        0 => String::new(),
        1 => ", unless one other of unknown priority is".to_owned(),
        _ => format!(", unless one of {unknown} others of unknown priority is"),
    };
    Ok(format!("asked first ({own}){others}"))
}

fn in_url(url: &Url) -> Option<i64> {
    url.query_pairs().find(|(key, _)| key == "priority").and_then(|(_, value)| value.parse().ok())
}

/// How long Nix remembers that the cache did not have a path.
pub(super) fn absence(settings: &Settings) -> Result<String, String> {
    let key = "narinfo-cache-negative-ttl";
    match settings.text(key).and_then(|text| text.parse::<u64>().ok()) {
        Some(ttl_s) if ttl_s <= NEGATIVE_TTL_MAX_S => Ok(format!("remembered for {ttl_s} s")),
        Some(ttl_s) => Err(format!(
            "what the cache did not have is not asked for again for {ttl_s} s, even when it was \
             pushed since: {LINES}, or add to nix.conf: {key} = 60"
        )),
        None => Ok(format!("{key} is not known")),
    }
}

#[cfg(test)]
mod tests;
