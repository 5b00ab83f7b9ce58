//! The same, drained by `snowberry forward`, which looks for the cache by itself.

use crate::build::ARRIVAL_LIMIT;
use crate::kit::{Builder, Cache, WANTED, expect_held, free_address};
use crate::world::{Release, until};

macro_rules! client {
    ($label:ident, $release:expr) => {
        mod $label {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn a_forwarder_brings_what_waits_once_the_cache_is_there() {
                drained($release).await;
            }
        }
    };
}

client!(nix_2_8, Release::Bookworm);
client!(nix_2_26, Release::Trixie);
client!(nix_sid, Release::Sid);

async fn drained(release: Release) {
    let (own, address) = (free_address(), free_address());
    let cache = Cache::at(address);
    let Some(builder) = Builder::new(release, own, &cache.token) else { return };
    let paths = builder.build().await;
    let (wanted, unwanted) = paths.split_at(WANTED.len());
    assert_eq!(builder.waiting().await, WANTED);
    // Killed while it waits; then another one, which finds the cache when that comes.
    let forward = format!(
        "/world/snowberry forward --set 'forward.listen=[\"{own}\"]' \
           --set 'forward.cache=\"http://{address}\"' --set 'spool.to=\"http://{own}/push\"'"
    );
    let script = format!(
        "{forward} & pid=$!
         sleep 1; kill -9 $pid; wait $pid || echo killed
         {forward} & pid=$!
         : > /world/again
         until [ -e /world/stop ]; do sleep 0.1; done
         kill -TERM $pid; wait $pid"
    );
    let meanwhile = async {
        let again = builder.nix.folder().join("again");
        until("the second forwarder", ARRIVAL_LIMIT, || async { again.exists().then_some(()) })
            .await;
        let snowberry = cache.start().await;
        until("an empty spool", ARRIVAL_LIMIT, || async { builder.is_empty().then_some(()) }).await;
        builder.write("stop", "");
        snowberry
    };
    let (ran, snowberry) = tokio::join!(builder.shell(&script), meanwhile);
    assert_eq!(ran.expect_success().trim(), "killed");
    expect_held(&snowberry, wanted, true).await;
    expect_held(&snowberry, unwanted, false).await;
    assert_eq!(builder.roots(), 0);
}
