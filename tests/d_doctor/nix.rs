//! With real Nix clients of three Debian releases, which tell their settings each in its own way.
//! Multicast DNS is switched off: these clients are on the network of who runs the tests.

use std::path::Path;

use crate::Told;
use crate::world::{Closure, NixClient, Release, Settings, Snowberry};

macro_rules! client {
    ($label:ident, $release:expr) => {
        mod $label {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn a_machine_that_uses_the_cache_is_well() {
                well($release).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn what_keeps_nix_from_the_cache_is_told() {
                unwell($release).await;
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

async fn examine(client: &NixClient, arguments: &[&str]) -> (bool, Told) {
    let program = client.bring(Path::new(env!("CARGO_BIN_EXE_snowberry")));
    let mut command = vec![program.to_str().unwrap(), "doctor", "--json"];
    command.extend(["--set", "mdns.enabled=false"]);
    command.extend(arguments);
    let ran = client.run(&command).await;
    assert!(!ran.stdout.is_empty(), "{}", ran.stderr);
    (ran.success, Told::parse(&ran.stdout))
}

async fn well(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let snowberry = behind(&closure).await;
    let url = snowberry.url();
    let Some(client) = NixClient::new(release, &[&url], &closure.public_key) else { return };
    let client = client.setting("narinfo-cache-negative-ttl = 60");
    let authority = snowberry.address.to_string();
    let (success, told) = examine(&client, &[&authority, "--path", &closure.top]).await;
    assert_eq!(told.wrong(), [""; 0], "{:#?}", told.0);
    assert!(success);
    told.expect("settings of Nix", true, "as nix tells them");
    told.expect("port", true, &authority);
    told.expect("nix-cache-info", true, "/nix/store with priority 30");
    told.expect("clock of the cache", true, "agree");
    told.expect("substituter", true, &url);
    told.expect("order", true, "asked first (30)");
    told.expect("absent paths", true, "60 s");
    told.expect("narinfo", true, "is known there");
    told.expect("NAR", true, "a second");
    told.expect("spool", true, "");
}

async fn unwell(release: Release) {
    let Some(closure) = Closure::get() else { return };
    let mut snowberry = behind(&closure).await;
    let authority = snowberry.address.to_string();
    let nixos = "https://cache.nixos.org";
    let Some(client) = NixClient::new(release, &[nixos], &closure.public_key) else { return };
    let (success, told) = examine(&client, &[&authority]).await;
    assert!(!success);
    assert_eq!(told.wrong(), ["substituter", "absent paths"], "{:#?}", told.0);
    told.expect("substituter", false, "extra-substituters = http://127.0.0.1:8501");
    told.expect("absent paths", false, "narinfo-cache-negative-ttl = 60");
    snowberry.stop().await;
    let late = format!("http://{authority}?priority=50");
    let client = NixClient::new(release, &[nixos, &late], &closure.public_key).unwrap();
    let (success, told) = examine(&client, &[&authority]).await;
    assert!(!success);
    told.expect("port", false, "is the cache on");
    told.expect("order", false, "cache.nixos.org (40) is asked before");
}
