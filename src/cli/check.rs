//! `check`: one line for each thing that must be right, ok or with what to do. Starts nothing and
//! makes nothing.

use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::lines::Lines;
use super::{ConfigArgs, Ended, runtime};
use crate::config::{Config, Files};
use crate::daemon;
use crate::http::tls::{self, CaState, Identity, Names};
use crate::metrics::Metrics;
use crate::push::tokens::Tokens;
use crate::spool;
use crate::store::disk::{Disk as _, Folder};
use crate::units::ByteSize;
use crate::upstream::{self, HealthState, Upstream};

/// How long an upstream may take: a slow line is not a wrong one.
const UPSTREAM_WAIT: Duration = Duration::from_secs(15);

/// Below this a cache is mostly eviction.
const FREE_MIN: ByteSize = ByteSize(1 << 30);

/// This version was made after the beginning of 2026, in seconds since 1970: a clock before that
/// has not been set yet.
const CLOCK_MIN_S: u64 = 1_767_225_600;

/// A clock beyond 2100 is wrong too: certificates do not reach that far.
const CLOCK_MAX_S: u64 = 4_102_444_800;

/// What is looked at.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Look at the configuration alone: its keys and values, and neither the files it names nor
    /// the network. For a configuration that is made on another machine.
    #[arg(long)]
    config_only: bool,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<Ended> {
    let files = if args.config_only { Files::Elsewhere } else { Files::Here };
    let config = args.config.load_with(files)?;
    let mut lines = Lines::default();
    let file = config.file.as_deref().map(|file| file.display().to_string());
    let file = file.unwrap_or_else(|| "no file, the defaults hold".to_owned());
    lines.tell("configuration", Ok(file))?;
    if args.config_only {
        return Ok(Ended::Well);
    }
    lines.tell("clock", clock(SystemTime::now()))?;
    lines.tell("state directory", state_dir(&config.state_dir))?;
    lines.tell("key", key(&config.state_dir))?;
    if let Some(told) = tls(&config) {
        lines.tell("tls", told)?;
    }
    lines.tell("store", store(&config))?;
    lines.tell("writers", writers(&config))?;
    lines.tell("push", push(&config))?;
    lines.tell("spool", spool(&config))?;
    let runtime = runtime::one_thread()?;
    if config.upstreams.is_empty() {
        lines.tell("upstream", Ok("none: only what is held is served".to_owned()))?;
    }
    let metrics = Metrics::new();
    for upstream in &config.upstreams {
        let told = match Upstream::new(upstream, &config.store_dir, &metrics) {
            Ok(open) => runtime::wait(&runtime, ask(upstream, &open)),
            Err(error) => Err(with_causes(&error)),
        };
        lines.tell("upstream", told)?;
    }
    lines.end()
}

/// What waits on a builder. Most machines are none.
fn spool(config: &Config) -> Result<String, String> {
    let spool = &config.spool;
    if spool.needs_token_file {
        spool::read_token(&spool.token_file).map_err(|error| with_causes(&error))?;
    }
    if !spool.path.exists() {
        return Ok(format!("{} is not there: nothing was built for it", spool.path.display()));
    }
    let view = spool::view(spool).map_err(|error| with_causes(&error))?;
    if !view.entries.is_empty() && !view.is_drained {
        return Err(format!(
            "{} builds wait and nobody pushes them: start `snowberry forward`, or run `snowberry \
             spool run`",
            view.entries.len()
        ));
    }
    Ok(format!("{} builds wait for {}", view.entries.len(), view.to))
}

pub(super) fn clock(now: SystemTime) -> Result<String, String> {
    let now_s = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if (CLOCK_MIN_S..CLOCK_MAX_S).contains(&now_s) {
        return Ok("plausible".to_owned());
    }
    Err(format!(
        "it is {now_s} s after 1970, which cannot be: https and s3 upstreams will refuse. Set it, \
         or let it be set (timedatectl set-ntp true)"
    ))
}

