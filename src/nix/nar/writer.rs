//! Writes NARs from trees in memory: for tests and demos, where no Nix is at hand.

use std::collections::BTreeMap;

use super::MAGIC;

/// A file tree in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A regular file.
    File {
        /// Whether its owner may execute it: all that a NAR keeps of a mode.
        executable: bool,
        /// Its bytes.
        contents: Vec<u8>,
    },
    /// A symlink with its target.
    Symlink(Vec<u8>),
    /// A directory: its entries by name, in the order that a NAR wants.
    Directory(BTreeMap<Vec<u8>, Self>),
}

impl Node {
    /// The NAR of this tree. Names and targets are written as they are, so that tests can make
    /// NARs that no file system could.
    pub fn to_nar(&self) -> Vec<u8> {
        let mut nar = Vec::new();
        string(&mut nar, MAGIC);
        self.write(&mut nar);
        nar
    }

    fn write(&self, nar: &mut Vec<u8>) {
        strings(nar, &[b"(", b"type"]);
        match self {
            Self::File { executable, contents } => {
                string(nar, b"regular");
                if *executable {
                    strings(nar, &[b"executable", b""]);
                }
                strings(nar, &[b"contents", contents]);
            }
            Self::Symlink(target) => strings(nar, &[b"symlink", b"target", target]),
            Self::Directory(entries) => {
                string(nar, b"directory");
                for (name, node) in entries {
                    strings(nar, &[b"entry", b"(", b"name", name, b"node"]);
                    node.write(nar);
                    string(nar, b")");
                }
            }
        }
        string(nar, b")");
    }
}

fn strings(nar: &mut Vec<u8>, strings: &[&[u8]]) {
    for bytes in strings {
        string(nar, bytes);
    }
}

pub(super) fn string(nar: &mut Vec<u8>, bytes: &[u8]) {
    let len = u64::try_from(bytes.len()).expect("a length in memory fits into 64 bits");
    nar.extend(len.to_le_bytes());
    nar.extend(bytes);
    nar.resize(nar.len().next_multiple_of(8), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_becomes_the_nar_that_nix_makes_of_it() {
        let file =
            |executable, contents: &[u8]| Node::File { executable, contents: contents.to_vec() };
        let bin = Node::Directory([(b"run".to_vec(), file(true, b"#!/bin/sh\n"))].into());
        let tree = Node::Directory(
            [
                (b"link".to_vec(), Node::Symlink(b"hello".to_vec())),
                (b"hello".to_vec(), file(false, b"hello\n")),
                (b"bin".to_vec(), bin),
            ]
            .into(),
        );
        let nar =
            include_bytes!("../../../tests/data/9d82wl65gr2phigksgzzimbdf176rx4c-wire-a-1.0.nar");
        assert_eq!(tree.to_nar(), nar);
    }
}
