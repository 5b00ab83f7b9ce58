//! What the owner wants of the appliance, from the keys of the files: each that is wrong is told and
//! takes its default, and costs none beside it. Pure.

use std::net::IpAddr;

use super::document::{BUCKET, Document, Entry};
use super::secrets::{self, Id, Kept, MOVED, Wpa};
use super::told::Told;
use super::values::{self, Address};

/// The name of an appliance that was given none.
pub(super) const DEFAULT_HOSTNAME: &str = "snowberry";

/// Keys of people who may log in: a household has few.
const SSH_KEYS_MAX: usize = 64;

/// Servers that are asked for names; the C library looks at three.
const DNS_MAX: usize = 8;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) hostname: String,
    pub(super) wlan: Option<Wlan>,
    /// Lines of `authorized_keys`; none means that SSH stays off.
    pub(super) ssh_keys: Vec<String>,
    pub(super) timezone: Option<String>,
    pub(super) network: Option<Network>,
    pub(super) buckets: Vec<Bucket>,
}

/// The wireless network to be joined.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wlan {
    pub(super) ssid: String,
    /// `None` is an open network.
    pub(super) wpa: Option<Wpa>,
    pub(super) country: Option<String>,
    pub(super) is_hidden: bool,
}

/// An address that does not come from the router.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) address: Option<Address>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) dns: Vec<IpAddr>,
    pub(super) interface: Interface,
}

/// Which interface has the static address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interface {
    Wired,
    Wireless,
}

/// Keys of a bucket.
#[derive(PartialEq, Eq)]
pub(super) struct Bucket {
    /// `None` is every profile that has no keys of its own.
    pub(super) profile: Option<String>,
    pub(super) access_key_id: String,
    pub(super) secret: String,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({:?}, {:?})", self.profile, self.access_key_id)
    }
}

/// Reads them; secrets that were moved are those of `kept`.
pub(super) fn read(document: &Document, kept: &Kept, told: &mut Told) -> Settings {
    let mut reader = Reader { document, kept, told };
    let wlan = reader.wlan();
    let has_wlan = wlan.is_some();
    Settings {
        hostname: reader
            .checked("system.hostname", values::hostname)
            .unwrap_or_else(|| DEFAULT_HOSTNAME.to_owned()),
        wlan,
        ssh_keys: reader.ssh_keys(),
        timezone: reader.checked("locale.timezone", values::timezone),
        network: reader.network(has_wlan),
        buckets: reader.buckets(),
    }
}

struct Reader<'a> {
    document: &'a Document,
    kept: &'a Kept,
    told: &'a mut Told,
}

impl<'a> Reader<'a> {
    fn wrong(&mut self, entry: &Entry, what: &str) {
        self.told.tell(entry.place, &format!("{}: {what}", entry.path));
    }

    fn text(&mut self, path: &str) -> Option<(&'a Entry, &'a str)> {
        let entry = self.document.find(path)?;
        let text = entry.value.as_str();
        if text.is_none() {
            self.wrong(entry, "write it in quotes");
        }
        Some((entry, text?))
    }

    fn checked<T>(&mut self, path: &str, check: fn(&str) -> Result<T, String>) -> Option<T> {
        let (entry, text) = self.text(path)?;
        // What programs write for "not given".
        if text.is_empty() {
            return None;
        }
        check(text).map_err(|what| self.wrong(entry, &what)).ok()
    }

    fn truth(&mut self, path: &str) -> Option<bool> {
        let entry = self.document.find(path)?;
        let truth = entry.value.as_bool();
        if truth.is_none() {
            self.wrong(entry, "it is true or false, without quotes");
        }
        truth
    }

