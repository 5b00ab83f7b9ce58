//! narinfos as they come, and what must not come through.

use proptest::prelude::*;

use super::*;

const SAMPLE: &str = include_str!("../../../tests/data/9d82wl65gr2phigksgzzimbdf176rx4c.narinfo");
const WITH_REFERENCES: &str =
    include_str!("../../../tests/data/fc4g6p4zw2gmhhhghjmd7vp4a1pnbwg4.narinfo");
const BIG: &str = include_str!("../../../tests/data/rhwsy6rql9hnpza1s11d62k7cd8aw3gm.narinfo");
const NIX32: &str = "17s988j711dwxfgqmvy6kim08cw61v9piq9zf363mkqhacbnz76r";
const OTHER: &str = "fc4g6p4zw2gmhhhghjmd7vp4a1pnbwg4-wire-b-1.0";

#[test]
fn what_nix_wrote_is_printed_as_nix_wrote_it() {
    for text in [SAMPLE, WITH_REFERENCES, BIG] {
        assert_eq!(parse(text).unwrap().print(&StoreDir::default()), text);
    }
}

#[test]
fn fingerprints_are_those_that_nix_signs() {
    let fingerprint = |text| parse(text).unwrap().fingerprint(&StoreDir::default());
    assert_eq!(
        fingerprint(SAMPLE),
        "1;/nix/store/9d82wl65gr2phigksgzzimbdf176rx4c-wire-a-1.0;sha256:17s988j711dwxfgqmvy6kim08cw61v9piq9zf363mkqhacbnz76r;880;"
    );
    assert_eq!(
        fingerprint(WITH_REFERENCES),
        "1;/nix/store/fc4g6p4zw2gmhhhghjmd7vp4a1pnbwg4-wire-b-1.0;sha256:087x16vxafpbw4wsd4mrww51281ipg8z4nryj2viinmrjcc9dwlx;824;/nix/store/9d82wl65gr2phigksgzzimbdf176rx4c-wire-a-1.0,/nix/store/fc4g6p4zw2gmhhhghjmd7vp4a1pnbwg4-wire-b-1.0,/nix/store/rhwsy6rql9hnpza1s11d62k7cd8aw3gm-wire-big"
    );
}

#[test]
fn loose_texts_are_read_and_printed_strictly() {
    let same = |text: &str| assert_eq!(parse(text), parse(SAMPLE), "{text}");
    same(SAMPLE.trim_end());
    same(&SAMPLE.replace("References: \n", "References:\n"));
    same(&SAMPLE.replace("References: \n", ""));
    same(&SAMPLE.replace("References: \n", "References:  \n"));
    same(&format!("System: x86_64-linux\n{SAMPLE}X-Extra: a: b\nEmpty:\n"));
    same(&SAMPLE.lines().rev().fold(String::new(), |text, line| text + line + "\n"));
    same(&with(
        "NarHash",
        "sha256:d99c6f175310cf3acc703fe178d30e8633046a9cc6ef8a9febbc85702442499f",
    ));
    same(&with("NarHash", "sha256:2ZxvF1MQzzrMcD/heNMOhjMEapzG74qf67yFcCRCSZ8="));
    same(&with("NarHash", "sha256-2ZxvF1MQzzrMcD/heNMOhjMEapzG74qf67yFcCRCSZ8="));
    same(&with("NarSize", "00880"));
    same(&format!("{SAMPLE}CA: \n"));
    same(&format!("{SAMPLE}Sig: {}", SAMPLE.split("Sig: ").nth(1).unwrap()));
}

#[test]
fn of_a_key_that_comes_again_the_last_counts() {
    let text = format!("NarSize: 1\nURL: nar/x\nFileSize: 7\nCompression: xz\n{SAMPLE}");
    assert_eq!(parse(&text), parse(SAMPLE));
    assert_eq!(parse(&format!("{SAMPLE}NarSize: 0\nNarSize: 5\n")).unwrap().nar_size, 5);
    assert_eq!(parse(&format!("{SAMPLE}Deriver: unknown-deriver\n")).unwrap().deriver, None);
    // Each of them must be valid, as in Nix.
    assert!(parse(&format!("NarSize: x\n{SAMPLE}")).is_err());
    let again = format!("{SAMPLE}References: {OTHER}\n");
    assert_eq!(parse(&again).unwrap().references.len(), 1);
    assert_eq!(parse(&format!("{again}References: \n")), Err(NarInfoError::Repeated("References")));
}

#[test]
fn what_is_not_known_is_none() {
    let narinfo = parse(&without("FileHash")).unwrap();
    assert_eq!((narinfo.file_hash, narinfo.file_size), (None, Some(222)));
    for text in [without("FileSize"), with("FileSize", "0")] {
        let narinfo = parse(&text).unwrap();
        assert_eq!(narinfo.file_size, None);
        assert!(!narinfo.print(&StoreDir::default()).contains("FileSize"));
    }
    for text in [without("Deriver"), with("Deriver", "unknown-deriver"), with("Deriver", "")] {
        let narinfo = parse(&text).unwrap();
        assert_eq!(narinfo.deriver, None);
        assert!(!narinfo.print(&StoreDir::default()).contains("Deriver"));
    }
    for text in [without("Compression"), with("Compression", "")] {
        assert_eq!(parse(&text).unwrap().compression, Compression::Bzip2);
    }
}

