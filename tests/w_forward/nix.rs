//! Real Nix clients of three Debian releases behind `snowberry forward`, while the cache is there,
//! away, and vanishes in the middle of a closure.

use std::time::Duration;

use snowberry::push::tokens::Tokens;

use super::signal;
use super::world::{
    Closure, Fault, Forward, Netns, NixClient, Release, Scripted, Settings, Snowberry, until,
};

/// How long a build may take whose cache vanishes: each NAR in flight is waited for, then tried
/// five times by Nix.
const TROUBLE_LIMIT: Duration = Duration::from_mins(1);

/// The tests below, for one client.
macro_rules! client {
    ($label:ident, $release:expr) => {
        mod $label {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn copies_the_closure() {
                copy($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn builds_with_nobody_there() {
                away($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn builds_when_the_cache_is_killed() {
                vanished($release, Ending::Killed).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn builds_when_the_cache_is_frozen() {
                vanished($release, Ending::Frozen).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn builds_when_the_cable_is_pulled() {
                vanished($release, Ending::Pulled).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn pushes_with_a_token_and_hears_why_it_cannot() {
                push($release).await;
            }
        }
    };
}

client!(nix_2_8, Release::Bookworm);
client!(nix_2_26, Release::Trixie);
client!(nix_sid, Release::Sid);

async fn behind(closure: &Closure) -> Snowberry {
    Settings::new().upstream(&closure.cache_url("xz"), &closure.public_key).start().await
}

async fn expect_whole(client: &NixClient, top: &str, count: usize) {
    client.run(&["nix-store", "--verify", "--check-contents"]).await.expect_success();
    let paths = client.run(&["nix-store", "-qR", top]).await;
    assert!(paths.expect_success().lines().count() >= count);
}

async fn copy(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure).await;
    let forward = Forward::to(&snowberry.url()).await;
    forward.here(closure.hash("node-0"), Duration::from_secs(10)).await;
    let Some(client) = NixClient::new(release, &[&forward.url()], &closure.public_key) else {
        return;
    };
    client.run(&["nix-store", "--realise", &closure.top]).await.expect_success();
    expect_whole(&client, &closure.top, closure.paths.len()).await;
    let second = NixClient::new(release, &[], &closure.public_key).unwrap();
    let copied = second.run(&["nix", "copy", "--from", &forward.url(), &closure.top]).await;
    copied.expect_success();
    expect_whole(&second, &closure.top, closure.paths.len()).await;
}

async fn away(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let next = Scripted::serve(closure.cache("xz")).await;
    let gone = super::world::free_port();
    let forward = Forward::to(&format!("http://127.0.0.1:{gone}")).await;
    let substituters = [&*forward.url(), &*next.url()];
    let Some(client) = NixClient::new(release, &substituters, &closure.public_key) else {
        return;
    };
    let ran = client.run(&["nix-store", "--realise", &closure.top]).await;
    ran.expect_success();
    println!("with nobody there: {:?}", ran.took);
    expect_whole(&client, &closure.top, closure.paths.len()).await;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Killed,
    Frozen,
    Pulled,
}

/// The cache vanishes while one of its NARs is in the middle.
async fn vanished(release: Release, ending: Ending) {
    let Some(closure) = Closure::get() else { return };
    let path = closure.path("node-20");
    let nar = closure.narinfo("xz", closure.hash("node-20")).field("URL").to_owned();
    let upstream = Scripted::serve(closure.cache("xz")).await;
    upstream.fault(&nar, Fault::Held(100_000));
    let netns = (ending == Ending::Pulled).then(Netns::new);
    let mut settings = Settings::new();
    if let Some(netns) = &netns {
        // Its upstream is a folder there: loopback is another one inside. What is held back is then
        // held by a reader's own pace, see below.
        let listen = format!("listen=[\"{}:0\"]", netns.inside());
        settings = settings
            .upstream(&closure.cache_url("xz"), &closure.public_key)
            .set(&listen)
            .inside(&netns.name);
    } else {
        settings = settings.upstream(&upstream.url(), &closure.public_key);
    }
    let mut snowberry = settings.start().await;
    let next = Scripted::serve(closure.cache("xz")).await;
    let forward = Forward::to(&snowberry.url()).await;
    forward.here(closure.hash("node-0"), Duration::from_secs(10)).await;
    let substituters = [&*forward.url(), &*next.url()];
    let Some(client) = NixClient::new(release, &substituters, &closure.public_key) else {
        return;
    };
    let vanish = async {
        match &netns {
            None => {
                until("the NAR to be asked for", Duration::from_mins(1), async || {
                    (upstream.asked(&nar) > 0).then_some(())
                })
                .await;
            }
            Some(_) => {
                forward.log_line(&["answered", "/nar/"], Duration::from_mins(1)).await;
            }
        }
        match ending {
            Ending::Killed => snowberry.kill(),
            Ending::Frozen => signal("STOP", snowberry.pid()),
            Ending::Pulled => netns.as_ref().unwrap().pull(),
        }
    };
    let command = ["nix-store", "--realise", path];
    let (ran, ()) = tokio::join!(client.run(&command), vanish);
    println!("{ending:?}: {:?}", ran.took);
    assert!(ran.success, "{ending:?}: failed after {:?}\n{}", ran.took, ran.stderr);
    assert!(ran.took < TROUBLE_LIMIT, "{ending:?}: {:?}", ran.took);
    assert!(next.asked("/nar/") > 0, "{ending:?}: the next substituter was not needed");
    expect_whole(&client, path, 1).await;
}

async fn push(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let mut snowberry = Settings::new().start().await;
    let token = Tokens::new(snowberry.state().join("tokens")).add("tester", [1; 20], 0).unwrap();
    let next = Scripted::serve(closure.cache("xz")).await;
    let forward = Forward::to(&snowberry.url()).await;
    let Some(client) = NixClient::new(release, &[&next.url()], &closure.public_key) else {
        return;
    };
    let path = closure.path("node-20");
    client.run(&["nix-store", "--realise", path]).await.expect_success();
    let url = format!("http://any:{token}@{}/push?compression=zstd", forward.address);
    client.run(&["nix", "copy", "--to", &url, path]).await.expect_success();
    assert_eq!(snowberry.narinfo(closure.hash("node-20")).await.status, 200);
    assert_eq!(forward.narinfo(closure.hash("node-20")).await.status, 200);

    snowberry.kill();
    let node = closure.path("node-30");
    client.run(&["nix-store", "--realise", node]).await.expect_success();
    let refused = client.run(&["nix", "copy", "--to", &url, node]).await;
    assert!(!refused.success && refused.stderr.contains("is away"), "{}", refused.stderr);
    assert!(refused.took < Duration::from_secs(30), "{:?}", refused.took);
}
