//! The lister against known answers, against the writer, and against NARs that are none.

use proptest::prelude::*;

use super::writer::string;
use super::*;

const NAR: &[u8] =
    include_bytes!("../../../tests/data/9d82wl65gr2phigksgzzimbdf176rx4c-wire-a-1.0.nar");
const LISTING: &str = include_str!("../../../tests/data/9d82wl65gr2phigksgzzimbdf176rx4c.ls");
const LEN_MAX: usize = 1 << 20;

#[test]
fn a_nar_of_nix_gives_the_listing_of_nix_whatever_the_pieces() {
    for piece_len in (1..=17).chain([63, 64, 65, NAR.len()]) {
        assert_eq!(list_in_pieces(NAR, piece_len), Ok(Some(LISTING.to_owned())), "{piece_len}");
    }
}

#[test]
fn a_compressed_nar_of_nix_gives_the_listing_of_nix() {
    let file = include_bytes!(
        "../../../tests/data/10ywiq27ra95576kjk30jwwqkwjpp14hkri715l5frfnbifgvcdg.nar.zst"
    );
    let listing = include_str!("../../../tests/data/fc4g6p4zw2gmhhhghjmd7vp4a1pnbwg4.ls");
    let nar = zstd::decode_all(&file[..]).unwrap();
    assert_eq!(list_in_pieces(&nar, 50), Ok(Some(listing.to_owned())));
}

#[test]
fn a_listing_beyond_its_bound_is_given_up_and_the_nar_still_parsed() {
    let list = |nar: &[u8], len_max| {
        let mut lister = Lister::new(len_max);
        lister.push(nar)?;
        lister.finish()
    };
    assert_eq!(list(NAR, LISTING.len()), Ok(Some(LISTING.to_owned())));
    assert_eq!(list(NAR, LISTING.len() - 1), Ok(None));
    assert_eq!(list(NAR, 0), Ok(None));
    assert_eq!(list(&NAR[..NAR.len() - 1], 0), Err(NarError::Truncated));
}

#[test]
fn every_cut_is_noticed() {
    for len in 0..NAR.len() {
        assert_eq!(list_in_pieces(&NAR[..len], 100), Err(NarError::Truncated), "{len}");
    }
    let longer = [NAR, b"\0"].concat();
    assert_eq!(list_in_pieces(&longer, 100), Err(NarError::Trailing(880)));
}

#[test]
fn an_error_stays() {
    let mut lister = Lister::new(LEN_MAX);
    let error = lister.push(b"<!DOCTYPE html><html>").unwrap_err();
    assert!(matches!(error, NarError::Length { offset: 8, .. }));
    assert_eq!(lister.push(NAR), Err(error.clone()));
    assert_eq!(lister.finish(), Err(error));
}

