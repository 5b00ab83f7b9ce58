//! A real bucket, written as the guides' user, read by a real Nix.

use snowberry::nix::{Compression, StorePath};

use crate::kit::{House, own_key, target};
use crate::made::Made;
use crate::world::closure::{hash_of, name_of};
use crate::world::s3::{Kind, S3Server};
use crate::world::{Closure, NixClient, Release, until};

/// A hundred paths to a real server on two busy cores.
const DRAIN_LIMIT: std::time::Duration = std::time::Duration::from_mins(3);

fn path_of(closure: &Closure, full: &str) -> Made {
    let base_name = |full: &str| format!("{}-{}", hash_of(full), name_of(full));
    let narinfo = closure.narinfo("xz", hash_of(full));
    let references = narinfo.field("References").split(' ').filter(|it| !it.is_empty());
    Made {
        store_path: StorePath::parse(&base_name(full)).unwrap(),
        nar: closure.nar(full),
        file: Vec::new(),
        compression: Compression::Xz,
        references: references.map(|it| StorePath::parse(it).unwrap()).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closure_goes_up_to_minio_as_the_guides_user_and_nix_reads_it_there() {
    let Some(closure) = Closure::get() else { return };
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    let public_key = own_key().public().to_string();
    let bucket = minio.url("").replace("s3://nix-cache?endpoint=", "") + "/nix-cache";
    let Some(client) = NixClient::new(Release::Sid, &[&bucket], &public_key) else { return };
    let table = minio.table("nixbuilder").replace(", ", "\n");
    let mut house = House::new(&[target(&minio.url("nixbuilder"), &table)]).await;
    // The top comes first, so that the order of acceptance is of no help.
    for full in closure.paths.iter().rev() {
        house.accept(&path_of(&closure, full)).await;
    }
    house.run();
    until("the closure in the bucket", DRAIN_LIMIT, || async {
        (house.status(0).waiting == 0).then_some(())
    })
    .await;
    let shown = house.status(0);
    assert_eq!((shown.lost, shown.parked, shown.differs.len()), (0, 0, 0), "{shown:?}");
    let ca = client.bring(&minio.ca);
    let client = client.setting(&format!("ssl-cert-file = {}", ca.display()));
    client.run(&["nix-store", "--realise", &closure.top]).await.expect_success();
    let paths = client.run(&["nix-store", "-qR", &closure.top]).await;
    assert_eq!(paths.expect_success().lines().count(), closure.paths.len());
    client.run(&["nix-store", "--verify", "--check-contents"]).await.expect_success();

    // Accepted once more, nothing is sent: MinIO says when each object goes, which is far off.
    for full in &closure.paths {
        house.accept(&path_of(&closure, full)).await;
    }
    let sent = house.status(0).pushed_bytes;
    house.push.retry();
    until("the queue empty again", DRAIN_LIMIT, || async {
        (house.status(0).waiting == 0).then_some(())
    })
    .await;
    assert_eq!(house.status(0).pushed_bytes, sent);
}
