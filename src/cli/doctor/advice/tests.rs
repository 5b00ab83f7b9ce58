//! What is said of which settings.

use super::*;

fn ways() -> Ways {
    Ways {
        forward: vec!["127.0.0.1:8501".parse().unwrap()],
        names: vec!["snowberry.local".into()],
        addresses: vec!["192.168.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        ports: vec![80, 443],
    }
}

fn settings(pairs: &[(&str, &str)]) -> Settings {
    Settings::of_pairs(pairs)
}

fn found(substituters: &str) -> Option<Substituter> {
    ways().substituter(&settings(&[("substituters", substituters)]))
}

fn only(text: &str) -> Substituter {
    found(text).unwrap()
}

#[test]
fn every_way_of_writing_the_cache_is_known() {
    let check = |text: &str, way: Option<Way>| {
        assert_eq!(found(text).map(|found| found.way), way, "{text}");
    };
    check("http://127.0.0.1:8501", Some(Way::Forwarder));
    check("http://127.0.0.1:8501/?priority=10", Some(Way::Forwarder));
    check("http://localhost:8501", Some(Way::Forwarder));
    check("http://127.0.0.1:8500", None);
    check("http://snowberry.local", Some(Way::Directly));
    check("https://Snowberry.local./", Some(Way::Directly));
    check("http://192.168.1.2", Some(Way::Directly));
    check("http://[fd00::2]:80", Some(Way::Directly));
    check("http://192.168.1.2:8080", None);
    check("https://cache.nixos.org", None);
    check("s3://snowberry.local", None);
    check("daemon", None);
    assert_eq!(only("https://cache.nixos.org http://192.168.1.2").text, "http://192.168.1.2");
}

#[test]
fn a_name_that_nix_does_not_resolve_is_told_with_the_reason() {
    let told =
        |text: &str, resolves: Option<bool>| substituter(found(text).as_ref(), &ways(), resolves);
    assert!(told("http://127.0.0.1:8501", Some(false)).is_ok(), "the forwarder resolves it");
    let wrong = told("http://snowberry.local", Some(false)).unwrap_err();
    assert!(wrong.contains("never multicast DNS"), "{wrong}");
    assert!(wrong.contains("http://127.0.0.1:8501"), "{wrong}");
    assert!(told("http://snowberry.local", Some(true)).is_ok());
    assert!(told("http://192.168.1.2", None).unwrap().contains("directly"));
    let wrong = told("https://cache.nixos.org", None).unwrap_err();
    assert!(wrong.contains("extra-substituters = http://127.0.0.1:8501"), "{wrong}");
}

#[test]
fn the_daemon_takes_it_from_the_machine_or_from_who_is_trusted() {
    let found = only("http://127.0.0.1:8501/?priority=5");
    let asker = |user: &str, groups: &[&str], has_daemon: bool| Asker {
        user: user.into(),
        groups: groups.iter().map(ToString::to_string).collect(),
        has_daemon,
    };
    let check = |pairs: &[(&str, &str)], asker: &Asker, ok: bool| {
        let told = allowed(&found, &settings(pairs), asker);
        assert_eq!(told.is_ok(), ok, "{pairs:?} {asker:?} {told:?}");
    };
    let ada = asker("ada", &["ada", "wheel"], true);
    check(&[], &ada, false);
    check(&[], &asker("ada", &[], false), true);
    check(&[], &asker("root", &[], true), true);
    check(&[("substituters", "http://127.0.0.1:8501")], &ada, true);
    check(&[("trusted-substituters", "http://127.0.0.1:8501/")], &ada, true);
    check(&[("trusted-users", "root ada")], &ada, true);
    check(&[("trusted-users", "@wheel")], &ada, true);
    check(&[("trusted-users", "*")], &ada, true);
    check(&[("trusted-users", "root @sudo bob")], &ada, false);
    let told = allowed(&found, &settings(&[]), &ada).unwrap_err();
    assert!(told.contains("extra-trusted-substituters = http://127.0.0.1:8501,"), "{told}");
}

#[test]
fn a_key_may_be_left_untrusted_but_must_not_be_another_of_that_name() {
    let check =
        |trusted: &str, own: Option<&str>| key(own, &settings(&[("trusted-public-keys", trusted)]));
    assert!(check("a-1:x pi-1:abc=", Some("pi-1:abc=")).unwrap().ends_with("is trusted"));
    assert!(check("a-1:x", Some("pi-1:abc=")).unwrap().contains("join --trust-key"));
    assert!(check("a-1:x pi-1:old=", Some("pi-1:abc=")).unwrap_err().contains("pi-1:old="));
    assert!(check("a-1:x", None).is_ok());
}

#[test]
fn who_is_asked_before_the_cache_is_named() {
    let check = |all: &str, own: &str, priority: Option<i64>| {
        order(&only(own), priority, &settings(&[("substituters", all)]))
    };
    let own = "http://127.0.0.1:8501";
    let told = check("https://cache.nixos.org/ http://127.0.0.1:8501", own, Some(30));
    assert_eq!(told.unwrap(), "asked first (30)");
    let late = "http://127.0.0.1:8501?priority=50";
    let told = check(&format!("https://cache.nixos.org/ {late}"), late, Some(30)).unwrap_err();
    assert!(told.starts_with("https://cache.nixos.org/ (40) is asked before"), "{told}");
    let even = "http://127.0.0.1:8501?priority=40";
    assert!(check(&format!("{even} https://cache.nixos.org"), even, None).is_ok());
    assert!(check(&format!("https://cache.nixos.org {even}"), even, None).is_err());
    let told = check(&format!("https://x.cachix.org {own}"), own, Some(30)).unwrap();
    assert!(told.contains("one other of unknown priority"), "{told}");
}

#[test]
fn an_hour_of_remembered_absence_is_too_long() {
    let check = |ttl: &str| absence(&settings(&[("narinfo-cache-negative-ttl", ttl)]));
    assert!(check("60").is_ok() && check("0").is_ok());
    assert!(check("3600").unwrap_err().contains("narinfo-cache-negative-ttl = 60"));
}
