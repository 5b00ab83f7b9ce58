//! A builder with the hook, and the cache that it pushes to.

use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use snowberry::push::tokens::Tokens;
use tempfile::TempDir;

use crate::world::nix::Ran;
use crate::world::parts;
use crate::world::{NixClient, Release, Settings, Snowberry};

/// Some paths that refer to each other, and one that nobody wants elsewhere.
const EXPRESSION: &str = r#"
let
  build = name: script: references: derivation {
    inherit name references;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" script ];
    PATH = "/usr/bin:/bin";
  };
  one = build "one" "mkdir $out; awk 'BEGIN { for (n = 0; n < 100000; n++) print n }' > $out/numbers" [ ];
  two = build "two" "echo $references > $out" [ one ];
  odd = build "odd+name_1.0" "mkdir $out; ln -s ${one} $out/one" [ ];
in
{
  all = build "top" "mkdir $out; echo $references > $out/references" [ one two odd ];
  source = build "x-source" "echo x > $out" [ ];
}
"#;

/// The names that are built and wanted, in their order.
pub(crate) const WANTED: [&str; 4] = ["odd+name_1.0", "one", "top", "two"];

/// An address at which nobody listens.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The cache's side: its tokens are there before it is.
pub(crate) struct Cache {
    _folder: TempDir,
    settings: Settings,
    pub(crate) token: String,
}

impl Cache {
    pub(crate) fn at(address: SocketAddr) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("tokens");
        let token = Tokens::new(file.clone()).add("builder", [4; 20], 0).unwrap();
        let settings = Settings::new()
            .set(&format!("push.tokens-file={:?}", file.display().to_string()))
            .set(&format!("listen=[\"{address}\"]"));
        Self { _folder: folder, settings, token }
    }

    pub(crate) async fn start(&self) -> Snowberry {
        self.settings.clone().start().await
    }

    /// A second one, with the same tokens, at another address.
    pub(crate) async fn start_elsewhere(&self) -> Snowberry {
        self.settings.clone().set("listen=[\"127.0.0.1:0\"]").start().await
    }
}

/// A machine whose builds are noted by the hook.
pub(crate) struct Builder {
    pub(crate) nix: NixClient,
}

impl Builder {
    /// None: the test was noted as skipped and must return.
    pub(crate) fn new(release: Release, to: SocketAddr, token: &str) -> Option<Self> {
        Self::on(NixClient::new(release, &[], "")?, release, to, token)
    }

    /// The same on a machine that is there already.
    pub(crate) fn on(
        nix: NixClient,
        release: Release,
        to: SocketAddr,
        token: &str,
    ) -> Option<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_snowberry"));
        nix.bring(program);
        std::os::unix::fs::symlink("snowberry", nix.folder().join("snowberry-hook")).unwrap();
        let mut hook = "/world/snowberry-hook".to_owned();
        if release == Release::Bookworm {
            // Nix 2.8 runs its hook in the mount namespace that it was started in, and a change of
            // that takes it out of any chroot. So this one goes in again.
            let root = parts::part(&format!("nix-{}", release.name()))?;
            let script = format!("#!/bin/sh\nexec /usr/sbin/chroot {} {hook}\n", root.display());
            let outside = nix.folder().join("hook");
            std::fs::write(&outside, script).unwrap();
            std::fs::set_permissions(&outside, Permissions::from_mode(0o755)).unwrap();
            hook = outside.display().to_string();
        }
        let nix = nix.setting("max-jobs = 2").setting(&format!("post-build-hook = {hook}"));
        let builder = Self { nix };
        builder.write("push.nix", EXPRESSION);
        builder.write("token", token);
        let config = format!(
            "[spool]\npath = \"/world/spool\"\nexclude = [\"*-source\"]\n\
             to = \"http://{to}\"\ntoken-file = \"/world/token\"\n"
        );
        builder.write("snowberry.toml", &config);
        Some(builder)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.nix.folder().join(name), text).unwrap();
    }

    /// A script on that machine, with its configuration.
    pub(crate) async fn shell(&self, script: &str) -> Ran {
        let script = format!("export SNOWBERRY_CONFIG=/world/snowberry.toml\n{script}");
        self.nix.shell(&script).await
    }

    /// Builds all: the store paths, the unwanted one last.
    pub(crate) async fn build(&self) -> Vec<String> {
        let script = "nix-store --realise $(nix-instantiate /world/push.nix -A all -A source) >&2
             nix-store -qR $(nix-store -q --outputs $(nix-instantiate /world/push.nix -A all))
             nix-store -q --outputs $(nix-instantiate /world/push.nix -A source)";
        let ran = self.shell(script).await;
        let paths: Vec<String> = ran.expect_success().lines().map(str::to_owned).collect();
        assert_eq!(paths.len(), WANTED.len() + 1, "{paths:?}");
        assert!(!ran.stderr.contains("snowberry: "), "the hook complains:\n{}", ran.stderr);
        paths
    }

    /// `snowberry spool status --json`.
    pub(crate) async fn status(&self) -> Value {
        let ran = self.shell("/world/snowberry spool status --json").await;
        serde_json::from_str(ran.expect_success()).unwrap()
    }

    /// The names of what waits, in their order.
    pub(crate) async fn waiting(&self) -> Vec<String> {
        names(&self.status().await["waiting"])
    }

    /// Whether all of these are valid paths still.
    pub(crate) async fn are_valid(&self, paths: &[String]) -> bool {
        let script = format!("nix-store --check-validity {}", paths.join(" "));
        self.shell(&script).await.success
    }

    /// How many roots lead into the spool, also to nowhere.
    pub(crate) fn roots(&self) -> usize {
        let folder = self.nix.folder().join("nix/var/nix/gcroots/auto");
        let links = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        links.filter(|link| std::fs::read_link(link).unwrap().starts_with("/world/spool")).count()
    }

    /// Whether nothing waits in the folder.
    pub(crate) fn is_empty(&self) -> bool {
        let entries = std::fs::read_dir(self.nix.folder().join("spool")).unwrap();
        !entries.into_iter().any(|entry| entry.unwrap().path().is_symlink())
    }
}

/// The names of the store paths in a list of the status, in their order.
pub(crate) fn names(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap().iter();
    let mut names: Vec<String> =
        list.map(|it| it["path"].as_str().unwrap().split_once('-').unwrap().1.to_owned()).collect();
    names.sort_unstable();
    names
}

/// Whether the cache has each of these.
pub(crate) async fn expect_held(cache: &Snowberry, paths: &[String], is_held: bool) {
    for path in paths {
        let hash = crate::world::closure::hash_of(path);
        let status = cache.narinfo(hash).await.status;
        assert_eq!(status, if is_held { 200 } else { 404 }, "{path}");
    }
}
