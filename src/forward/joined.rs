//! `joined.toml`: what `snowberry join` learnt of the cache of this house, and `forward` and
//! `doctor` believe.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use crate::nix::PublicKey;

/// Where `joined.toml` of a whole machine is.
pub const SYSTEM_JOINED_FILE: &str = "/etc/snowberry/joined.toml";

/// Where a single user's is, below `$XDG_CONFIG_HOME` or `~/.config`.
pub const USER_JOINED_FILE: &str = "snowberry/joined.toml";

/// Longest `joined.toml` that is read: the real ones have less than a thousand bytes.
pub const JOINED_LEN_MAX: usize = 64 * 1024;

/// Addresses that are kept: a machine with more has most of them on networks of its own.
pub const ADDRESSES_MAX: usize = 16;

/// Characters of a name in DNS.
const HOST_LEN_MAX: usize = 253;

const HEAD: &str = "# Written by `snowberry join`; `snowberry join --undo` removes it.\n";

/// A cache that this machine has joined. `Display` prints the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The mDNS host name, without `.local`.
    pub name: String,
    /// As it was joined: a name or an address.
    pub host: String,
    /// The port of plain HTTP.
    pub port: u16,
    /// The port of TLS, where there is TLS.
    pub tls_port: Option<u16>,
    /// The certificate authority that was seen.
    pub ca_file: Option<PathBuf>,
    /// The SHA-256 of its DER.
    pub ca_sha256: Option<[u8; 32]>,
    /// The cache's own key, when it had one.
    pub public_key: Option<PublicKey>,
    /// Where it was last: a hint.
    pub addresses: Vec<IpAddr>,
}

/// Why there is no `joined.toml` to be used.
#[derive(Debug, thiserror::Error)]
pub enum JoinedError {
    /// It is there and cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not what `join` writes.
    #[error("{} is not as `snowberry join` writes it ({why}): join again", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The file as it is written. Keys of a newer snowberry are passed over.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    name: String,
    host: String,
    port: u16,
    tls_port: Option<u16>,
    ca_file: Option<PathBuf>,
    ca_sha256: Option<String>,
    public_key: Option<String>,
    #[serde(default)]
    addresses: Vec<IpAddr>,
}

impl Joined {
    /// What the file says; `None` when there is no file.
    pub fn read(path: &Path) -> Result<Option<Self>, JoinedError> {
        let unread = |source| JoinedError::Read { path: path.to_path_buf(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unread(error)),
        };
        let mut text = String::new();
        let limit = u64::try_from(JOINED_LEN_MAX).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit).read_to_string(&mut text).map_err(unread)?;
        let joined = Self::parse(&text);
        joined.map(Some).map_err(|why| JoinedError::Wrong { path: path.to_path_buf(), why })
    }

    /// The text of such a file.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > JOINED_LEN_MAX {
            return Err(format!("it is longer than {JOINED_LEN_MAX} bytes"));
        }
        let read: Document = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let fits = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
            (1..=HOST_LEN_MAX).contains(&text.len()) && text.chars().all(plain)
        };
        if !fits(&read.name) || read.name.contains(['.', ':']) {
            return Err(format!("name {:?} is no host name without dots", read.name));
        }
        if !fits(&read.host) {
            return Err(format!("host {:?} is neither a name nor an address", read.host));
        }
        if read.tls_port.is_some() != read.ca_file.is_some()
            || read.tls_port.is_some() != read.ca_sha256.is_some()
        {
            return Err("tls-port, ca-file and ca-sha256 belong together".to_owned());
        }
        if read.ca_file.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err("ca-file is not absolute".to_owned());
        }
        let ca_sha256 = read.ca_sha256.as_deref().map(|text| {
            from_hex(text).ok_or_else(|| "ca-sha256 is not 64 hexadecimal digits".to_owned())
        });
        let public_key = read
            .public_key
            .as_deref()
            .map(|text| PublicKey::parse(text).map_err(|error| format!("public-key: {error}")));
        let mut addresses = read.addresses;
        addresses.truncate(ADDRESSES_MAX);
        Ok(Self {
            name: read.name,
            host: read.host,
            port: read.port,
            tls_port: read.tls_port,
            ca_file: read.ca_file,
            ca_sha256: ca_sha256.transpose()?,
            public_key: public_key.transpose()?,
            addresses,
        })
    }
}

