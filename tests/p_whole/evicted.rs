//! What was pushed and then evicted here: the bucket has it still, or it is gone there as well.

use snowberry::nix::Compression;
use snowberry::nix::nar::Node;

use crate::made::{self, Made, noise};
use crate::world::s3::{Kind, S3Server};
use crate::world::{NARINFO_LIMIT, NixClient, Release, Settings, until};
use crate::{LIMIT, Lab};

/// A snowberry with little room whose bucket is target and upstream.
async fn beside(minio: &S3Server) -> Lab {
    let more = format!("{}, push=true", minio.table("nixbuilder"));
    let settings = Settings::new()
        .upstream_with(&minio.url("nixbuilder"), &made::public_key(), &more)
        .set("store.budget=\"10 MiB\"");
    Lab::with(settings).await
}

/// Pushes more than there is room for. Nothing is asked meanwhile: that would be a use.
async fn evict(lab: &Lab, name: &str) {
    for n in 0..8 {
        let name = format!("{name}-{n}");
        let nar = Node::File { executable: false, contents: noise(&name, 2 << 20) }.to_nar();
        let small = Made::noise(&name, 1).packed(Compression::None);
        lab.push(&Made { file: nar.clone(), nar, ..small }).await;
        lab.drained().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_is_had_again_from_the_bucket_by_every_url() {
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    let mut lab = beside(&minio).await;
    // Each is asked first by another URL, the last ones by a cache that remembers nothing.
    let paths: Vec<_> = ["nar", "narinfo", "alias", "raw", "nar-2", "narinfo-2", "alias-2"]
        .into_iter()
        .map(|name| {
            let raw = if name == "raw" { Compression::None } else { Compression::Zstd };
            Made::noise(&format!("evicted-{name}"), 500_000).packed(raw)
        })
        .collect();
    for made in &paths {
        lab.push(made).await;
    }
    lab.drained().await;
    evict(&lab, "filler").await;
    for made in &paths {
        assert!(!lab.is_held(made).await, "{} was not evicted", made.store_path);
    }
    for (n, made) in paths.iter().enumerate() {
        if n == 4 {
            assert!(lab.snowberry.stop().await.success());
            lab.snowberry.restart().await;
        }
        let alias = format!("/{}", made.file_url());
        let nar = || async {
            let answer = lab.get(&made.nar_url()).await;
            assert_eq!((answer.status, answer.whole), (200, true), "{}", made.store_path);
            assert!(made.is_in(&answer.body), "{}", made.store_path);
        };
        let narinfo = || async {
            let narinfo = lab.narinfo(made).await.expect("the narinfo of what the bucket has");
            assert_eq!(format!("/{}", narinfo.url), made.nar_url());
            assert_eq!(narinfo.nar_hash, made.nar_hash());
            assert!(lab.is_ours(&narinfo).await);
        };
        let by_alias = || async {
            let answer = lab.get(&alias).await;
            assert_eq!((answer.status, answer.whole), (200, true), "{alias}");
            let is_raw = made.compression == Compression::None;
            assert!(if is_raw { answer.body == made.nar } else { made.is_in(&answer.body) });
        };
        match n % 4 {
            0 => nar().await,
            1 => narinfo().await,
            2 | 3 => by_alias().await,
            _ => {}
        }
        // Whatever came first, the others are right after it.
        nar().await;
        narinfo().await;
        by_alias().await;
        until("the NAR held again", LIMIT, || async { lab.is_held(made).await.then_some(()) })
            .await;
    }
    // It came from the bucket: nothing of it waits to be sent there again.
    assert_eq!(lab.snowberry.figure("queue", "waiting").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_down_withdraws_nothing() {
    let Some(mut minio) = S3Server::start(Kind::Minio).await else { return };
    let mut lab = beside(&minio).await;
    let made = Made::noise("down", 500_000).packed(Compression::Zstd);
    lab.push(&made).await;
    lab.drained().await;
    evict(&lab, "down-filler").await;
    assert!(!lab.is_held(&made).await, "it was not evicted");
    minio.kill();
    assert!(lab.snowberry.stop().await.success());
    lab.snowberry.restart().await;
    let alias = format!("/{}", made.file_url());
    for url in [made.narinfo_url(), made.nar_url(), alias.clone()] {
        let answer = lab.get(&url).await;
        assert_eq!(answer.status, 404, "{url}");
        assert!(!url.ends_with(".narinfo") || answer.all_after < NARINFO_LIMIT);
    }
    minio.start_again().await;
    for url in [alias, made.narinfo_url(), made.nar_url()] {
        until("what the bucket has", LIMIT, || async {
            (lab.get(&url).await.status == 200).then_some(())
        })
        .await;
    }
    assert!(made.is_in(&lab.get(&made.nar_url()).await.body));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_at_the_bucket_alone_is_not_uploaded_again_and_may_be() {
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    let lab = beside(&minio).await;
    let made = Made::noise("again", 500_000).packed(Compression::Xz);
    lab.push(&made).await;
    lab.drained().await;
    evict(&lab, "again-filler").await;
    assert!(!lab.is_held(&made).await, "it was not evicted");
    // What Nix asks before it uploads: it is safe at the bucket.
    let view = format!("/push{}", made.narinfo_url());
    assert_eq!(lab.get(&view).await.status, 200);
    let sent = || async {
        let target = lab.snowberry.status().await["queue"]["targets"][0].clone();
        target["pushed_bytes"].as_u64().unwrap()
    };
    let before = sent().await;
    lab.push(&made).await;
    lab.drained().await;
    assert_eq!(sent().await, before, "it was sent again");
    assert!(lab.is_held(&made).await);
    assert!(lab.is_ours(&lab.narinfo(&made).await.unwrap()).await);
}

/// What builds one path.
const EXPRESSION: &str = r#"
derivation {
  name = "expired";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-euc" "echo a path that expires > $out" ];
  PATH = "/usr/bin:/bin";
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_expired_here_and_there_is_withdrawn_and_taken_again() {
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    let lab = beside(&minio).await;
    let Some(builder) = NixClient::new(Release::Sid, &[], "") else { return };
    let builder = builder.setting("max-jobs = 1");
    std::fs::write(builder.folder().join("expired.nix"), EXPRESSION).unwrap();
    let built = builder.shell("nix-store --realise $(nix-instantiate /world/expired.nix)").await;
    let path = built.expect_success().trim().to_owned();
    let narinfo_url = format!("/{}.narinfo", crate::world::closure::hash_of(&path));
    let url = lab.push_url();
    let push = ["nix", "copy", "--option", "narinfo-cache-positive-ttl", "0", "--to", &url, &path];
    builder.run(&push).await.expect_success();
    lab.drained().await;
    let narinfo = lab.get(&narinfo_url).await;
    let nar_url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: "));
    let nar_url = format!("/{}", nar_url.unwrap());

    minio.mc(&["rm", "--recursive", "--force", "s3/nix-cache/nar/"]);
    minio.mc(&["rm", &format!("s3/nix-cache{narinfo_url}")]);
    evict(&lab, "other").await;
    assert_eq!(lab.snowberry.client().head(&nar_url).await.status, 404, "it was not evicted");
    // A client that remembers the narinfo learns that there is nothing behind it any more.
    assert_eq!(lab.get(&nar_url).await.status, 404);
    assert_eq!(lab.get(&narinfo_url).await.status, 404);
    assert_eq!(lab.get(&format!("/push{narinfo_url}")).await.status, 404);

    builder.run(&push).await.expect_success();
    assert_eq!(lab.get(&narinfo_url).await.status, 200);
    assert_eq!(lab.get(&nar_url).await.status, 200);
    lab.drained().await;
    minio.mc(&["stat", &format!("s3/nix-cache{narinfo_url}")]);
}