fn state_dir(path: &Path) -> Result<String, String> {
    let shown = path.display();
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            if may_write(path) {
                Ok(shown.to_string())
            } else {
                Err(format!("{shown} cannot be written by this user: chown it, or set state-dir"))
            }
        }
        Ok(_) => Err(format!("{shown} is no folder: move it away, or set state-dir")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if nearest_existing(path).is_some_and(may_write) {
                Ok(format!("{shown} will be made at first start"))
            } else {
                Err(format!("{shown} cannot be made by this user: make it, or set state-dir"))
            }
        }
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

fn key(state_dir: &Path) -> Result<String, String> {
    match daemon::read_own_key(state_dir) {
        Ok(Some(key)) => Ok(key.public().to_string()),
        Ok(None) if daemon::had_own_key(state_dir) => Err(format!(
            "{} is gone: restore it from its backup",
            daemon::own_key_file(state_dir).display()
        )),
        Ok(None) => Ok("will be made at first start".to_owned()),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Nothing where TLS is not configured and there is no CA.
fn tls(config: &Config) -> Option<Result<String, String>> {
    if let Some(files) = &config.tls.files {
        let identity = Identity::of_files(&files.certificate, &files.key);
        let read = identity.refresh(&Names::default(), false, SystemTime::now());
        let shown = files.certificate.display();
        return Some(match read {
            Ok(_) => Ok(format!("the certificate in {shown}")),
            Err(error) => Err(with_causes(&error)),
        });
    }
    let state = tls::ca_state(&config.state_dir);
    match state {
        Ok(CaState::There(ca)) => Some(Ok(format!("own CA, SHA-256 {ca}"))),
        Ok(CaState::Gone) => Some(Err(format!(
            "the CA is gone: restore {} from its backup",
            config.state_dir.join("tls").display()
        ))),
        Ok(CaState::NotYet) if config.tls.listen.is_empty() => None,
        Ok(CaState::NotYet) => Some(Ok("a CA will be made at first start".to_owned())),
        Err(error) => Some(Err(with_causes(&error))),
    }
}

fn store(config: &Config) -> Result<String, String> {
    let path = config.store.path.clone().unwrap_or_else(|| config.state_dir.join("store"));
    let shown = path.display().to_string();
    let was_begun = config.store.marker.as_deref().is_some_and(Path::exists);
    if was_begun && !path.exists() {
        return Err(format!("{shown} is gone, and a store was there: is its disk plugged in?"));
    }
    let existing = nearest_existing(&path).ok_or_else(|| format!("{shown} cannot be seen"))?;
    if !may_write(existing) {
        return Err(format!("{shown} cannot be written by this user: chown it, or set store.path"));
    }
    let space = Folder { path: existing.to_path_buf() }
        .space()
        .map_err(|error| format!("{shown}: how much is free cannot be told: {error}"))?;
    let free = ByteSize(space.free_bytes);
    if free < FREE_MIN && !was_begun {
        return Err(format!("{shown}: only {free} free; choose a larger disk with store.path"));
    }
    Ok(format!("{shown}, {free} free"))
}

fn writers(config: &Config) -> Result<String, String> {
    let file = &config.push.tokens_file;
    match Tokens::new(file.clone()).list().map(|tokens| tokens.len()) {
        Ok(0) => Ok("nobody may write (snowberry token add NAME)".to_owned()),
        Ok(1) => Ok(format!("1 token in {}", file.display())),
        Ok(tokens) => Ok(format!("{tokens} tokens in {}", file.display())),
        Err(error) => Err(format!("{}; nobody may write", with_causes(&error))),
    }
}

fn push(config: &Config) -> Result<String, String> {
    let targets: Vec<&upstream::Config> = config.upstreams.iter().filter(|it| it.push).collect();
    if targets.is_empty() {
        return Ok("to no upstream (push = true): what is pushed here stays here".to_owned());
    }
    let nowhere: Vec<&str> = targets
        .iter()
        .filter_map(|it| it.url.strip_prefix("file://"))
        .filter(|folder| !may_write(Path::new(folder)))
        .collect();
    if nowhere.is_empty() {
        return Ok(format!("to {} of the upstreams below", targets.len()));
    }
    Err(format!(
        "{} cannot be written by this user: is it plugged in? `snowberry bucket init` makes one",
        nowhere.join(", ")
    ))
}

fn nearest_existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|folder| folder.exists())
}

