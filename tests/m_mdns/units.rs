//! The files for who leaves multicast DNS to others say what snowberry says itself.

use std::path::Path;

use quick_xml::Reader;
use quick_xml::events::Event;

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name))
        .unwrap()
}

/// Type, port and TXT of a cache on port 80 without key and TLS, as `src/mdns/txt.rs` writes it.
fn check(kind: &str, port: &str, txt: &[&str]) {
    assert_eq!(format!("{kind}.local."), snowberry::mdns::SERVICE_TYPE);
    assert_eq!(port, "80");
    assert_eq!(txt, ["v=1", "store=/nix/store", "priority=30"]);
}

#[test]
fn the_file_for_resolved_says_the_same() {
    let text = file("snowberry.dnssd");
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("[Service]"));
    let value = |key: &str| {
        let mut of_key = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let value = of_key.next().unwrap_or_else(|| panic!("no {key}"));
        assert!(of_key.next().is_none(), "{key} twice");
        value
    };
    assert_eq!(value("Name"), "%H");
    check(value("Type"), value("Port"), &value("TxtText").split(' ').collect::<Vec<_>>());
    assert_eq!(lines.count(), 4, "nothing else");
}

#[test]
fn the_file_for_avahi_says_the_same() {
    let text = file("avahi-snowberry.service");
    let mut reader = Reader::from_str(&text);
    let (mut open, mut said) = (Vec::new(), Vec::new());
    loop {
        match reader.read_event().unwrap() {
            Event::Start(tag) => {
                open.push(tag.name().as_ref().to_owned());
            }
            Event::End(_) => drop(open.pop()),
            Event::Text(inner) => {
                let inner = inner.trim().to_owned();
                if !inner.is_empty() {
                    said.push((open.join("/"), inner));
                }
            }
            Event::Eof => break,
            Event::Empty(_)
            | Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_)
            | Event::GeneralRef(_) => {}
        }
    }
    let values = |path: &str| -> Vec<&str> {
        said.iter().filter(|(at, _)| at == path).map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(values("service-group/name"), ["%h"]);
    let of = |name: &str| values(&format!("service-group/service/{name}"));
    check(of("type")[0], of("port")[0], &of("txt-record"));
    assert_eq!(said.len(), 6, "nothing else: {said:?}");
}
