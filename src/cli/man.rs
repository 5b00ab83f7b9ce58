//! `man` and `completions`: made from the command tree and from the declared keys, so that they
//! cannot say anything else than what runs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use clap_mangen::Man;

use super::{Ended, command_tree, out};
use crate::config::{KEYS, Key};

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<Ended> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command_tree(), "snowberry", &mut text);
    out::bytes(&text)?;
    Ok(Ended::Well)
}

/// The main page to stdout, or every page into a folder.
pub(super) fn run(dir: Option<&Path>) -> anyhow::Result<Ended> {
    let Some(dir) = dir else {
        out::bytes(&page(command_tree())?)?;
        return Ok(Ended::Well);
    };
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let mut pages = vec![("snowberry.toml.5".to_owned(), toml_page().into_bytes())];
    let mut tree = command_tree().disable_help_subcommand(true);
    tree.build();
    collect(&tree, &mut pages)?;
    for (name, text) in pages {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(Ended::Well)
}

/// A built tree knows each command's full name (`snowberry-key-show`), which names its page.
fn collect(command: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    let name = Man::new(command.clone()).get_filename();
    pages.push((name, page(command.clone())?));
    for inner in command.get_subcommands() {
        collect(inner, pages)?;
    }
    Ok(())
}

fn page(command: clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(command).manual("snowberry").render(&mut text).context("print a manual page")?;
    Ok(text)
}

const TOML_INTRO: &str = "\
.SH NAME
snowberry.toml \\- configuration of snowberry
.SH DESCRIPTION
One TOML file. No file at all is a valid configuration: https://cache.nixos.org is cached at
http://127.0.0.1:8500. Looked for are the file of
.BR \\-\\-config ,
else that of
.BR $SNOWBERRY_CONFIG ,
else
.IR /etc/snowberry/snowberry.toml .
Each key can be laid over it by
.BR \"\\-\\-set KEY=TOML-VALUE\" .
Unknown keys are refused, with the nearest right one. A size is written with its unit: \"20 GiB\",
\"500 MB\".
.B snowberry check
says what is wrong.
";

const TOML_EXAMPLE: &str = "\
.SH EXAMPLE
.nf
listen = [\"[::]:80\"]
name = \"snowberry\"

[store]
budget = \"200 GiB\"

[[upstream]]
url = \"s3://nix-cache?endpoint=https://minio.example&profile=nixbuilder\"
trusted-public-keys = [\"NAME:BASE64\"]
ca-file = \"/etc/snowberry/ca.pem\"
credentials-file = \"/etc/snowberry/credentials\"
push = true

[[upstream]]
url = \"https://cache.nixos.org\"
trusted-public-keys = [\"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\"]

[push]
limit = \"2 MiB\"
.fi
.SH SEE ALSO
.BR snowberry (1)
";

/// `snowberry.toml(5)`, from the declared keys.
fn toml_page() -> String {
    let mut text = String::from(".TH snowberry.toml 5\n");
    text.push_str(TOML_INTRO);
    let mut table = None;
    for key in &KEYS {
        let (of_table, name) = key.split();
        if table != Some(of_table) {
            table = Some(of_table);
            text.push_str(&heading(of_table));
        }
        text.push_str(&entry(key, name));
    }
    text.push_str(TOML_EXAMPLE);
    text
}

fn heading(table: &str) -> String {
    match table {
        "" => ".SH KEYS\n".to_owned(),
        "upstream" => {
            ".SH [[upstream]]\nOne table for each upstream, asked in this order. Without any, \
             https://cache.nixos.org with its key; \"upstream = []\" for none at all.\n"
                .to_owned()
        }
        "push" => ".SH [push]\nWho may write, and what of it is carried to the upstreams that \
                   say push = true.\n"
            .to_owned(),
        other => format!(".SH [{other}]\n"),
    }
}

fn entry(key: &Key, name: &str) -> String {
    let mut text = String::new();
    write!(
        text,
        ".TP\n.B {}\n{} (default: {})\n.br\n{}\n",
        escaped(name),
        escaped(key.kind),
        escaped(key.default),
        escaped(key.help)
    )
    .expect("writing to a String cannot fail");
    text
}

/// roff reads a backslash as a command, and a hyphen as one that may break.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_stands_in_the_manual_of_the_file() {
        let page = toml_page();
        for key in &KEYS {
            let (_, name) = key.split();
            let line = format!("\n.B {}\n", escaped(name));
            assert!(page.contains(&line), "{}", key.path);
        }
        assert_eq!(page.matches("\n.TP\n").count(), KEYS.len());
    }

    #[test]
    fn each_command_has_its_page() {
        let folder = tempfile::tempdir().unwrap();
        run(Some(folder.path())).unwrap();
        for name in [
            "snowberry.toml.5",
            "snowberry.1",
            "snowberry-serve.1",
            "snowberry-check.1",
            "snowberry-status.1",
            "snowberry-key.1",
            "snowberry-key-generate.1",
            "snowberry-key-show.1",
            "snowberry-key-rotate.1",
            "snowberry-key-import.1",
            "snowberry-push.1",
            "snowberry-push-retry.1",
            "snowberry-push-forget.1",
            "snowberry-hook.1",
            "snowberry-spool.1",
            "snowberry-spool-status.1",
            "snowberry-spool-run.1",
            "snowberry-spool-retry.1",
            "snowberry-spool-forget.1",
            "snowberry-token.1",
            "snowberry-token-add.1",
            "snowberry-token-list.1",
            "snowberry-token-remove.1",
            "snowberry-bucket-init.1",
            "snowberry-bucket-policy.1",
            "snowberry-update.1",
            "snowberry-backup.1",
            "snowberry-restore.1",
            "snowberry-first-boot.1",
            "snowberry-identity.1",
            "snowberry-completions.1",
            "snowberry-man.1",
        ] {
            assert!(folder.path().join(name).is_file(), "{name}");
        }
    }
}
