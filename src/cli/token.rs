//! `token`: who may write. Works on the tokens file, whether a server runs or not; a running one
//! sees a change at its next question.

use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Subcommand;

use super::{CONFIG_HELP, ConfigArgs, Ended, out, status};
use crate::config::Config;
use crate::push::tokens::{SECRET_LEN, Token, Tokens};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and print it: it can be used at once, and is never shown again.
    #[command(after_help = ADD_HELP)]
    Add {
        /// Whose it is, such as the builder's host name.
        name: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Show who may write, and since when.
    #[command(after_help = CONFIG_HELP)]
    List {
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Revoke a token: it is refused at once.
    #[command(after_help = CONFIG_HELP)]
    Remove {
        /// Whose it is.
        name: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

const ADD_HELP: &str = "\
Whoever holds a token can put paths onto every machine that trusts this cache's key: keep it like
the password of root.

Examples:
  snowberry token add tower > tower.token
      and on that builder: snowberry push --to http://ADDRESS --token-file tower.token ./result
  printf 'machine 127.0.0.1\\nlogin snowberry\\npassword %s\\n' \"$(snowberry token add here)\" \\
      >> /etc/nix/netrc
      and then: nix copy --to http://127.0.0.1:8500/push ./result

From other machines a token is taken over plain HTTP only with push.plain = true.";

pub(super) fn run(command: &TokenCommand) -> anyhow::Result<Ended> {
    match command {
        TokenCommand::Add { name, config } => add(&config.load()?, name),
        TokenCommand::List { json, config } => list(&config.load()?, *json),
        TokenCommand::Remove { name, config } => remove(&config.load()?, name),
    }
}

fn tokens(config: &Config) -> Tokens {
    Tokens::new(config.push.tokens_file.clone())
}

fn add(config: &Config, name: &str) -> anyhow::Result<Ended> {
    let mut secret = [0; SECRET_LEN];
    getrandom::fill(&mut secret).context("draw random bytes for a token")?;
    let token = tokens(config).add(name, secret, now_s())?;
    out::line(&token)?;
    // To whoever reads along, and never into a file or a pipe.
    if std::io::stderr().is_terminal() {
        let file = config.push.tokens_file.display();
        out::note(&format!(
            "\nIt is kept in {file} as a hash only: this is the one time that it is shown.\n\
             On the machine that pushes, for Nix itself, in /etc/nix/netrc (mode 600):\n\n\
             machine 127.0.0.1\nlogin snowberry\npassword {token}\n\n\
             with the cache's address for 127.0.0.1, or in a file for \
             `snowberry push --token-file FILE`."
        ));
    }
    Ok(Ended::Well)
}

fn list(config: &Config, json: bool) -> anyhow::Result<Ended> {
    let tokens = tokens(config).list()?;
    if json {
        let shown = |it: &Token| serde_json::json!({"name": it.name, "created_s": it.created_s});
        let shown: Vec<_> = tokens.iter().map(shown).collect();
        out::line(&serde_json::Value::from(shown).to_string())?;
        return Ok(Ended::Well);
    }
    let width = tokens.iter().map(|token| token.name.len()).max().unwrap_or_default();
    for Token { name, created_s, .. } in &tokens {
        let age = status::span(now_s().saturating_sub(*created_s));
        out::line(&format!("{name:<width$}  made {age} ago"))?;
    }
    if tokens.is_empty() && std::io::stderr().is_terminal() {
        out::note("nobody may write: `snowberry token add NAME` makes a token");
    }
    Ok(Ended::Well)
}

fn remove(config: &Config, name: &str) -> anyhow::Result<Ended> {
    let was_there = tokens(config).remove(name)?;
    anyhow::ensure!(
        was_there,
        "there is no token named {name} in {}: `snowberry token list` shows them",
        config.push.tokens_file.display()
    );
    Ok(Ended::Well)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
