//! Pins, prefetch and eviction as people use them: the built `snowberry` and its commands, in front
//! of a scripted upstream or a real closure.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

#[path = "../made/mod.rs"]
mod made;
#[path = "../world/mod.rs"]
mod world;

mod evicted;
mod fetched;
mod pinned;
mod units;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use made::{Made, MadeCache};
use serde_json::Value;
use snowberry::push::tokens::Tokens;
use tokio::task::JoinHandle;
use world::{Scripted, Settings, Snowberry, until};

/// How long anything may take that happens behind the answers.
const SOON: Duration = Duration::from_secs(20);

/// A cache with these paths, a server for it, and a snowberry in front.
struct Lab {
    cache: MadeCache,
    upstream: Scripted,
    snowberry: Snowberry,
}

/// How a command ended.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Told {
    #[track_caller]
    fn well(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    #[track_caller]
    fn json(self) -> Value {
        serde_json::from_str(&self.well()).unwrap()
    }

    #[track_caller]
    fn badly(self, words: &[&str]) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word}: {self:?}");
        }
        self.stdout
    }
}

impl Lab {
    async fn of<'a>(paths: impl IntoIterator<Item = &'a Made>, budget: &str) -> Self {
        let cache = MadeCache::of(paths);
        let upstream = Scripted::serve(cache.root()).await;
        let settings = Settings::new().upstream(&upstream.url(), &made::public_key());
        let snowberry = settings.set(&format!("store.budget={budget:?}")).start().await;
        snowberry.ready().await;
        Self { cache, upstream, snowberry }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command_of(&self.snowberry, arguments)
    }

    /// A command of people, to its end.
    async fn run(&self, arguments: &[&str]) -> Told {
        run(self.command(arguments), "").await
    }

    /// Narinfo, then NAR, as a client does.
    async fn fetch(&self, made: &Made) {
        let client = self.snowberry.client();
        assert_eq!(client.get(&made.narinfo_url()).await.status, 200);
        let answer = client.get(&made.nar_url()).await;
        assert_eq!((answer.status, answer.whole), (200, true));
        assert!(made.is_in(&answer.body));
    }

    async fn is_held(&self, made: &Made) -> bool {
        self.snowberry.client().head(&made.nar_url()).await.status == 200
    }

    async fn until_held(&self, made: &Made) {
        until("the NAR to be whole here", SOON, async || self.is_held(made).await.then_some(()))
            .await;
    }

    /// Other paths are asked for by a client, one after the other.
    async fn crowd(&self, name: &str, count: usize) {
        for n in 0..count {
            let other = Made::noise(&format!("{name}-{n}"), 1 << 20);
            self.cache.add(&other);
            self.fetch(&other).await;
        }
    }

    /// What a builder shows to be let in.
    fn token(&self) -> String {
        let tokens = Tokens::new(self.snowberry.state().join("tokens"));
        let name = format!("builder-{}", tokens.list().unwrap().len());
        let seed = u8::try_from(tokens.list().unwrap().len()).unwrap();
        let token = tokens.add(&name, [seed; 20], 0).unwrap();
        format!("Basic {}", STANDARD.encode(format!("any:{token}")))
    }

    async fn pins(&self) -> Value {
        self.run(&["pins", "--json"]).await.json()["pins"].clone()
    }
}

fn command_of(snowberry: &Snowberry, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snowberry"));
    let state = format!("state-dir={:?}", snowberry.state().display().to_string());
    command.args(arguments).args(["--set", &state]).env("SNOWBERRY_CONFIG", "/dev/null");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Begins a command; what is awaited is its end.
fn begin(mut command: Command, stdin: &str) -> JoinHandle<Told> {
    let stdin = stdin.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // One that does not read it may have closed it.
        drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Told { code: output.status.code(), stdout, stderr }
    })
}

async fn run(command: Command, stdin: &str) -> Told {
    begin(command, stdin).await.unwrap()
}

fn hash(made: &Made) -> String {
    made.store_path_hash().to_string()
}
