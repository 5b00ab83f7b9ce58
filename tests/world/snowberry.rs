//! The built `snowberry serve` as a child process: settings, start, the log, status, the ends.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use snowberry::nix::{NarInfo, PublicKey, StoreDir};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Answer, Client, Machine, until};

/// From the start of the process to the `listening` line.
const START_LIMIT: Duration = Duration::from_secs(20);
/// From SIGTERM to the end of the process.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// What is given to `serve` with `--set`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    upstreams: Vec<String>,
    others: Vec<String>,
    environment: Vec<(String, String)>,
    space: Option<String>,
    wrapper: Vec<String>,
    program: Option<PathBuf>,
    file: Option<PathBuf>,
}

impl Settings {
    /// No upstream and everything else as it is by default, but on loopback.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// One more upstream whose signatures count by this key.
    pub(crate) fn upstream(self, url: &str, key: &str) -> Self {
        self.upstream_with(url, key, "")
    }

    /// The same with more keys of its table, such as `ca-file="/x"`.
    pub(crate) fn upstream_with(mut self, url: &str, key: &str, more: &str) -> Self {
        let comma = if more.is_empty() { "" } else { ", " };
        self.upstreams.push(format!("{{url={url:?}, trusted-public-keys=[{key:?}]{comma}{more}}}"));
        self
    }

    /// One more setting, as on the command line: `store.budget="2 GiB"`.
    pub(crate) fn set(mut self, setting: &str) -> Self {
        self.others.push(setting.to_owned());
        self
    }

    /// Has it read this file, which says what the upstreams are.
    pub(crate) fn file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_path_buf());
        self
    }

    /// Runs it in this network namespace.
    pub(crate) fn inside(mut self, netns: &str) -> Self {
        self.space = Some(netns.to_owned());
        self
    }

    /// A variable of the environment of the process.
    pub(crate) fn environment(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Runs it on this machine, where it listens on port 80 of every address.
    pub(crate) fn on(mut self, machine: &Machine) -> Self {
        self.space = Some(machine.space().to_owned());
        self.set(r#"listen=["[::]:80"]"#)
    }

    /// Has this command start it, with the real one behind its arguments.
    pub(crate) fn wrapped(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|it| (*it).to_owned()).collect();
        self
    }

    /// Another program than the one that was built for this machine.
    pub(crate) fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_path_buf());
        self
    }

    /// Starts it with a state folder of its own.
    pub(crate) async fn start(self) -> Snowberry {
        let folder = TempDir::new().unwrap();
        let process = Process::spawn(&self, folder.path());
        let address = process.listening().await;
        Snowberry { settings: self, folder, process, address }
    }

    fn command(&self, state: &Path) -> Command {
        let built = || PathBuf::from(env!("CARGO_BIN_EXE_snowberry"));
        let mut command = Command::new(self.program.clone().unwrap_or_else(built));
        let mut set = |setting: &str| {
            command.arg("--set").arg(setting);
        };
        set(r#"listen=["127.0.0.1:0"]"#);
        set(&format!("state-dir={:?}", state.join("state").display().to_string()));
        if self.file.is_none() {
            set(&format!("upstream=[{}]", self.upstreams.join(", ")));
        }
        self.others.iter().for_each(|setting| set(setting));
        let mut whole = Command::new(command.get_program());
        if let Some(space) = &self.space {
            // It becomes the program, so that signals reach that.
            whole = Command::new("ip");
            whole.args(["netns", "exec", space]).arg(command.get_program());
        }
        if let Some((wrapper, arguments)) = self.wrapper.split_first() {
            whole = Command::new(wrapper);
            whole.args(arguments).arg(command.get_program());
        }
        whole.arg("serve").args(command.get_args());
        // Neither the configuration nor the credentials of whoever runs the tests may count.
        for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
            whole.env_remove(variable);
        }
        let file = self.file.as_deref().unwrap_or(Path::new("/dev/null"));
        whole.env_remove("AWS_PROFILE").env("HOME", state).env("SNOWBERRY_CONFIG", file);
        whole.env(
            "SNOWBERRY_LOG",
            std::env::var("SNOWBERRY_LOG").unwrap_or("info,snowberry=debug".into()),
        );
        whole.envs(self.environment.iter().map(|(key, value)| (key, value)));
        whole
    }
}

/// A running `snowberry serve`. Dropping it kills it.
pub(crate) struct Snowberry {
    settings: Settings,
    folder: TempDir,
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Snowberry {
    /// The substituter's URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        Client(self.address)
    }

    /// The state folder; the store is below it.
    pub(crate) fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Waits until key and admin socket are there too, which come after `listening`.
    pub(crate) async fn ready(&self) {
        self.log_line(&["snowberry::daemon: ready"], START_LIMIT).await;
    }

