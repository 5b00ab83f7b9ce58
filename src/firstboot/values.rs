//! What a value of the settings may be. Each check gives the value as it is written for the system,
//! or a sentence that says what is wanted. Pure.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What a label of the domain name system may have.
const LABEL_LEN_MAX: usize = 63;

/// What a network's name may have, in bytes.
const SSID_LEN_MAX: usize = 32;

/// An RSA key of 16384 bits and a long comment.
const SSH_KEY_LEN_MAX: usize = 8192;

/// The longest name of a time zone has 32 characters.
const TIMEZONE_LEN_MAX: usize = 64;

/// The kinds of keys that OpenSSH takes today.
const SSH_KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// An address of this machine and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) ip: IpAddr,
    pub(super) bits: u8,
}

pub(super) fn hostname(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    let name = name.strip_suffix(".local").unwrap_or(&name);
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = (1..=LABEL_LEN_MAX).contains(&name.len())
        && name.chars().all(fits)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if is_label && name != "localhost" {
        return Ok(name.to_owned());
    }
    Err(format!("{text:?} is no host name: letters, digits and inner hyphens, 63 at most"))
}

pub(super) fn ssid(text: &str) -> Result<String, String> {
    if (1..=SSID_LEN_MAX).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(format!("a network's name has 1 to {SSID_LEN_MAX} bytes"))
}

pub(super) fn country(text: &str) -> Result<String, String> {
    let code = text.trim().to_ascii_uppercase();
    if code == "UK" {
        return Err("\"UK\" is no country code: the United Kingdom's is \"GB\"".to_owned());
    }
    if code.len() == 2 && code.bytes().all(|c| c.is_ascii_uppercase()) {
        return Ok(code);
    }
    Err(format!("{text:?} is no country code: two letters, such as \"DE\" or \"US\""))
}

/// A line of `authorized_keys` without options.
pub(super) fn ssh_key(text: &str) -> Result<String, String> {
    let line = text.trim();
    if line.contains("PRIVATE KEY") {
        return Err("this is a private key, which belongs on your machine only: give the line of \
                    the .pub file beside it"
            .to_owned());
    }
    if line.len() > SSH_KEY_LEN_MAX || line.contains(char::is_control) {
        return Err("a key is one line, as the .pub file has it".to_owned());
    }
    let mut words = line.split_ascii_whitespace();
    let kind = words.next().unwrap_or_default();
    let shown: String = kind.chars().take(40).collect();
    if !SSH_KINDS.contains(&kind) {
        return Err(format!(
            "{shown:?} is no kind of SSH key: it begins with ssh-ed25519, for one"
        ));
    }
    let blob = words.next().and_then(|word| STANDARD.decode(word).ok()).unwrap_or_default();
    // What is encoded begins with its kind once more, after its length.
    let len = u32::try_from(kind.len()).unwrap_or_default().to_be_bytes();
    let own_kind = blob.strip_prefix(&len).and_then(|rest| rest.strip_prefix(kind.as_bytes()));
    match own_kind {
        Some(rest) if !rest.is_empty() => Ok(line.to_owned()),
        Some(_) | None => {
            Err(format!("the {shown} key is not whole: copy the .pub file's line again"))
        }
    }
}

pub(super) fn address(text: &str) -> Result<Address, String> {
    let wanted = || format!("{text:?} is no address with its prefix, such as \"192.168.1.20/24\"");
    let (ip, bits) = text.trim().split_once('/').ok_or_else(wanted)?;
    let (ip, bits) = (ip.parse::<IpAddr>().map_err(|_| wanted())?, bits.parse::<u8>());
    let bits = bits.map_err(|_| wanted())?;
    let bits_max = if ip.is_ipv4() { 32 } else { 128 };
    if bits == 0 || bits > bits_max || !is_hosts(ip) || is_end_of_network(ip, bits) {
        return Err(format!("{text:?} cannot be the address of a machine"));
    }
    Ok(Address { ip, bits })
}

/// An address that a machine can have.
pub(super) fn host(text: &str) -> Result<IpAddr, String> {
    let ip = text.trim().parse::<IpAddr>().ok().filter(|ip| is_hosts(*ip));
    ip.ok_or_else(|| format!("{text:?} is no address, such as \"192.168.1.1\""))
}

