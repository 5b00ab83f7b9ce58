//! What a join writes is what `snowberry forward` reads: it finds the cache by it, over TLS that is
//! pinned to the CA that was seen.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::kit::{Cache, Machine};
use crate::world::{Client, Settings, free_port, until};

/// A process that goes with the test.
struct Forwarder(Child);

impl Drop for Forwarder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn forward(machine: &Machine, port: u16) -> Forwarder {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snowberry"));
    let set =
        |key: &str, path: &str| format!("{key}={:?}", machine.path(path).display().to_string());
    command.arg("forward").env("SNOWBERRY_CONFIG", "/dev/null").env("HOME", &machine.root);
    command.args(["--set", &format!("forward.listen=[\"127.0.0.1:{port}\"]")]);
    command.args(["--set", &set("forward.joined-file", "etc/snowberry/joined.toml")]);
    // joined.toml names it as the machine itself sees it.
    command.args(["--set", &set("forward.ca-file", "etc/snowberry/ca.pem")]);
    command.args(["--set", "mdns.enabled=false", "--set", &set("spool.path", "spool")]);
    Forwarder(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_forwarder_goes_by_what_join_wrote() {
    let cache = Cache::start(Settings::new()).await;
    let machine = Machine::new();
    machine.join_trusting(&cache, &["--install"]).await.expect(0, "wrote");
    let port = free_port();
    let _forwarder = forward(&machine, port);
    let client = Client(([127, 0, 0, 1], port).into());
    let key = cache.snowberry.key().await.to_string();
    until("the cache through the forwarder", Duration::from_secs(20), || async {
        let answer = client.try_get("/public-key").await?;
        (answer.status == 200 && answer.text().trim() == key).then_some(())
    })
    .await;
    let log = cache.snowberry.log();
    let over_h2 = log.iter().any(|line| line.contains("/public-key") && line.contains("HTTP/2.0"));
    assert!(over_h2, "{log:#?}");
}