    pub(crate) async fn narinfo(&self, store_path_hash: &str) -> Answer {
        self.client().get(&format!("/{store_path_hash}.narinfo")).await
    }

    /// Where it speaks TLS.
    pub(crate) async fn tls_address(&self) -> SocketAddr {
        address_in(&self.log_line(&["tls=true", "addr="], START_LIMIT).await)
    }

    /// The narinfo that clients see at this path, when there is one.
    pub(crate) async fn parsed_narinfo(&self, path: &str) -> Option<NarInfo> {
        let answer = self.client().get(path).await;
        (answer.status == 200).then(|| NarInfo::parse(&answer.body, &StoreDir::default()).unwrap())
    }

    /// The cache's own public key, the one that signs.
    pub(crate) async fn key(&self) -> PublicKey {
        let text = self.client().get("/public-key").await;
        PublicKey::parse(text.text().lines().next().unwrap()).unwrap()
    }

    /// Whether the narinfo is signed by the cache's own key.
    pub(crate) async fn signed(&self, narinfo: &NarInfo) -> bool {
        let key = self.key().await;
        let fingerprint = narinfo.fingerprint(&StoreDir::default());
        narinfo.signatures.iter().any(|signature| key.verifies(&fingerprint, signature))
    }

    /// `GET /api/status`.
    pub(crate) async fn status(&self) -> serde_json::Value {
        let answer = self.client().get("/api/status").await;
        assert_eq!(answer.status, 200, "/api/status: {answer:?}");
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// A number of the status by its two names: `figure("traffic", "misses")`.
    pub(crate) async fn figure(&self, group: &str, name: &str) -> u64 {
        let status = self.status().await;
        status[group][name].as_u64().unwrap_or_else(|| panic!("no {group}.{name} in {status}"))
    }

    /// Waits for a line of the log that contains all of these words.
    pub(crate) async fn log_line(&self, words: &[&str], limit: Duration) -> String {
        self.process.log_line(words, limit).await
    }

    /// The log until now.
    pub(crate) fn log(&self) -> Vec<String> {
        self.process.log.borrow().clone()
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        drop(self.process.child.kill());
        self.process.child.wait().unwrap();
    }

    /// SIGTERM, and waits until it has drained and gone.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let child = std::cell::RefCell::new(&mut self.process.child);
        until("the end after SIGTERM", STOP_LIMIT, || async {
            child.borrow_mut().try_wait().unwrap()
        })
        .await
    }

    /// Starts it again on the same state, under another port. It must have ended before.
    pub(crate) async fn restart(&mut self) {
        let settings = self.settings.clone();
        self.restart_with(settings).await;
    }

    /// The same with other settings.
    pub(crate) async fn restart_with(&mut self, settings: Settings) {
        self.settings = settings;
        self.process = Process::spawn(&self.settings, self.folder.path());
        self.address = self.process.listening().await;
    }
}

pub(super) struct Process {
    pub(super) child: Child,
    log: watch::Receiver<Vec<String>>,
    started: Instant,
}

impl Process {
    fn spawn(settings: &Settings, folder: &Path) -> Self {
        Self::of(settings.command(folder))
    }

    /// Any command that logs as snowberry does.
    pub(super) fn of(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, log) = watch::channel(Vec::new());
        let stderr = child.stderr.take().unwrap();
        // Ends with the process, which closes its stderr.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.send_modify(|log: &mut Vec<String>| log.push(line));
            }
        });
        Self { child, log, started: Instant::now() }
    }

    pub(super) async fn listening(&self) -> SocketAddr {
        let line = self.log_line(&["listening", "addr="], START_LIMIT).await;
        address_in(&line)
    }

    /// The log until now.
    pub(super) fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    pub(super) async fn log_line(&self, words: &[&str], limit: Duration) -> String {
        let mut log = self.log.clone();
        let fits = |line: &&String| words.iter().all(|word| line.contains(word));
        let found = timeout(limit, log.wait_for(|log| log.iter().any(|line| fits(&line)))).await;
        let line = match found {
            Ok(Ok(log)) => log.iter().find(fits).cloned(),
            Ok(Err(_)) | Err(_) => None,
        };
        line.unwrap_or_else(|| {
            panic!("no log line with {words:?} within {limit:?}: {:#?}", self.log.borrow().clone())
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = self.log.borrow();
            eprintln!("--- the end of snowberry's log, started {:?} ago:", self.started.elapsed());
            log.iter().rev().take(60).rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn address_in(line: &str) -> SocketAddr {
    let (_, rest) = line.split_once("addr=").unwrap();
    let address = rest.split_whitespace().next().unwrap().trim_matches('"');
    address.parse().unwrap_or_else(|_| panic!("no address in {line:?}"))
}