/// What is on the same network as the machine, so that it can be a gateway. A link-local address is
/// on every one.
pub(super) fn is_beside(address: Address, other: IpAddr) -> bool {
    match (address.ip, other) {
        (IpAddr::V4(own), IpAddr::V4(other)) => {
            let shift = 32_u32.saturating_sub(u32::from(address.bits));
            let net = |bits: u32| bits.checked_shr(shift).unwrap_or_default();
            net(own.to_bits()) == net(other.to_bits())
        }
        (IpAddr::V6(own), IpAddr::V6(other)) => {
            let shift = 128_u32.saturating_sub(u32::from(address.bits));
            let net = |bits: u128| bits.checked_shr(shift).unwrap_or_default();
            net(own.to_bits()) == net(other.to_bits()) || other.is_unicast_link_local()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

fn is_hosts(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !is_broadcast
}

/// The network's own address and its broadcast: `192.168.1.0/24` is what people write by mistake.
fn is_end_of_network(ip: IpAddr, bits: u8) -> bool {
    let IpAddr::V4(v4) = ip else { return false };
    // Networks of one or two addresses have neither.
    if bits >= 31 {
        return false;
    }
    let hosts = u32::MAX.checked_shr(u32::from(bits)).unwrap_or_default();
    [0, hosts].contains(&(v4.to_bits() & hosts))
}

/// A name below `/usr/share/zoneinfo`; whether it is there is for who can look.
pub(super) fn timezone(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_+-/".contains(c);
    let is_name = (1..=TIMEZONE_LEN_MAX).contains(&text.len())
        && text.chars().all(fits)
        && !text.split('/').any(str::is_empty);
    if is_name {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no time zone, such as \"Europe/Berlin\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 \
        AAAAC3NzaC1lZDI1NTE5AAAAIGNbEz4+9hUsZDRyrrGTpoTcUAlfnHQgGfbAPtlYl4cd me@laptop";

    #[test]
    fn host_names_are_labels() {
        assert_eq!(hostname("Attic.local").as_deref(), Ok("attic"));
        assert_eq!(hostname("pi-4").as_deref(), Ok("pi-4"));
        for text in ["", "-a", "a-", "a_b", "a.b", "a b", "localhost", &"x".repeat(64)] {
            assert!(hostname(text).is_err(), "{text}");
        }
    }

    #[test]
    fn countries_have_two_letters() {
        assert_eq!(country("de").as_deref(), Ok("DE"));
        assert!(country("UK").unwrap_err().contains("GB"));
        for text in ["", "D", "DEU", "D1", "Germany"] {
            assert!(country(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ssh_keys_are_whole_public_ones() {
        assert_eq!(ssh_key(&format!(" {KEY}\n")).as_deref(), Ok(KEY));
        for (text, why) in [
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn", "private"),
            ("ssh-ed25519", "not whole"),
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5", "not whole"),
            (
                "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIGNbEz4+9hUsZDRyrrGTpoTcUAlfnHQgGfbAPtlYl4cd",
                "whole",
            ),
            ("no-pty ssh-ed25519 AAAA", "no kind"),
            ("ssh-ed25519 AAAA\nssh-rsa BBBB", "one line"),
            ("", "no kind"),
        ] {
            let told = ssh_key(text).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    #[test]
    fn addresses_are_those_of_machines() {
        let good = address("192.168.1.20/24").unwrap();
        assert!(is_beside(good, "192.168.1.1".parse().unwrap()));
        assert!(!is_beside(good, "192.168.2.1".parse().unwrap()));
        let six = address("fd00::7/64").unwrap();
        assert!(is_beside(six, "fe80::1".parse().unwrap()));
        assert!(!is_beside(six, "fd00:1::1".parse().unwrap()));
        for text in [
            "192.168.1.20",
            "192.168.1.20/33",
            "192.168.1.20/0",
            "192.168.1.0/24",
            "192.168.1.255/24",
            "127.0.0.1/8",
            "224.0.0.1/4",
            "::1/128",
            "fd00::7/129",
            "x/24",
            "",
            "192.168.1.20/-1",
            "0.0.0.0/0",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
        assert!(host("192.168.1.1").is_ok() && host("gateway").is_err() && host("::").is_err());
    }

    #[test]
    fn time_zones_are_names_and_no_paths() {
        assert!(timezone("Europe/Berlin").is_ok() && timezone("Etc/GMT+3").is_ok());
        for text in ["", "/etc/passwd", "../x", "Europe/", "Europe//Berlin", "a b"] {
            assert!(timezone(text).is_err(), "{text}");
        }
    }
}