impl fmt::Display for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        let mut set = |key: &str, value: Value| {
            table.insert(key.to_owned(), value);
        };
        set("name", self.name.clone().into());
        set("host", self.host.clone().into());
        set("port", i64::from(self.port).into());
        if let Some(port) = self.tls_port {
            set("tls-port", i64::from(port).into());
        }
        if let Some(path) = &self.ca_file {
            set("ca-file", path.to_string_lossy().into_owned().into());
        }
        if let Some(sum) = &self.ca_sha256 {
            set("ca-sha256", hex(sum).into());
        }
        if let Some(key) = &self.public_key {
            set("public-key", key.to_string().into());
        }
        let addresses = self.addresses.iter().map(|it| Value::from(it.to_string()));
        set("addresses", addresses.collect::<Vec<_>>().into());
        write!(f, "{HEAD}{table}")
    }
}

/// 64 lower-case hexadecimal digits.
fn hex(sum: &[u8; 32]) -> String {
    use fmt::Write;
    sum.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut sum = [0; 32];
    for (byte, digits) in sum.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined() -> Joined {
        Joined {
            name: "snowberry".into(),
            host: "snowberry.local".into(),
            port: 80,
            tls_port: Some(443),
            ca_file: Some("/etc/snowberry/ca.pem".into()),
            ca_sha256: Some([0xa7; 32]),
            public_key: Some(
                PublicKey::parse("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=")
                    .unwrap(),
            ),
            addresses: vec!["192.168.1.20".parse().unwrap(), "fd00::20".parse().unwrap()],
        }
    }

    #[test]
    fn what_is_printed_is_read() {
        let plain = Joined {
            host: "192.168.1.20".into(),
            tls_port: None,
            ca_file: None,
            ca_sha256: None,
            public_key: None,
            addresses: Vec::new(),
            ..joined()
        };
        for joined in [joined(), plain] {
            let text = joined.to_string();
            assert!(text.starts_with("# Written by"), "{text}");
            assert_eq!(Joined::parse(&text), Ok(joined), "{text}");
        }
    }

    #[test]
    fn the_keys_are_those_that_people_see() {
        let text = joined().to_string();
        for line in [
            "name = \"snowberry\"",
            "host = \"snowberry.local\"",
            "port = 80",
            "tls-port = 443",
            "ca-file = \"/etc/snowberry/ca.pem\"",
            "addresses = [\"192.168.1.20\", \"fd00::20\"]",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        assert!(text.contains(&format!("ca-sha256 = \"{}\"", "a7".repeat(32))));
    }

    #[test]
    fn what_join_does_not_write_is_refused() {
        let text = joined().to_string();
        let check = |from: &str, to: &str, why: &str| {
            let wrong = Joined::parse(&text.replace(from, to)).unwrap_err();
            assert!(wrong.contains(why), "{wrong}");
        };
        check("port = 80", "port = 70000", "");
        check("name = \"snowberry\"", "name = \"a/b\"", "no host name");
        check("snowberry.local", "a b", "neither a name");
        check("tls-port = 443\n", "", "belong together");
        check("a7a7", "xxxx", "64 hexadecimal");
        check("/etc/", "etc/", "not absolute");
        check("6NCH", "!", "public-key");
        assert!(Joined::parse("").is_err());
        assert!(Joined::parse(&" ".repeat(JOINED_LEN_MAX + 1)).is_err());
    }

    #[test]
    fn keys_of_a_newer_snowberry_are_passed_over() {
        let text = format!("{}later = 1\n", joined());
        assert_eq!(Joined::parse(&text), Ok(joined()));
    }

    #[test]
    fn a_file_that_is_not_there_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("joined.toml");
        assert_eq!(Joined::read(&path).unwrap(), None);
        std::fs::write(&path, joined().to_string()).unwrap();
        assert_eq!(Joined::read(&path).unwrap(), Some(joined()));
        std::fs::write(&path, "name = 1").unwrap();
        let error = Joined::read(&path).unwrap_err();
        assert!(error.to_string().contains("join again"), "{error}");
    }
}