    /// A list of texts, or one text.
    fn texts(&mut self, path: &str) -> Option<(&'a Entry, Vec<&'a str>)> {
        let entry = self.document.find(path)?;
        let items = match &entry.value {
            toml::Value::String(text) => return Some((entry, vec![text.as_str()])),
            toml::Value::Array(items) => items.as_slice(),
            toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_)
            | toml::Value::Table(_) => {
                self.wrong(entry, "it is a list of texts in quotes: [\"...\", \"...\"]");
                return None;
            }
        };
        let texts: Vec<&str> = items.iter().filter_map(toml::Value::as_str).collect();
        if texts.len() < items.len() {
            self.wrong(entry, "what is not in quotes was left out of the list");
        }
        Some((entry, texts))
    }

    fn wlan(&mut self) -> Option<Wlan> {
        let country = self.checked("wlan.country", values::country);
        let is_hidden = self.truth("wlan.hidden").unwrap_or_default();
        let Some(ssid) = self.checked("wlan.ssid", values::ssid) else {
            if let Some(password) = self.document.find("wlan.password") {
                self.wrong(password, "it is for no network: wlan.ssid is not given, or wrong");
            }
            return None;
        };
        let wpa = self.wpa(&ssid)?;
        Some(Wlan { ssid, wpa, country, is_hidden })
    }

    /// The outer `None`: there is a password and it cannot be used.
    #[allow(clippy::option_option, reason = "none given is not the same as none that can be used")]
    fn wpa(&mut self, ssid: &str) -> Option<Option<Wpa>> {
        if self.document.find("wlan.password").is_none() {
            return Some(None);
        }
        let (entry, text) = self.text("wlan.password")?;
        if text.is_empty() {
            return Some(None);
        }
        let text = if text == MOVED {
            let kept = self.kept.of(&Id::Wlan(ssid.to_owned()));
            if kept.is_none() {
                self.wrong(
                    entry,
                    "it was moved to a data partition that is not here, or was another network's: \
                     write it again",
                );
            }
            kept?
        } else {
            text
        };
        secrets::wpa(text).map_err(|what| self.wrong(entry, what)).ok().map(Some)
    }

    fn ssh_keys(&mut self) -> Vec<String> {
        let is_enabled = self.truth("ssh.enabled");
        let wants_password = self.truth("ssh.password-authentication").unwrap_or_default();
        if wants_password && let Some(entry) = self.document.find("ssh.password-authentication") {
            self.wrong(entry, "there are no passwords here: SSH takes ssh.authorized-keys only");
        }
        let given = self.texts("ssh.authorized-keys");
        let mut keys = Vec::new();
        if let Some((entry, texts)) = &given {
            // One text may have several lines, as a file has them.
            let lines = texts.iter().flat_map(|text| {
                if text.contains("PRIVATE KEY") { vec![*text] } else { text.lines().collect() }
            });
            for line in lines.filter(|line| !line.trim().is_empty()) {
                match values::ssh_key(line) {
                    Ok(key) if keys.len() < SSH_KEYS_MAX => keys.push(key),
                    Ok(_) => self.wrong(entry, &format!("only {SSH_KEYS_MAX} keys are taken")),
                    Err(what) => self.wrong(entry, &what),
                }
            }
        }
        if is_enabled == Some(true)
            && keys.is_empty()
            && let Some(entry) = self.document.find("ssh.enabled")
        {
            self.wrong(entry, "SSH stays off: there is no key in ssh.authorized-keys");
        }
        if is_enabled == Some(false) { Vec::new() } else { keys }
    }

    fn network(&mut self, has_wlan: bool) -> Option<Network> {
        let address = self.checked("network.address", values::address);
        let gateway = self.checked("network.gateway", values::host);
        let gateway = gateway.filter(|gateway| self.is_gateway(address, *gateway));
        let dns = self.dns();
        let interface = self.checked("network.interface", |text| match text {
            "wired" => Ok(Interface::Wired),
            "wireless" => Ok(Interface::Wireless),
            _ => Err(format!("{text:?} is neither \"wired\" nor \"wireless\"")),
        });
        let usual = if has_wlan { Interface::Wireless } else { Interface::Wired };
        let interface = interface.unwrap_or(usual);
        let says_something = address.is_some() || !dns.is_empty();
        says_something.then_some(Network { address, gateway, dns, interface })
    }

    fn is_gateway(&mut self, address: Option<Address>, gateway: IpAddr) -> bool {
        let Some(entry) = self.document.find("network.gateway") else { return false };
        match address {
            None => {
                self.wrong(entry, "it is for a static address, and network.address is not right");
            }
            Some(address) if !values::is_beside(address, gateway) => {
                let Address { ip, bits } = address;
                let what = format!("{gateway} is not on the network of {ip}/{bits}: not used");
                self.wrong(entry, &what);
            }
            Some(_) => return true,
        }
        false
    }

    fn dns(&mut self) -> Vec<IpAddr> {
        let Some((entry, texts)) = self.texts("network.dns") else { return Vec::new() };
        let mut servers = Vec::new();
        for text in texts {
            match values::host(text) {
                Ok(server) if servers.len() < DNS_MAX => servers.push(server),
                Ok(_) => self.wrong(entry, &format!("only {DNS_MAX} servers are taken")),
                Err(what) => self.wrong(entry, &what),
            }
        }
        servers
    }

    fn buckets(&mut self) -> Vec<Bucket> {
        let entries: Vec<&Entry> = self.document.all(BUCKET).collect();
        entries.into_iter().filter_map(|entry| self.bucket(entry)).collect()
    }

    fn bucket(&mut self, entry: &Entry) -> Option<Bucket> {
        let (mut id, mut secret, mut profile) = (None, None, None);
        for (name, value) in entry.value.as_table()? {
            let name = name.replace('_', "-");
            let place = match name.as_str() {
                "access-key-id" => &mut id,
                "secret-access-key" => &mut secret,
                "profile" => &mut profile,
                _ => {
                    self.told.tell(entry.place, &super::keys::unknown(BUCKET, &name));
                    continue;
                }
            };
            match value.as_str() {
                Some(text) if !text.contains(char::is_control) => *place = Some(text.trim()),
                Some(_) | None => {
                    self.wrong(entry, &format!("{name} is one line of text in quotes"));
                }
            }
        }
        let (Some(id), Some(secret)) = (id, secret) else {
            self.wrong(entry, "access-key-id and secret-access-key belong together");
            return None;
        };
        let secret = if secret == MOVED {
            let kept = self.kept.of(&Id::Bucket(id.to_owned()));
            if kept.is_none() {
                self.wrong(
                    entry,
                    "secret-access-key was moved to a data partition that is not here, or was \
                     another key's: write it again",
                );
            }
            kept?
        } else {
            secret
        };
        if id.is_empty() || secret.is_empty() || profile.is_some_and(|it| it.contains([']', '['])) {
            self.wrong(entry, "access-key-id, secret-access-key or profile cannot be so");
            return None;
        }
        Some(Bucket {
            profile: profile.map(str::to_owned),
            access_key_id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }
}
