//! Real Nix clients of three Debian releases read from the cache once their machine has joined, and not
//! any more when that is undone.

use crate::kit::{Cache, Machine};
use crate::world::{Closure, NixClient, Release, Settings};

/// The tests below, for one client.
macro_rules! client {
    ($label:ident, $release:expr) => {
        mod $label {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn substitutes_after_a_join_and_not_after_its_undo() {
                join_and_undo($release).await;
            }
        }
    };
}

client!(nix_2_8, Release::Bookworm);
client!(nix_2_26, Release::Trixie);
client!(nix_sid, Release::Sid);

/// The folder that stands for the machine's root as the commands see it, and no configuration beside
/// its own: what `enter` gives in the environment would come last.
const AS_MACHINE: [&str; 4] =
    ["/usr/bin/env", "-u", "NIX_CONFIG", "NIX_CONF_DIR=/world/machine/etc/nix"];

async fn join_and_undo(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let settings = Settings::new().upstream(&closure.cache_url("xz"), &closure.public_key);
    let cache = Cache::start(settings).await;
    let Some(client) = NixClient::new(release, &[], "") else { return };
    let machine = Machine::at(&client.folder().join("machine"));
    let path = closure.path("node-42");
    // Without an end of its last line, which Nix reads all the same.
    let before = format!(
        "build-users-group =\nsandbox = false\nexperimental-features = nix-command flakes\n\
         substituters =\nmax-jobs = 0\nnarinfo-cache-negative-ttl = 0\n\
         trusted-public-keys = {}",
        closure.public_key
    );
    machine.put("etc/nix/nix.conf", &before);
    let nix = async |command: &[&str]| client.run(&[&AS_MACHINE[..], command].concat()).await;
    let realise = ["nix-store", "--realise", path];
    assert!(!nix(&realise).await.success, "nobody is asked yet");

    machine.join_trusting(&cache, &[]).await.expect(0, "wrote /etc/nix/nix.conf");
    let shown = nix(&["nix", "show-config"]).await;
    let shown = shown.expect_success();
    let setting = |name: &str| {
        let line = shown.lines().find(|line| line.split(" = ").next() == Some(name));
        line.and_then(|line| line.split_once(" = ")).map(|(_, value)| value.trim().to_owned())
    };
    assert_eq!(setting("substituters"), Some(format!("http://{}", cache.address())));
    assert_eq!(setting("narinfo-cache-negative-ttl").as_deref(), Some("60"));
    assert_eq!(setting("trusted-public-keys").as_deref(), Some(closure.public_key.as_str()));
    nix(&realise).await.expect_success();
    let from = format!("http://{}", cache.address());
    nix(&["nix", "copy", "--from", &from, closure.path("twin-a")]).await.expect_success();

    machine.join(&["--undo"]).await.expect(0, "removed");
    assert_eq!(machine.read("etc/nix/nix.conf"), before);
    let other = ["nix-store", "--realise", closure.path("large")];
    assert!(!nix(&other).await.success, "nobody is asked any more");
    println!("{}", client.version().await);
}