#[test]
fn roots_can_be_files_links_and_empty_directories() {
    check(&file(b""), r#"{"type":"regular","size":0,"narOffset":96}"#);
    check(&file(b"12345678"), r#"{"type":"regular","size":8,"narOffset":96}"#);
    check(&Node::Symlink(b"a/../b".to_vec()), r#"{"type":"symlink","target":"a/../b"}"#);
    check(&directory(&[]), r#"{"type":"directory","entries":{}}"#);
    let nested = directory(&[(b"a", directory(&[])), (b"b", Node::Symlink(b"a".to_vec()))]);
    check(
        &nested,
        r#"{"type":"directory","entries":{"a":{"type":"directory","entries":{}},"b":{"type":"symlink","target":"a"}}}"#,
    );
}

#[test]
fn strings_are_escaped_and_what_is_not_utf8_has_no_listing() {
    let name = "\"\\\n\u{1f}\u{7f}\u{e9}";
    let tree = directory(&[(name.as_bytes(), Node::Symlink(b"\t".to_vec()))]);
    check(
        &tree,
        "{\"type\":\"directory\",\"entries\":{\"\\\"\\\\\\n\\u001f\u{7f}\u{e9}\":{\"type\":\"symlink\",\"target\":\"\\t\"}}}",
    );
    for tree in [directory(&[(b"\xff", file(b"x"))]), Node::Symlink(b"\xff".to_vec())] {
        assert_eq!(list_in_pieces(&tree.to_nar(), 7), Ok(None));
    }
}

#[test]
fn names_that_no_file_can_have_are_refused() {
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
        let nar = directory(&[(name, file(b""))]).to_nar();
        assert!(matches!(list_in_pieces(&nar, 64), Err(NarError::Name(_))), "{name:?}");
    }
    for name in [&b"..."[..], b"a ", b"\\", &[b'x'; NAME_LEN_MAX]] {
        let nar = directory(&[(name, file(b""))]).to_nar();
        assert!(list_in_pieces(&nar, 64).is_ok(), "{name:?}");
    }
    let nar = directory(&[(&[b'x'; NAME_LEN_MAX + 1], file(b""))]).to_nar();
    assert!(matches!(list_in_pieces(&nar, 64), Err(NarError::Length { len_bytes: 256, .. })));
}

#[test]
fn targets_that_no_symlink_can_have_are_refused() {
    for target in [&b""[..], b"a\0b"] {
        let nar = Node::Symlink(target.to_vec()).to_nar();
        assert!(matches!(list_in_pieces(&nar, 64), Err(NarError::Target(_))), "{target:?}");
    }
    assert!(list_in_pieces(&Node::Symlink(vec![b'x'; TARGET_LEN_MAX]).to_nar(), 64).is_ok());
    let nar = Node::Symlink(vec![b'x'; TARGET_LEN_MAX + 1]).to_nar();
    assert!(matches!(list_in_pieces(&nar, 64), Err(NarError::Length { .. })));
}

#[test]
fn names_ascend_by_bytes() {
    let link = &[&b"("[..], b"type", b"symlink", b"target", b"x", b")"];
    let with_names = |names: &[&[u8]]| {
        let mut words = vec![&b"nix-archive-1"[..], b"(", b"type", b"directory"];
        for name in names {
            words.extend([&b"entry"[..], b"(", b"name", name, b"node"]);
            words.extend(link);
            words.push(b")");
        }
        words.push(b")");
        list_in_pieces(&nar_of(&words), 64)
    };
    assert!(with_names(&[b"Z", b"a", b"a b", b"a-b", b"a.b", b"ab"]).is_ok());
    assert!(matches!(with_names(&[b"a", b"a"]), Err(NarError::Order(_))));
    assert!(matches!(with_names(&[b"a", b"Z"]), Err(NarError::Order(_))));
    assert!(matches!(with_names(&[b"ab", b"a"]), Err(NarError::Order(_))));
}

#[test]
fn directories_nest_to_a_bound() {
    let nested = |depth| (1..depth).fold(directory(&[]), |node, _| directory(&[(b"d", node)]));
    assert!(list_in_pieces(&nested(DEPTH_MAX).to_nar(), 1000).is_ok());
    let nar = nested(DEPTH_MAX + 1).to_nar();
    assert!(matches!(list_in_pieces(&nar, 1000), Err(NarError::Depth(_))));
}

#[test]
fn the_grammar_is_held_word_by_word() {
    for words in [
        &["nix-archive-2"][..],
        &["nix-archive-1", ")"],
        &["nix-archive-1", "(", "kind"],
        &["nix-archive-1", "(", "type", "fifo"],
        &["nix-archive-1", "(", "type", "regular", ")"],
        &["nix-archive-1", "(", "type", "regular", "executable", "1"],
        &["nix-archive-1", "(", "type", "regular", "executable", "", "executable"],
        &["nix-archive-1", "(", "type", "regular", "contents", "x", "contents"],
        &["nix-archive-1", "(", "type", "symlink", "contents"],
        &["nix-archive-1", "(", "type", "symlink", "target", "x", "target"],
        &["nix-archive-1", "(", "type", "directory", "entry", ")"],
        &["nix-archive-1", "(", "type", "directory", "entry", "(", "node"],
        &["nix-archive-1", "(", "type", "directory", "entry", "(", "name", "x", ")"],
    ] {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        assert!(matches!(list_in_pieces(&nar_of(&words), 5), Err(NarError::Word(_))), "{words:?}");
    }
}

#[test]
fn padding_is_zero_everywhere() {
    // Behind the magic word, behind the 10 bytes of bin/run, behind the 6 of hello, behind ")".
    for offset in [21, 23, 410, 415, 638, 639, 873, 879] {
        let mut nar = NAR.to_vec();
        nar[offset] = 1;
        for piece_len in [1, 64, 880] {
            let result = list_in_pieces(&nar, piece_len);
            assert!(matches!(result, Err(NarError::Padding(_))), "{offset}: {result:?}");
        }
    }
}

#[test]
fn lengths_of_contents_may_be_absurd_without_cost() {
    let mut nar = nar_of(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents"]);
    nar.extend(u64::MAX.to_le_bytes());
    nar.extend([0; 100]);
    assert_eq!(list_in_pieces(&nar, 64), Err(NarError::Truncated));
}

proptest! {
    #[test]
    fn listings_lead_to_the_bytes_of_every_file(tree in trees(), piece_len in 1..200_usize) {
        let nar = tree.to_nar();
        let listing = list_in_pieces(&nar, piece_len).unwrap().unwrap();
        let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
        prop_assert_eq!(&listing["version"], 1);
        compare(&listing["root"], &tree, &nar);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..880_usize, byte: u8) {
        prop_assert!(list_in_pieces(&bytes, 9).is_err());
        let mut nar = NAR.to_vec();
        nar[at] = byte;
        let whole = list_in_pieces(&nar, NAR.len());
        prop_assert_eq!(list_in_pieces(&nar, 3), whole);
    }
}

/// Small trees, with names that sort in odd ways and contents around the padding.
fn trees() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(executable, contents)| Node::File { executable, contents }),
        "[a-z/.]{1,20}".prop_map(|target| Node::Symlink(target.into_bytes())),
    ];
    leaf.prop_recursive(4, 40, 6, |node| {
        let name = "[aAzZ0_ \"\\\\-]{1,9}".prop_map(String::into_bytes);
        prop::collection::btree_map(name, node, 0..6).prop_map(Node::Directory)
    })
}

fn compare(listing: &serde_json::Value, node: &Node, nar: &[u8]) {
    match node {
        Node::File { executable, contents } => {
            assert_eq!(listing["type"], "regular");
            assert_eq!(listing["size"], contents.len());
            assert_eq!(listing["executable"].as_bool().unwrap_or(false), *executable);
            let offset = usize::try_from(listing["narOffset"].as_u64().unwrap()).unwrap();
            assert_eq!(&nar[offset..offset + contents.len()], contents);
        }
        Node::Symlink(target) => {
            assert_eq!(listing["type"], "symlink");
            assert_eq!(listing["target"].as_str().unwrap().as_bytes(), target);
        }
        Node::Directory(entries) => {
            assert_eq!(listing["type"], "directory");
            let listed = listing["entries"].as_object().unwrap();
            assert_eq!(listed.len(), entries.len());
            for (name, node) in entries {
                compare(&listed[std::str::from_utf8(name).unwrap()], node, nar);
            }
        }
    }
}

fn check(tree: &Node, root: &str) {
    let expected = format!(r#"{{"version":1,"root":{root}}}"#);
    assert_eq!(list_in_pieces(&tree.to_nar(), 11), Ok(Some(expected)));
}

fn list_in_pieces(nar: &[u8], piece_len: usize) -> Result<Option<String>, NarError> {
    let mut lister = Lister::new(LEN_MAX);
    for piece in nar.chunks(piece_len) {
        lister.push(piece)?;
    }
    lister.finish()
}

fn nar_of(words: &[&[u8]]) -> Vec<u8> {
    let mut nar = Vec::new();
    for word in words {
        string(&mut nar, word);
    }
    nar
}

fn file(contents: &[u8]) -> Node {
    Node::File { executable: false, contents: contents.to_vec() }
}

fn directory(entries: &[(&[u8], Node)]) -> Node {
    Node::Directory(entries.iter().map(|(name, node)| (name.to_vec(), node.clone())).collect())
}
