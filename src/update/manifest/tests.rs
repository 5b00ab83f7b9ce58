//! Tests of the head: what a signature protects, and what is refused although it is signed.

use super::*;
use crate::nix::SecretKey;

const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn key(name: &str, seed: u8) -> SecretKey {
    SecretKey::from_seed(name, [seed; 32]).unwrap()
}

fn trusted(keys: &[&SecretKey]) -> TrustedKeys {
    TrustedKeys::new(keys.iter().map(|key| key.public()).collect())
}

fn part(name: &str) -> String {
    format!(
        "[[part]]\nname = {name:?}\nsize = 3\nsha256 = \"{HASH}\"\npacked-size = 5\n\
         packed-sha256 = \"{HASH}\"\n"
    )
}

fn manifest() -> String {
    let parts = ["boot/vmlinuz", "boot/initrd.img", "boot/cmdline.txt", "root.squashfs"];
    let parts: String = parts.into_iter().map(part).collect();
    format!(
        "version = \"0.2.0\"\narch = \"arm64\"\ntime = 7\nfile = \"x.update\"\nstore-format = 2\n\
         store-format-min = 1\n{parts}"
    )
}

fn signed(text: &str, by: &[&SecretKey]) -> Vec<u8> {
    let start = format!("{MAGIC}{}\n{text}", text.len());
    let lines = by.iter().map(|key| format!("Sig: {}\n", key.sign(&start)));
    format!("{start}{}\n", lines.collect::<String>()).into_bytes()
}

#[test]
fn a_signed_head_is_read_to_its_end_and_no_further() {
    let (old, new) = (key("release-1", 1), key("release-2", 2));
    for by in [vec![&old], vec![&new, &old], vec![&old, &new]] {
        let mut file = signed(&manifest(), &by);
        let len = file.len();
        file.extend_from_slice(b"\nparts\n\n");
        let head = Head::parse(&file, &trusted(&[&old])).unwrap();
        assert_eq!((head.bytes.len(), head.file_len()), (len, head.len() + 20));
        assert_eq!(head.manifest.version.to_string(), "0.2.0");
        let boot: Vec<String> = head.manifest.boot_parts().map(|(_, name)| name).collect();
        assert_eq!(boot, ["vmlinuz", "initrd.img", "cmdline.txt"]);
    }
}

#[test]
fn what_no_known_key_signed_is_refused_with_the_names_of_both() {
    let (ours, theirs, same_name) = (key("ours", 1), key("theirs", 2), key("ours", 3));
    let keys = trusted(&[&ours]);
    for by in [vec![], vec![&theirs], vec![&same_name]] {
        let error = Head::parse(&signed(&manifest(), &by), &keys).unwrap_err();
        let told = error.to_string();
        assert!(matches!(error, ManifestError::Unsigned { .. }), "{told}");
        assert!(told.contains("(ours)"), "{told}");
    }
}

#[test]
fn no_byte_of_a_signed_head_can_be_changed() {
    let ours = key("ours", 1);
    let keys = trusted(&[&ours]);
    let file = signed(&manifest(), &[&ours]);
    // What is after the signature's line is no part of what it says.
    for index in 0..file.len() - 1 {
        let mut changed = file.clone();
        changed[index] ^= 0x04;
        assert!(Head::parse(&changed, &keys).is_err(), "byte {index}");
    }
    for len in 0..file.len() {
        assert!(Head::parse(&file[..len], &keys).is_err(), "cut at {len}");
    }
}

#[test]
fn a_signature_of_the_same_key_over_something_else_does_not_count() {
    let ours = key("ours", 1);
    let text = manifest();
    let file = format!("{MAGIC}{}\n{text}Sig: {}\n\n", text.len(), ours.sign(&text));
    assert!(Head::parse(file.as_bytes(), &trusted(&[&ours])).is_err());
}

#[test]
fn what_is_signed_and_must_not_be_done_is_refused() {
    let ours = key("ours", 1);
    let check = |text: String, told: &str| {
        let error = Head::parse(&signed(&text, &[&ours]), &trusted(&[&ours])).unwrap_err();
        let mut shown = error.to_string();
        if let ManifestError::Parse { source } = &error {
            shown.push_str(&source.to_string());
        }
        assert!(shown.contains(told), "{shown}\n{told}");
    };
    let good = manifest();
    for name in [
        "../x",
        "boot/../x",
        "boot//x",
        "boot/",
        "boot/.x",
        "/boot/x",
        "boot/a/b/c",
        "etc/x",
        "boot/x y",
        "boot/x.",
        "root.img",
        "boot/a\\b",
        "boot/\u{e4}",
        "",
        &format!("boot/{}", "x".repeat(200)),
    ] {
        check(format!("{good}{}", part(name)), "no name of a part");
    }
    check(format!("{good}{}", part("boot/VMLINUZ")), "twice");
    check(good.replace("boot/vmlinuz", "boot/other"), "no boot/vmlinuz");
    check(good.replace("x.update", "../x.update"), "no name of a file");
    check(good.replacen("size = 3", "size = 9999999999999", 1), "longer than");
    check(good.replacen("size = 3", "size = -1", 1), "-1");
    check(good.replacen(HASH, "abc", 1), "64 lower-case");
    check(good.replace("0.2.0", "latest"), "no version");
    check(format!("more = 1\n{good}"), "more");
    let many: String = (0..600).map(|index| part(&format!("boot/{index}"))).collect();
    check(format!("{good}{many}"), "more than 512 parts");
}

#[test]
fn lengths_and_counts_are_bounded_before_anything_is_believed() {
    let ours = key("ours", 1);
    let keys = trusted(&[&ours]);
    for start in
        ["", "snowberry-update-1 99999999\n", "snowberry-update-1 -1\n", "snowberry-update-2 1\nx"]
    {
        assert!(matches!(Head::parse(start.as_bytes(), &keys), Err(ManifestError::Shape(_))));
    }
    let many = vec![&ours; SIGNATURES_MAX + 1];
    let flooded = Head::parse(&signed(&manifest(), &many), &keys);
    assert!(matches!(flooded, Err(ManifestError::Shape(_))), "{flooded:?}");
    let without_end =
        [signed(&manifest(), &[]).strip_suffix(b"\n").unwrap(), &[b'x'; 9999]].concat();
    assert!(Head::parse(&without_end, &keys).is_err());
}
