//! Real Nix clients of three Debian releases over https: they trust the CA that `/ca.pem` hands out,
//! substitute a closure, and push with a token.

use crate::kit::Secured;
use crate::world::closure::hash_of;
use crate::world::{Closure, NixClient, Release, Settings};

/// The tests below, for one client.
macro_rules! client {
    ($label:ident, $release:expr) => {
        mod $label {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn substitutes_and_pushes_over_https() {
                substitute_and_push($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn refuses_another_authority() {
                another_authority($release).await;
            }
        }
    };
}

client!(nix_2_8, Release::Bookworm);
client!(nix_2_26, Release::Trixie);
client!(nix_sid, Release::Sid);

const TRUST: [&str; 2] = ["/usr/bin/env", "NIX_SSL_CERT_FILE=/world/ca.pem"];

async fn substitute_and_push(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let settings = Settings::new().upstream(&closure.cache_url("xz"), &closure.public_key);
    let secured = Secured::start(settings).await;
    let url = secured.url("localhost");
    let Some(client) = NixClient::new(release, &[&url], &closure.public_key) else { return };
    secured.ca_file(client.folder());
    let realise = [&TRUST[..], &["nix-store", "--realise", &closure.top]].concat();
    client.run(&realise).await.expect_success();
    client.run(&["nix-store", "--verify", "--check-contents"]).await.expect_success();
    let over_h2 = |line: &&String| line.contains("answered") && line.contains("HTTP/2.0");
    let answered = secured.snowberry.log().iter().filter(over_h2).count();
    println!("{}: {answered} answers over h2", client.version().await);
    assert!(answered > closure.paths.len(), "Nix speaks h2 where it is offered");

    let house = Secured::start(Settings::new()).await;
    let tokens = snowberry::push::tokens::Tokens::new(house.snowberry.state().join("tokens"));
    let token = tokens.add("builder", [4; 20], 0).unwrap();
    house.ca_file(client.folder());
    let port = house.tls.port();
    let to = |user: &str| format!("https://{user}localhost:{port}/push?compression=zstd");
    let (bare, path) = (to(""), closure.path("node-42"));
    let push = [&TRUST[..], &["nix", "copy", "--to", &bare, path]].concat();
    let refused = client.run(&push).await;
    assert!(!refused.success && refused.stderr.contains("token"), "{}", refused.stderr);
    let with_token = to(&format!("any:{token}@"));
    let push = [&TRUST[..], &["nix", "copy", "--to", &with_token, path]].concat();
    client.run(&push).await.expect_success();
    assert_eq!(house.snowberry.narinfo(hash_of(path)).await.status, 200);
    let status = house.snowberry.status().await;
    assert_eq!(status["tls"]["port"], house.tls.port(), "{status}");
}

async fn another_authority(release: Release) {
    let (one, other) =
        tokio::join!(Secured::start(Settings::new()), Secured::start(Settings::new()));
    let Some(client) = NixClient::new(release, &[], "") else { return };
    other.ca_file(client.folder());
    let url = one.url("localhost");
    let from =
        ["nix", "path-info", "--store", &url, "/nix/store/9d82wl65gr2phigksgzzimbdf176rx4c-a"];
    let ran = client.run(&[&TRUST[..], &from].concat()).await;
    assert!(!ran.success, "{}", ran.stdout);
    assert!(ran.stderr.to_lowercase().contains("certificate"), "{}", ran.stderr);
}
