//! What a host name is to the programs of this machine, and what it is to Nix.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// A resolver tries its servers for 5 s each; what takes longer stalls everything else too.
const LOOKUP_WAIT: Duration = Duration::from_secs(6);

/// What a name is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    /// To programs such as curl and browsers.
    pub(super) by_programs: Vec<IpAddr>,
    /// Whether Nix resolves it; `None` where that cannot be told.
    pub(super) by_nix: Option<bool>,
}

/// Asks the system, in both ways.
pub(super) async fn resolve(host: &str) -> Resolved {
    if host.parse::<IpAddr>().is_ok() {
        return Resolved { by_programs: Vec::new(), by_nix: Some(true) };
    }
    let programs = timeout(LOOKUP_WAIT, lookup_host((host, 0))).await;
    let mut by_programs: Vec<IpAddr> = match programs {
        Ok(Ok(found)) => found.map(|it| it.ip()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    by_programs.dedup();
    let owned = host.to_owned();
    let nix = timeout(LOOKUP_WAIT, spawn_blocking(move || as_nix(&owned))).await;
    Resolved { by_programs, by_nix: nix.ok().and_then(Result::ok).flatten() }
}

/// Nix with glibc asks `files` and `dns` whatever nsswitch.conf says; so does getent like this.
/// Elsewhere Nix asks as every program does, and `None` is told.
fn as_nix(host: &str) -> Option<bool> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let mut getent = Command::new("getent");
    getent.args(["-s", "hosts:files dns", "ahosts", host]);
    let told = getent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    // 0 is found, 2 is not; anything else is a getent that does not know how.
    match told.ok()?.code()? {
        0 => Some(true),
        2 => Some(false),
        _ => None,
    }
}

/// `heard` is whether multicast DNS of our own hears the cache, so that the forwarder finds it.
pub(super) fn told(
    host: &str,
    resolved: &Resolved,
    is_local: bool,
    heard: bool,
) -> Result<String, String> {
    let shown: Vec<String> = resolved.by_programs.iter().map(ToString::to_string).collect();
    let shown = shown.join(" ");
    match (resolved.by_programs.is_empty(), resolved.by_nix) {
        (false, Some(false)) => Ok(format!(
            "{host} is {shown} to programs here, and nothing to Nix, which on Linux asks /etc/hosts \
             and DNS only: `snowberry forward` finds it for Nix"
        )),
        (false, Some(true) | None) => Ok(format!("{host} is {shown}")),
        (true, Some(true)) => Ok(format!("{host} needs no name service")),
        (true, _) if is_local && heard => Ok(format!(
            "{host} is heard, but programs here do not resolve it (libnss-mdns or systemd-resolved \
             with MulticastDNS=yes would): `snowberry forward` finds it for Nix all the same"
        )),
        (true, _) => Err(format!(
            "{host} is not found by any name service: is the cache on, in this network, and is its \
             name right?"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_only_nix_cannot_resolve_is_explained() {
        let check = |addresses: &[&str], by_nix: Option<bool>, heard: bool| {
            let by_programs = addresses.iter().map(|it| it.parse().unwrap()).collect();
            told("snowberry.local", &Resolved { by_programs, by_nix }, true, heard)
        };
        let seen = check(&["192.168.1.2"], Some(false), true).unwrap();
        assert!(seen.contains("nothing to Nix") && seen.contains("192.168.1.2"), "{seen}");
        assert_eq!(check(&["10.0.0.1"], Some(true), false).unwrap(), "snowberry.local is 10.0.0.1");
        assert!(check(&[], Some(false), true).unwrap().contains("libnss-mdns"));
        assert!(check(&[], Some(false), false).unwrap_err().contains("is the cache on"));
    }
}
