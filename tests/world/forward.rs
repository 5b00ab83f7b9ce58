//! The built `snowberry forward` as a child process.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::snowberry::Process;
use super::{Answer, Client, until};

/// A running `snowberry forward`. Dropping it kills it.
pub(crate) struct Forward {
    process: Process,
    _home: TempDir,
    pub(crate) address: SocketAddr,
}

impl Forward {
    /// To this cache.
    pub(crate) async fn to(url: &str) -> Self {
        Self::with(&[&format!("forward.cache={url:?}")]).await
    }

    /// With these settings, and nothing of this machine.
    pub(crate) async fn with(settings: &[&str]) -> Self {
        Self::inside(None, settings).await
    }

    /// The same in a network namespace.
    pub(crate) async fn inside(netns: Option<&str>, settings: &[&str]) -> Self {
        let home = TempDir::new().unwrap();
        let program = OsStr::new(env!("CARGO_BIN_EXE_snowberry"));
        let mut command = super::netns::command(netns, program);
        command.arg("forward").arg("--set").arg(r#"forward.listen=["127.0.0.1:0"]"#);
        let joined = home.path().join("joined.toml").display().to_string();
        command.arg("--set").arg(format!("forward.joined-file={joined:?}"));
        let spool = home.path().join("spool").display().to_string();
        command.arg("--set").arg(format!("spool.path={spool:?}"));
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        command.env("HOME", home.path()).env("SNOWBERRY_CONFIG", "/dev/null");
        let log = std::env::var("SNOWBERRY_LOG").unwrap_or("info,snowberry=debug".into());
        command.env("SNOWBERRY_LOG", log);
        let process = Process::of(command);
        let address = process.listening().await;
        Self { process, _home: home, address }
    }

    /// The substituter's URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        Client(self.address)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub(crate) async fn narinfo(&self, store_path_hash: &str) -> Answer {
        self.client().get(&format!("/{store_path_hash}.narinfo")).await
    }

    /// Waits until it passes this narinfo on.
    pub(crate) async fn here(&self, store_path_hash: &str, limit: Duration) {
        until("the cache to be here", limit, || async {
            (self.narinfo(store_path_hash).await.status == 200).then_some(())
        })
        .await;
    }

    /// Waits for a line of the log that contains all of these words.
    pub(crate) async fn log_line(&self, words: &[&str], limit: Duration) -> String {
        self.process.log_line(words, limit).await
    }

    /// The log until now.
    pub(crate) fn log(&self) -> Vec<String> {
        self.process.log()
    }
}
