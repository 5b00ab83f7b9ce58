//! The TXT record of a cache: `v=1 store= key= priority= tls= ca=`. Pure.

use super::Announced;
use crate::nix::{PublicKey, StoreDir};

/// The version of these keys. Who says another one is not understood and left out.
const VERSION: &str = "1";

/// The priority of a cache that says none: what snowberry has in its `nix-cache-info`.
const PRIORITY_DEFAULT: u32 = 30;

/// What a TXT record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Txt {
    pub(super) tls_port: Option<u16>,
    pub(super) ca_sha256: Option<[u8; 32]>,
    pub(super) public_key: Option<String>,
    pub(super) store_dir: String,
    pub(super) priority: u32,
}

/// Key and value in the order in which they are said; what there is not is left out.
pub(super) fn write(announced: &Announced) -> Vec<(&'static str, String)> {
    let mut said = vec![("v", VERSION.to_owned()), ("store", announced.store_dir.clone())];
    said.extend(announced.public_key.clone().map(|key| ("key", key)));
    said.push(("priority", announced.priority.to_string()));
    said.extend(announced.tls_port.map(|port| ("tls", port.to_string())));
    said.extend(announced.ca_sha256.map(|digest| ("ca", hex(&digest))));
    said
}

/// What somebody said, key by key. `None` for what is no cache of this kind; a value that makes no
/// sense counts as not said.
pub(super) fn read<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Option<Txt> {
    if value("v") != Some(VERSION) {
        return None;
    }
    let store_dir = value("store").filter(|text| StoreDir::parse(text).is_ok())?.to_owned();
    let tls_port = value("tls").and_then(|text| text.parse().ok()).filter(|port| *port != 0);
    Some(Txt {
        tls_port,
        ca_sha256: value("ca").and_then(unhex),
        public_key: value("key")
            .filter(|text| PublicKey::parse(text).is_ok())
            .map(ToOwned::to_owned),
        store_dir,
        priority: value("priority").and_then(|text| text.parse().ok()).unwrap_or(PRIORITY_DEFAULT),
    })
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|it| it.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

    fn announced() -> Announced {
        Announced {
            name: "snowberry".into(),
            port: 80,
            tls_port: Some(443),
            ca_sha256: Some([0xa5; 32]),
            public_key: Some(KEY.into()),
            store_dir: "/nix/store".into(),
            priority: 30,
        }
    }

    fn reread(said: &[(&str, String)]) -> Option<Txt> {
        read(|key| said.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str()))
    }

    #[test]
    fn what_is_written_is_read() {
        let announced = announced();
        let txt = reread(&write(&announced)).unwrap();
        assert_eq!(txt.tls_port, announced.tls_port);
        assert_eq!(txt.ca_sha256, announced.ca_sha256);
        assert_eq!(txt.public_key, announced.public_key);
        assert_eq!((txt.store_dir.as_str(), txt.priority), ("/nix/store", 30));
        let plain = Announced { tls_port: None, ca_sha256: None, public_key: None, ..announced };
        let said = write(&plain);
        assert_eq!(
            said.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
            ["v", "store", "priority"]
        );
        assert!(reread(&said).is_some());
    }

    #[test]
    fn the_record_has_the_keys_of_the_contract() {
        let said: Vec<String> =
            write(&announced()).iter().map(|(key, value)| format!("{key}={value}")).collect();
        let ca = format!("ca={}", "a5".repeat(32));
        let key = format!("key={KEY}");
        assert_eq!(said, ["v=1", "store=/nix/store", &key, "priority=30", "tls=443", &ca]);
        assert!(said.iter().all(|one| one.len() < 255), "one string of TXT has 255 bytes at most");
    }

    #[test]
    fn what_makes_no_sense_counts_as_not_said() {
        let check = |said: &[(&str, &str)], wanted: Option<Txt>| {
            let said: Vec<(&str, String)> =
                said.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
            assert_eq!(reread(&said), wanted, "{said:?}");
        };
        let bare = Txt {
            tls_port: None,
            ca_sha256: None,
            public_key: None,
            store_dir: "/nix/store".into(),
            priority: PRIORITY_DEFAULT,
        };
        check(&[("v", "1"), ("store", "/nix/store")], Some(bare.clone()));
        check(&[("store", "/nix/store")], None);
        check(&[("v", "2"), ("store", "/nix/store")], None);
        check(&[("v", "1")], None);
        check(&[("v", "1"), ("store", "nix")], None);
        let wrong = [
            ("v", "1"),
            ("store", "/nix/store"),
            ("key", "snowberry:x"),
            ("priority", "high"),
            ("tls", "0"),
            ("ca", "a5a5"),
        ];
        check(&wrong, Some(bare));
    }
}
