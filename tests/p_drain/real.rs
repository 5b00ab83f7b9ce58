//! Real buckets, written as the guides' user, read by a real Nix and by `mc`.

use snowberry::nix::nar::Node;
use snowberry::nix::{Compression, StorePath};

use crate::kit::{House, nar_key, own_key, target};
use crate::made::{Made, noise};
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

/// A path of 200 MiB that no codec makes smaller: it goes up in parts.
fn large() -> Made {
    let contents = noise("large", 200 << 20);
    let nar = Node::File { executable: false, contents }.to_nar();
    Made { nar, ..Made::noise("large", 1) }
}

/// What `mc` lists in the bucket, by the end of the names.
fn listed(server: &S3Server, ending: &str) -> usize {
    let listed = server.mc(&["ls", "--recursive", "s3/nix-cache"]);
    listed.lines().filter(|line| line.ends_with(ending)).count()
}

async fn drained(house: &House) {
    until("the closure in the bucket", DRAIN_LIMIT, || async {
        (house.status(0).waiting == 0).then_some(())
    })
    .await;
}

/// The closure goes up as the guides' user, `mc` lists it, Nix reads it there; what is accepted
/// once more is not sent again.
async fn check(kind: Kind, more: Option<Made>) {
    let Some(closure) = Closure::get() else { return };
    let Some(server) = S3Server::start(kind).await else { return };
    let public_key = own_key().public().to_string();
    let bucket = server.url("").replace("s3://nix-cache?endpoint=", "") + "/nix-cache";
    let Some(client) = NixClient::new(Release::Sid, &[&bucket], &public_key) else { return };
    let table = server.table("nixbuilder").replace(", ", "\n");
    let mut house = House::new(&[target(&server.url("nixbuilder"), &table)]).await;
    let mut tops = vec![closure.top.clone()];
    if let Some(made) = &more {
        house.accept(made).await;
        tops.push(format!("/nix/store/{}", made.store_path.base_name()));
    }
    // The top comes first, so that the order of acceptance is of no help.
    for full in closure.paths.iter().rev() {
        house.accept(&path_of(&closure, full)).await;
    }
    house.run();
    drained(&house).await;
    let shown = house.status(0);
    assert_eq!((shown.lost, shown.parked, shown.differs.len()), (0, 0, 0), "{shown:?}");
    let count = closure.paths.len() + tops.len() - 1;
    assert_eq!(listed(&server, ".narinfo"), count);
    assert!(listed(&server, ".nar.zst") > 0);
    if let Some(made) = &more {
        let object = server.mc(&["stat", "--json", &format!("s3/nix-cache/{}", nar_key(made))]);
        let object: serde_json::Value = serde_json::from_str(&object).unwrap();
        let etag = object["etag"].as_str().unwrap();
        assert!(etag.contains('-'), "it did not go up in parts: {object}");
    }
    let ca = client.bring(&server.ca);
    let client = client.setting(&format!("ssl-cert-file = {}", ca.display()));
    let with = |first: &[&str]| -> Vec<String> {
        first.iter().map(ToString::to_string).chain(tops.clone()).collect()
    };
    let run = async |command: Vec<String>| {
        client.run(&command.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    run(with(&["nix-store", "--realise"])).await.expect_success();
    let paths = run(with(&["nix-store", "-qR"])).await;
    assert_eq!(paths.expect_success().lines().count(), count);
    client.run(&["nix-store", "--verify", "--check-contents"]).await.expect_success();

    // MinIO says when each object goes, which is far off.
    let again = closure.paths.iter().map(|full| path_of(&closure, full)).chain(more);
    for made in again {
        house.accept(&made).await;
    }
    let sent = house.status(0).pushed_bytes;
    house.push.retry();
    drained(&house).await;
    assert_eq!(house.status(0).pushed_bytes, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closure_goes_up_to_minio_as_the_guides_user_and_nix_reads_it_there() {
    check(Kind::Minio, Some(large())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closure_goes_up_to_seaweedfs_and_nix_reads_it_there() {
    check(Kind::SeaweedFs, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closure_goes_up_to_the_juicefs_gateway_and_nix_reads_it_there() {
    check(Kind::JuiceFs, None).await;
}
