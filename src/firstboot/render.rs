//! The system's files, from what the owner wants: texts and modes, nothing is written. Pure.

use std::fmt::Write as _;
use std::path::Path;

use super::daemon_config::CREDENTIALS;
use super::secrets::Wpa;
use super::settings::{Bucket, Interface, Network, Settings, Wlan};

/// Who reads a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// Everybody.
    All,
    /// Root.
    Root,
    /// Root and the daemon.
    Daemon,
}

/// A file of the system.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    /// From the root, without the first slash.
    pub(super) path: String,
    pub(super) reader: Reader,
    /// `None`: it must not be there.
    pub(super) text: Option<String>,
}

/// Where the daemon's configuration is.
pub(super) const DAEMON_CONFIG: &str = "etc/snowberry/snowberry.toml";

/// What a link to a time zone leads to.
pub(super) const ZONES: &str = "usr/share/zoneinfo";

fn file(path: &str, reader: Reader, text: Option<String>) -> File {
    File { path: path.to_owned(), reader, text }
}

/// All files but the daemon's own and the link of the time zone. `data` is where the data partition
/// is mounted, `profiles` are those that buckets are asked by.
pub(super) fn files(settings: &Settings, data: &Path, profiles: &[String]) -> Vec<File> {
    let Settings { hostname, wlan, ssh_keys, network, buckets, .. } = settings;
    let ssh_keys = (!ssh_keys.is_empty()).then(|| ssh_keys.join("\n") + "\n");
    let credentials = (!buckets.is_empty()).then(|| credentials(buckets, profiles));
    let network_of =
        |which: Interface| network.as_ref().filter(|it| it.interface == which).map(self::network);
    vec![
        file("etc/hostname", Reader::All, Some(format!("{hostname}\n"))),
        file("etc/hosts", Reader::All, Some(hosts(hostname))),
        file(
            "etc/wpa_supplicant/wpa_supplicant-wlan0.conf",
            Reader::Root,
            wlan.as_ref().map(self::wlan),
        ),
        file(
            "etc/systemd/network/10-snowberry-wired.network",
            Reader::All,
            network_of(Interface::Wired),
        ),
        file(
            "etc/systemd/network/10-snowberry-wireless.network",
            Reader::All,
            network_of(Interface::Wireless),
        ),
        file("etc/ssh/authorized_keys/root", Reader::All, ssh_keys),
        file("etc/ssh/sshd_config.d/10-snowberry.conf", Reader::All, Some(sshd(data))),
        file(CREDENTIALS.trim_start_matches('/'), Reader::Daemon, credentials),
    ]
}

fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost ip6-loopback\n\
         ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
    )
}

/// The SSID in digits, because it may have any bytes. A password stands between the first and the
/// last quote of its line, whatever it has inside.
fn wlan(wlan: &Wlan) -> String {
    let mut text = String::from("ctrl_interface=DIR=/run/wpa_supplicant GROUP=netdev\n");
    if let Some(country) = &wlan.country {
        writeln!(text, "country={country}").expect(TO_STRING);
    }
    text.push_str("network={\n\tssid=");
    for byte in wlan.ssid.bytes() {
        write!(text, "{byte:02x}").expect(TO_STRING);
    }
    text.push('\n');
    if wlan.is_hidden {
        text.push_str("\tscan_ssid=1\n");
    }
    match &wlan.wpa {
        None => text.push_str("\tkey_mgmt=NONE\n"),
        Some(Wpa::Hash(hash)) => {
            writeln!(text, "\tkey_mgmt=WPA-PSK\n\tpsk={hash}").expect(TO_STRING);
        }
        Some(Wpa::Password(password)) => {
            writeln!(text, "\tkey_mgmt=WPA-PSK\n\tpsk=\"{password}\"").expect(TO_STRING);
        }
    }
    text.push_str("}\n");
    text
}

const TO_STRING: &str = "writing to a String cannot fail";

/// Another one of the image comes after it in the order of names, and gives the address by DHCP where
/// this one is not there.
fn network(network: &Network) -> String {
    let kind = match network.interface {
        Interface::Wired => "Type=ether\nKind=!*",
        Interface::Wireless => "Type=wlan",
    };
    let mut text = format!("[Match]\n{kind}\n\n[Network]\n");
    match network.address {
        Some(address) => {
            writeln!(text, "Address={}/{}", address.ip, address.bits).expect(TO_STRING);
            if let Some(gateway) = network.gateway {
                writeln!(text, "Gateway={gateway}").expect(TO_STRING);
            }
        }
        None => text.push_str("DHCP=yes\n"),
    }
    for server in &network.dns {
        writeln!(text, "DNS={server}").expect(TO_STRING);
    }
    if network.interface == Interface::Wireless {
        text.push_str("IgnoreCarrierLoss=3s\n");
    }
    text.push_str("LinkLocalAddressing=yes\nMulticastDNS=resolve\nLLMNR=no\n");
    if network.address.is_none() {
        text.push_str("\n[DHCP]\nUseDNS=no\n");
    }
    text
}

/// Root by its keys, and nobody by a password. The host's own key is on the data partition, so that
/// it stays the same.
fn sshd(data: &Path) -> String {
    format!(
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nAuthorizedKeysFile /etc/ssh/authorized_keys/%u\n\
         HostKey {}\nX11Forwarding no\nAllowTcpForwarding no\n",
        data.join("ssh/ssh_host_ed25519_key").display()
    )
}

