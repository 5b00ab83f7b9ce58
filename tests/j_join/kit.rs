//! A cache with TLS, and a machine that joins it: a folder that stands for its root.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use snowberry::pinned::CaFingerprint;
use tempfile::TempDir;

use crate::world::{Settings, Snowberry};

/// A cache that can be joined.
pub(crate) struct Cache {
    pub(crate) snowberry: Snowberry,
    pub(crate) ca: CaFingerprint,
}

impl Cache {
    pub(crate) async fn start(settings: Settings) -> Self {
        let snowberry = settings.set(r#"tls.listen=["127.0.0.1:0"]"#).start().await;
        snowberry.ready().await;
        let ca = snowberry.client().get("/ca.pem").await;
        let ca = CaFingerprint::of_pem(&ca.body).unwrap();
        Self { snowberry, ca }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.snowberry.address
    }
}

/// A machine below a folder.
pub(crate) struct Machine {
    pub(crate) root: PathBuf,
    _folder: Option<TempDir>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, words: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let all = format!("{}{}", self.stdout, self.stderr);
        assert!(all.contains(words), "{words:?} is not in {all}");
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Machine {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        Self { root: folder.path().to_path_buf(), _folder: Some(folder) }
    }

    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf(), _folder: None }
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) fn put(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// All of it is another user's.
    pub(crate) fn give_to(&self, user: u32) {
        let owner = format!("{user}:{user}");
        let status = Command::new("chown").args(["-R", &owner]).arg(&self.root).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    /// All files with their bytes; of a link where it leads to.
    pub(crate) fn all(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        let mut open = vec![self.root.clone()];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_symlink() {
                    let to = std::fs::read_link(&path).unwrap();
                    all.insert(path, to.display().to_string().into_bytes());
                } else if path.is_dir() {
                    open.push(path);
                } else {
                    all.insert(path.clone(), std::fs::read(&path).unwrap());
                }
            }
        }
        all
    }

    pub(crate) async fn join(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_snowberry"));
        command.arg("join").arg("--root").arg(&self.root).args(arguments);
        command.env("SNOWBERRY_CONFIG", "/dev/null").stdin(Stdio::null());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap().into()
    }

    /// Joins without a question.
    pub(crate) async fn join_trusting(&self, cache: &Cache, more: &[&str]) -> Ran {
        let (host, ca) = (cache.address().to_string(), cache.ca.to_string());
        let arguments = [&[host.as_str(), "--yes", "--fingerprint", &ca], more].concat();
        self.join(&arguments).await
    }
}
