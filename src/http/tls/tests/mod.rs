//! Tests of certificates (made, kept, renewed, lost, given), and of the server that shows them.

mod server;

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::pinned;

const DAY: Duration = Duration::from_hours(24);

/// Some time in 2027.
fn at(days: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + CLOCK_MIN + DAY * (400 + days)
}

fn names(hosts: &[&str], addresses: &[&str]) -> Names {
    Names {
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

fn leaf(identity: &Identity) -> CertificateDer<'static> {
    let shown = identity.inner.shown.0.read().unwrap().clone().unwrap();
    shown.cert.first().unwrap().clone()
}

#[test]
fn a_ca_is_made_once_for_its_owner_only_and_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let state_dir = folder.path();
    let names = names(&["snowberry.local", "pi"], &["192.168.1.7", "fd00::7"]);
    assert_eq!(ca_state(state_dir).unwrap(), CaState::NotYet);
    let first = Identity::own(state_dir);
    assert_eq!(first.refresh(&names, true, at(0)).unwrap(), Change::Made);
    assert_eq!(first.refresh(&names, true, at(0)).unwrap(), Change::None);
    for file in ["tls/ca.pem", "tls/ca.key", "tls/server.pem", "tls/server.key"] {
        let mode = state_dir.join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let second = Identity::own(state_dir);
    assert_eq!(second.refresh(&names, false, at(1)).unwrap(), Change::Loaded);
    assert_eq!(second.ca(), first.ca());
    assert_eq!(leaf(&second), leaf(&first));
    assert_eq!(ca_state(state_dir).unwrap(), CaState::There(first.ca().unwrap()));
    let pem = first.ca_pem().unwrap();
    assert_eq!(CaFingerprint::of_pem(&pem).ok(), first.ca());
    pinned::client_config(&pem).unwrap();
}

#[test]
fn a_certificate_is_renewed_before_its_end_and_for_new_names_only() {
    let folder = tempfile::tempdir().unwrap();
    let one = names(&["snowberry.local"], &["192.168.1.7"]);
    let two = names(&["snowberry-2.local", "snowberry.local"], &["192.168.1.7"]);
    let identity = Identity::own(folder.path());
    let look = |names, day| identity.refresh(names, false, at(day)).unwrap();
    identity.refresh(&one, true, at(0)).unwrap();
    let ca = identity.ca();
    assert_eq!(look(&one, 270), Change::None);
    assert_eq!(look(&one, 280), Change::Made);
    assert_eq!(look(&two, 280), Change::Made);
    assert_eq!(look(&two, 280), Change::None);
    // A name or an address less asks for nothing.
    assert_eq!(look(&one, 281), Change::None);
    assert_eq!(identity.ca(), ca);
}

#[test]
fn no_ca_is_made_where_there_was_one_or_at_the_wrong_time() {
    let folder = tempfile::tempdir().unwrap();
    let state_dir = folder.path();
    let names = names(&["snowberry.local"], &[]);
    let refresh = |may_make| Identity::own(state_dir).refresh(&names, may_make, at(0));
    assert!(matches!(refresh(false), Err(Error::NotNow)));
    assert!(!state_dir.join("tls").exists());
    refresh(true).unwrap();
    for file in ["ca.key", "ca.pem"] {
        let (path, kept) = (state_dir.join("tls").join(file), state_dir.join("kept"));
        std::fs::rename(&path, &kept).unwrap();
        assert!(matches!(refresh(true), Err(Error::CaGone { .. })), "{file}");
        assert_eq!(ca_state(state_dir).unwrap(), CaState::Gone);
        std::fs::rename(&kept, &path).unwrap();
    }
    assert_eq!(refresh(true).unwrap(), Change::Loaded);
}

#[test]
fn what_a_power_cut_leaves_of_a_first_start_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let names = names(&["snowberry.local"], &[]);
    std::fs::create_dir(folder.path().join("tls")).unwrap();
    std::fs::write(folder.path().join("tls/ca.key"), "half").unwrap();
    let identity = Identity::own(folder.path());
    assert_eq!(identity.refresh(&names, true, at(0)).unwrap(), Change::Made);
    // A key of one certificate beside another one.
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(folder.path().join("tls/server.key"), key).unwrap();
    let again = Identity::own(folder.path());
    assert_eq!(again.refresh(&names, true, at(0)).unwrap(), Change::Made);
    assert_eq!(again.ca(), identity.ca());
}

#[test]
fn a_clock_that_was_never_set_makes_what_is_good_when_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let names = names(&["snowberry.local"], &[]);
    let identity = Identity::own(folder.path());
    let never_set = SystemTime::UNIX_EPOCH + DAY;
    assert_eq!(identity.refresh(&names, true, never_set).unwrap(), Change::Made);
    assert_eq!(identity.refresh(&names, true, never_set).unwrap(), Change::None);
    let now = SystemTime::UNIX_EPOCH + CLOCK_MIN + DAY * 200;
    assert_eq!(identity.refresh(&names, true, now).unwrap(), Change::None);
}

#[test]
fn the_ca_speaks_for_the_house_and_for_the_names_of_its_making() {
    let folder = tempfile::tempdir().unwrap();
    let first = names(&["snowberry.local", "cache.example.org", "pi"], &["10.0.0.1"]);
    let identity = Identity::own(folder.path());
    identity.refresh(&first, true, at(0)).unwrap();
    let more = names(&["snowberry.local", "cache.example.org", "bank.example", "pi.lan"], &[]);
    assert_eq!(identity.refresh(&more, false, at(1)).unwrap(), Change::Made);
    // Names stand in a certificate as they are.
    let certificate = leaf(&identity);
    let covered = |name: &str| String::from_utf8_lossy(&certificate).contains(name);
    assert!(covered("cache.example.org") && covered("pi.lan"));
    assert!(!covered("bank.example"));
}

#[test]
fn files_are_read_again_when_they_change_and_a_broken_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let put = |name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    };
    let identity = Identity::of_files(&certificate, &key);
    let look = || identity.refresh(&Names::default(), true, at(0));
    assert!(look().unwrap_err().to_string().contains("cert.pem"));
    let first = put("a.example");
    assert_eq!(look().unwrap(), Change::Loaded);
    assert_eq!(look().unwrap(), Change::None);
    assert_eq!(leaf(&identity), first);
    std::fs::write(&certificate, "garbage").unwrap();
    assert!(look().unwrap_err().to_string().contains("no certificate"));
    assert_eq!(look().unwrap(), Change::None, "told once");
    let other = rcgen::generate_simple_self_signed(["b.example".to_owned()]).unwrap();
    std::fs::write(&certificate, other.cert.pem()).unwrap();
    assert!(matches!(look(), Err(Error::NoPair { .. })));
    assert_eq!(leaf(&identity), first);
    let second = put("c.example");
    assert_eq!(look().unwrap(), Change::Loaded);
    assert_eq!(leaf(&identity), second);
    assert_eq!(identity.ca(), None);
}