#[test]
fn malformed_signatures_are_dropped_and_the_others_kept() {
    let sig = SAMPLE.split("Sig: ").nth(1).unwrap().trim_end();
    for bad in [
        "",
        "x",
        ":",
        "a:",
        ":AAAA",
        "a:b c",
        "a:AAAA",
        "a:!",
        &format!("a b{sig}"),
        &format!("{sig}A"),
    ] {
        let text = format!("Sig: {bad}\n{SAMPLE}Sig: {bad}\n");
        assert_eq!(parse(&text), parse(SAMPLE), "{bad:?}");
    }
    assert_eq!(parse(&without("Sig")).unwrap().signatures, []);
    let two = format!("{SAMPLE}Sig: {}\n", sig.replace("snowberry", "another"));
    let signatures = parse(&two).unwrap().signatures;
    let names: Vec<_> = signatures.iter().map(Signature::key_name).collect();
    assert_eq!(names, ["another-test-1", "snowberry-test-1"]);
    // As texts: a dash sorts before the colon.
    let two = format!("{SAMPLE}Sig: {}\n", sig.replace("-1:", ":"));
    let printed = parse(&two).unwrap().print(&StoreDir::default());
    let names: Vec<_> = printed.lines().filter_map(|l| l.strip_prefix("Sig: ")).collect();
    assert_eq!(names, [sig, &sig.replace("-1:", ":")]);
}

#[test]
fn references_are_sorted_and_unique() {
    let [a, b] = ["9d82wl65gr2phigksgzzimbdf176rx4c-wire-a-1.0", OTHER];
    let narinfo = parse(&with("References", &format!("{b} {a}  {b}"))).unwrap();
    assert!(narinfo.print(&StoreDir::default()).contains(&format!("\nReferences: {a} {b}\n")));
}

#[test]
fn content_addresses_are_checked_and_kept() {
    for ca in [
        format!("text:sha256:{NIX32}"),
        format!("fixed:sha256:{NIX32}"),
        format!("fixed:r:sha256:{NIX32}"),
        format!("fixed:git:sha1:{}", "0".repeat(32)),
        format!("fixed:md5:{}", "0".repeat(26)),
        format!("fixed:r:sha512:{}", "0".repeat(103)),
        format!("fixed:sha256:{}", "ab".repeat(32)),
    ] {
        let text = format!("{SAMPLE}CA: {ca}\n");
        let narinfo = parse(&text).unwrap();
        assert_eq!(narinfo.print(&StoreDir::default()), text);
        assert_eq!(parse(&format!("{text}CA: {ca}\n")), Err(NarInfoError::Repeated("CA")));
    }
    for ca in
        ["x", "text:", "text:sha1:0", "fixed:", "fixed:r:", "fixed:x:sha256:0", "fixed:sha256:0"]
    {
        assert!(
            matches!(parse(&format!("{SAMPLE}CA: {ca}\n")), Err(NarInfoError::ContentAddress(_))),
            "{ca}"
        );
    }
}

#[test]
fn what_is_no_narinfo_is_refused() {
    use NarInfoError::{Line, Missing};
    check("", Line(1));
    check("<!DOCTYPE html>\n<html></html>\n", Line(1));
    check("<html><a href='http://x'>\n", Line(1));
    check(&format!("\n{SAMPLE}"), Line(1));
    check(&format!("{SAMPLE}\n"), Line(11));
    check(&SAMPLE.replace('\n', "\r\n"), Line(1));
    check(&SAMPLE.replace("URL: ", "URL:"), Line(2));
    check(&SAMPLE.replace("URL: ", "URL:\t"), Line(2));
    check(&format!("{SAMPLE}X: \0\n"), Line(11));
    for key in ["StorePath", "URL", "NarHash", "NarSize"] {
        check(&without(key), Missing(key));
    }
    check(&SAMPLE.replace("NarSize", "narsize"), Missing("NarSize"));
    assert_eq!(NarInfo::parse(b"\xff", &StoreDir::default()), Err(NarInfoError::NotUtf8));
    let long = SAMPLE.to_owned() + &"X: y\n".repeat(NARINFO_LEN_MAX / 5);
    check(&long, NarInfoError::TooLong(long.len()));
}

