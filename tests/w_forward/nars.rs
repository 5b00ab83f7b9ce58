//! NARs that break off in the middle.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;

use super::made::Made;
use super::world::proxy::Wire;
use super::world::{Forward, until};
use super::{Lab, signal};

/// How long a NAR waits for a cache that has the rest, and what a busy machine adds.
const RESUME_LIMIT: Duration = Duration::from_secs(6);

const LEN: usize = 8 << 20;

/// More than the sockets between cache and client hold by themselves (4 MiB of each writer, and what
/// readers have not taken): the cache cannot have given all of it away before something happens to it.
const LONG_LEN: usize = 40 << 20;

/// A lab that holds the NAR whole.
async fn held(made: &Made) -> Lab {
    let lab = Lab::of(&[made]).await;
    assert_eq!(lab.snowberry.client().get(&made.narinfo_url()).await.status, 200);
    assert!(lab.snowberry.client().get(&made.nar_url()).await.whole);
    until("the NAR to be held", Duration::from_secs(20), async || {
        (lab.snowberry.client().head(&made.nar_url()).await.status == 200).then_some(())
    })
    .await;
    lab
}

#[tokio::test]
async fn a_nar_that_is_cut_is_gone_on_with_byte_for_byte() {
    let made = Made::noise("resumed", LEN);
    let lab = held(&made).await;
    let wire = Wire::to(lab.snowberry.address, 1 << 20, 3).await;
    let forward = Forward::to(&wire.url()).await;
    forward.here(&made.store_path_hash().to_string(), Duration::from_secs(5)).await;
    let direct = lab.snowberry.client().get(&made.nar_url()).await;
    let nar = forward.client().get(&made.nar_url()).await;
    assert_eq!((nar.status, nar.whole), (200, true));
    assert!(nar.body == direct.body, "other bytes");
    assert_eq!(wire.cuts(), 3);
    let requests = wire.requests().to_lowercase();
    assert_eq!(requests.matches("range: bytes=").count(), 3, "{requests}");
    assert_eq!(requests.matches("if-range: \"").count(), 3, "{requests}");
    // A part of it likewise.
    let wire = Wire::to(lab.snowberry.address, 1 << 20, 1).await;
    let forward = Forward::to(&wire.url()).await;
    forward.here(&made.store_path_hash().to_string(), Duration::from_secs(5)).await;
    let part = forward.client().get_with(&made.nar_url(), &[("range", "bytes=1000-5000000")]).await;
    assert_eq!((part.status, part.whole, wire.cuts()), (206, true, 1));
    assert!(part.body == direct.body[1000..=5_000_000], "other bytes");
}

#[tokio::test]
async fn a_nar_of_a_cache_that_is_gone_is_cut_and_never_ends_well() {
    let made = Made::noise("gone", LONG_LEN);
    let mut lab = held(&made).await;
    let forward = Forward::to(&lab.snowberry.url()).await;
    forward.here(&made.store_path_hash().to_string(), Duration::from_secs(5)).await;
    let mut tasks = tokio::task::JoinSet::new();
    // Its reader rests, so that most of it is still there when the cache is killed.
    let response = forward.client().open(&made.nar_url(), &mut tasks).await;
    lab.snowberry.kill();
    let began = Instant::now();
    let body = response.into_body().collect().await;
    assert!(body.is_err(), "a NAR without its end was called whole");
    assert!(began.elapsed() < RESUME_LIMIT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_nar_of_a_frozen_cache_goes_on_when_it_thaws_soon() {
    let made = Made::noise("thawed", LONG_LEN);
    let lab = held(&made).await;
    let forward = Forward::to(&lab.snowberry.url()).await;
    forward.here(&made.store_path_hash().to_string(), Duration::from_secs(5)).await;
    let direct = lab.snowberry.client().get(&made.nar_url()).await.body;
    let mut tasks = tokio::task::JoinSet::new();
    let response = forward.client().open(&made.nar_url(), &mut tasks).await;
    signal("STOP", lab.snowberry.pid());
    let thaw = async {
        forward.log_line(&["cache lost"], Duration::from_secs(5)).await;
        signal("CONT", lab.snowberry.pid());
    };
    let (body, ()) = tokio::join!(response.into_body().collect(), thaw);
    assert!(body.unwrap().to_bytes() == direct, "other bytes");
    forward.log_line(&["nar gone on with"], Duration::from_secs(5)).await;
}