/// A section for each profile that is asked by, so that one pair of keys is enough for all of them.
fn credentials(buckets: &[Bucket], profiles: &[String]) -> String {
    let mut names: Vec<&str> = vec!["default"];
    names.extend(profiles.iter().map(String::as_str));
    names.extend(buckets.iter().filter_map(|bucket| bucket.profile.as_deref()));
    let mut done = Vec::new();
    let mut text = String::new();
    for name in names {
        if done.contains(&name) {
            continue;
        }
        done.push(name);
        let own = buckets.iter().rev().find(|bucket| bucket.profile.as_deref() == Some(name));
        let common = || buckets.iter().rev().find(|bucket| bucket.profile.is_none());
        // One pair alone is that of all profiles, whatever it is called.
        let only = || buckets.first().filter(|_| buckets.len() == 1);
        let Some(bucket) = own.or_else(common).or_else(only) else { continue };
        let Bucket { access_key_id, secret, .. } = bucket;
        writeln!(
            text,
            "[{name}]\naws_access_key_id = {access_key_id}\naws_secret_access_key = {secret}\n"
        )
        .expect(TO_STRING);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            hostname: "attic".into(),
            wlan: None,
            ssh_keys: Vec::new(),
            timezone: None,
            network: None,
            buckets: Vec::new(),
        }
    }

    fn text(settings: &Settings, path: &str) -> Option<String> {
        let files = files(settings, Path::new("/data"), &["nix b".to_owned()]);
        files.into_iter().find(|file| file.path.ends_with(path)).unwrap().text
    }

    #[test]
    fn without_settings_nobody_logs_in_and_no_network_is_joined() {
        let there: Vec<String> = files(&settings(), Path::new("/data"), &[])
            .into_iter()
            .filter(|file| file.text.is_some())
            .map(|file| file.path)
            .collect();
        assert_eq!(there, ["etc/hostname", "etc/hosts", "etc/ssh/sshd_config.d/10-snowberry.conf"]);
    }

    #[test]
    fn a_wireless_network_is_written_for_wpa_supplicant() {
        let wlan = |wpa, is_hidden| Wlan {
            ssid: "caf\u{e9} \"1\"".into(),
            wpa,
            country: Some("DE".into()),
            is_hidden,
        };
        let text = |wlan| text(&Settings { wlan: Some(wlan), ..settings() }, "wlan0.conf").unwrap();
        assert_eq!(
            text(wlan(Some(Wpa::Password("a\"b\\c d#e".into())), true)),
            "ctrl_interface=DIR=/run/wpa_supplicant GROUP=netdev\ncountry=DE\nnetwork={\n\
             \tssid=636166c3a920223122\n\tscan_ssid=1\n\tkey_mgmt=WPA-PSK\n\tpsk=\"a\"b\\c d#e\"\n}\n"
        );
        assert!(text(wlan(Some(Wpa::Hash("0f".into())), false)).contains("\tpsk=0f\n}"));
        assert!(text(wlan(None, false)).contains("\n\tkey_mgmt=NONE\n}"));
    }

    #[test]
    fn a_static_address_is_of_one_interface() {
        let address = super::super::values::address("192.168.1.20/24").unwrap();
        let network = |interface, address| Network {
            address,
            gateway: Some("192.168.1.1".parse().unwrap()),
            dns: vec!["192.168.1.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            interface,
        };
        let wired =
            Settings { network: Some(network(Interface::Wired, Some(address))), ..settings() };
        assert_eq!(text(&wired, "wireless.network"), None);
        assert_eq!(
            text(&wired, "wired.network").unwrap(),
            "[Match]\nType=ether\nKind=!*\n\n[Network]\nAddress=192.168.1.20/24\n\
             Gateway=192.168.1.1\nDNS=192.168.1.1\nDNS=fd00::1\nLinkLocalAddressing=yes\n\
             MulticastDNS=resolve\nLLMNR=no\n"
        );
        let by_dhcp = Settings { network: Some(network(Interface::Wireless, None)), ..settings() };
        let text = text(&by_dhcp, "wireless.network").unwrap();
        assert!(text.contains("DHCP=yes\n") && text.contains("UseDNS=no"), "{text}");
        assert!(!text.contains("Gateway"), "{text}");
    }

    #[test]
    fn each_profile_that_is_asked_by_has_its_keys() {
        let bucket = |profile: Option<&str>, id: &str| Bucket {
            profile: profile.map(str::to_owned),
            access_key_id: id.into(),
            secret: "S".into(),
        };
        let section = |name: &str, id: &str| {
            format!("[{name}]\naws_access_key_id = {id}\naws_secret_access_key = S\n\n")
        };
        let one = Settings { buckets: vec![bucket(Some("x"), "K")], ..settings() };
        assert_eq!(
            text(&one, "credentials").unwrap(),
            [section("default", "K"), section("nix b", "K"), section("x", "K")].concat()
        );
        let two = vec![bucket(None, "K"), bucket(Some("nix b"), "L")];
        let two = Settings { buckets: two, ..settings() };
        assert_eq!(
            text(&two, "credentials").unwrap(),
            [section("default", "K"), section("nix b", "L")].concat()
        );
    }
}