#[test]
fn bad_values_are_refused_by_name() {
    check(&with("Compression", "lz4"), NarInfoError::Compression("lz4".into()));
    check(&with("Compression", "None"), NarInfoError::Compression("None".into()));
    for value in ["", " nar/x", "nar/x y", "nar/\u{e9}", "nar/<x>", "nar\\x"] {
        check(&with("URL", value), NarInfoError::Url(value.into()));
    }
    for value in ["", "-1", "+1", " 1", "1 ", "1e3", "18446744073709551616"] {
        for key in ["NarSize", "FileSize"] {
            check(&with(key, value), NarInfoError::Size { key, value: value.into() });
        }
    }
    check(&with("NarSize", "0"), NarInfoError::Size { key: "NarSize", value: "0".into() });
    for (key, value) in [("NarHash", NIX32), ("FileHash", ""), ("NarHash", "sha1:x")] {
        let refused = parse(&with(key, value));
        assert!(matches!(refused, Err(NarInfoError::Hash { key: k, .. }) if k == key), "{value}");
    }
    let base_names = [
        "x",
        "/nix/store/9d82wl65gr2phigksgzzimbdf176rx4c-x",
        "9d82wl65gr2phigksgzzimbdf176rx4c-.-x",
    ];
    for value in base_names {
        for key in ["References", "Deriver"] {
            let refused = parse(&with(key, value));
            assert!(
                matches!(refused, Err(NarInfoError::StorePath { key: k, .. }) if k == key),
                "{value}"
            );
        }
    }
}

#[test]
fn a_path_of_another_store_is_told_apart() {
    let path = format!("/gnu/store/{OTHER}");
    let store_dir = "/nix/store".to_owned();
    check(&with("StorePath", &path), NarInfoError::OtherStore { path, store_dir });
    let refused = parse(&with("StorePath", "/nix/store/x"));
    assert!(matches!(refused, Err(NarInfoError::StorePath { key: "StorePath", .. })));
}

proptest! {
    #[test]
    fn what_is_printed_parses_to_the_same(narinfo in narinfos()) {
        let text = narinfo.print(&StoreDir::default());
        prop_assert_eq!(parse(&text), Ok(narinfo));
    }

    #[test]
    fn what_is_accepted_prints_to_what_is_accepted(at in 0..SAMPLE.len(), byte in 0..128_u8) {
        let mut text = SAMPLE.as_bytes().to_vec();
        text[at] = byte;
        if let Ok(narinfo) = NarInfo::parse(&text, &StoreDir::default()) {
            let printed = narinfo.print(&StoreDir::default());
            prop_assert!(!printed.contains(|c: char| c.is_control() && c != '\n'));
            prop_assert_eq!(parse(&printed), Ok(narinfo));
        }
    }
}

fn narinfos() -> impl Strategy<Value = NarInfo> {
    let path = || {
        ("[0-9a-df-np-sv-z]{32}-[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,40}")
            .prop_map(|base_name| StorePath::parse(&base_name).unwrap())
    };
    let signature = ("[!-9;-~]{1,20}", any::<[u8; 32]>()).prop_map(|(name, seed)| {
        crate::nix::SecretKey::from_seed(&name, seed).unwrap().sign("anything")
    });
    let file = (
        "[a-z0-9/._?&=:%+-]{1,60}",
        prop::sample::select(Compression::ALL.to_vec()),
        prop::option::of(any::<[u8; 32]>().prop_map(FileHash::from_bytes)),
        prop::option::of(1..=u64::MAX),
    );
    let nar = (any::<[u8; 32]>().prop_map(NarHash::from_bytes), 1..=u64::MAX);
    let sets = (
        prop::collection::btree_set(path(), 0..6),
        prop::collection::btree_set(signature, 0..3),
        prop::option::of(any::<[u8; 32]>()),
    );
    (path(), file, nar, sets, prop::option::of(path())).prop_map(
        |(store_path, file, nar, (references, signatures, ca), deriver)| NarInfo {
            store_path,
            url: file.0,
            compression: file.1,
            file_hash: file.2,
            file_size: file.3,
            nar_hash: nar.0,
            nar_size: nar.1,
            references: references.into_iter().collect(),
            deriver,
            signatures: signatures.into_iter().collect(),
            ca: ca.map(|bytes| format!("fixed:r:{}", NarHash::from_bytes(bytes))),
        },
    )
}

fn check(text: &str, error: NarInfoError) {
    assert_eq!(parse(text), Err(error), "{text:.300}");
}

fn parse(text: &str) -> Result<NarInfo, NarInfoError> {
    NarInfo::parse(text.as_bytes(), &StoreDir::default())
}

/// The sample with another value for `key`.
fn with(key: &str, value: &str) -> String {
    let replace = |line: &str| match line.split_once(':') {
        Some((found, _)) if found == key => format!("{key}: {value}\n"),
        _ => format!("{line}\n"),
    };
    SAMPLE.lines().map(replace).collect()
}

/// The sample without the line of `key`.
fn without(key: &str) -> String {
    let keeps = |line: &&str| !line.starts_with(&format!("{key}:"));
    SAMPLE.split_inclusive('\n').filter(keeps).collect()
}