/// Asks the system by making a file that has no name, or one that is removed at once.
fn may_write(folder: &Path) -> bool {
    let probe = folder.join(format!(".snowberry-check-{}", std::process::id()));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&probe).is_ok();
    made && std::fs::remove_file(&probe).is_ok()
}

async fn ask(config: &upstream::Config, upstream: &Upstream) -> Result<String, String> {
    let url = upstream.url();
    let info = match tokio::time::timeout(UPSTREAM_WAIT, upstream.cache_info()).await {
        Ok(Ok(info)) => info,
        Ok(Err(error)) => {
            let advice = advice(upstream.health().state);
            return Err(format!("{url}: {}; {advice}", with_causes(&error)));
        }
        Err(_) => return Err(format!("{url}: no answer within {UPSTREAM_WAIT:?}; is it there?")),
    };
    let keys = if config.unsigned {
        "taken without signatures".to_owned()
    } else {
        format!("{} trusted keys", config.trusted_public_keys.len())
    };
    Ok(format!("{url}, store directory {}, {keys}", info.store_dir))
}

fn advice(state: HealthState) -> &'static str {
    match state {
        HealthState::Up => "its answer is wrong, is the URL that of a Nix cache?",
        HealthState::Down => "look at the network, the name and the port",
        HealthState::Refusing => "look at the credentials, the clock and the bucket's name",
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut shown = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        push_cause(&mut shown, &error);
        cause = error.source();
    }
    shown
}

fn push_cause(shown: &mut String, cause: &impl Display) {
    shown.push_str(": ");
    shown.push_str(&cause.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_never_set_is_told() {
        assert!(clock(UNIX_EPOCH).is_err());
        assert!(clock(UNIX_EPOCH + Duration::from_secs(CLOCK_MIN_S)).is_ok());
        assert!(clock(UNIX_EPOCH + Duration::from_secs(CLOCK_MAX_S)).is_err());
    }

    #[test]
    fn a_state_directory_that_is_missing_is_made_later_and_a_file_in_its_place_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        assert!(state_dir(folder.path()).is_ok());
        assert!(state_dir(&folder.path().join("a/b")).unwrap().contains("will be made"));
        assert!(!folder.path().join("a").exists());
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(state_dir(&file).is_err());
    }

    #[test]
    fn a_push_target_and_the_tokens_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let stick = folder.path().join("stick");
        let sets = [
            format!("state-dir={:?}", folder.path()),
            format!("upstream=[{{url=\"file://{}\",unsigned=true,push=true}}]", stick.display()),
        ];
        let surroundings =
            crate::config::Surroundings { home: Some("/ada".into()), ..Default::default() };
        let config = crate::config::load(None, &sets, &surroundings).unwrap();
        assert!(push(&config).unwrap_err().contains("is it plugged in?"));
        std::fs::create_dir(&stick).unwrap();
        assert_eq!(push(&config).unwrap(), "to 1 of the upstreams below");
        assert!(writers(&config).unwrap().contains("nobody may write"));
        std::fs::write(folder.path().join("tokens"), "garbage").unwrap();
        assert!(writers(&config).unwrap_err().contains("line 1"));
    }

    #[test]
    fn a_store_that_was_begun_and_is_gone_is_told_and_not_begun_again() {
        let folder = tempfile::tempdir().unwrap();
        let surroundings =
            crate::config::Surroundings { home: Some("/ada".into()), ..Default::default() };
        let set = format!("state-dir={:?}", folder.path());
        let config = crate::config::load(None, &[set], &surroundings).unwrap();
        std::fs::write(config.store.marker.as_deref().unwrap(), "").unwrap();
        let told = store(&config).unwrap_err();
        assert!(told.contains("is its disk plugged in?"), "{told}");
    }
}
