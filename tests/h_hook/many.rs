//! A thousand builds that wait.

use std::time::Duration;

use crate::kit::{Builder, Cache, expect_held, free_address};
use crate::world::Release;

/// A thousand hooks on a loaded machine: 60 ms each, where some 5 are usual.
const HOOKS_LIMIT: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_builds_wait_and_arrive() {
    let address = free_address();
    let cache = Cache::at(address);
    let Some(builder) = Builder::new(Release::Trixie, address, &cache.token) else { return };
    let add = "mkdir $HOME/files; cd $HOME/files
         for n in {1..1000}; do echo $n > file-$n; done
         nix-store --add file-*";
    let ran = builder.shell(add).await;
    let paths: Vec<String> = ran.expect_success().lines().map(str::to_owned).collect();
    assert_eq!(paths.len(), 1000);
    let hooks = "for path in /nix/store/*-file-*; do
           OUT_PATHS=$path DRV_PATH= /world/snowberry-hook; done";
    let ran = builder.shell(hooks).await;
    assert_eq!((ran.expect_success(), ran.stderr.as_str()), ("", ""));
    println!("1000 hooks took {:?}", ran.took);
    assert!(ran.took < HOOKS_LIMIT, "{:?}", ran.took);
    assert_eq!(builder.waiting().await.len(), 1000);
    builder.shell("nix-store --gc").await.expect_success();
    assert!(builder.are_valid(&paths).await);

    let snowberry = cache.start().await;
    let ran = builder.shell("/world/snowberry spool run --once").await;
    ran.expect_success();
    println!("1000 paths were pushed in {:?}", ran.took);
    expect_held(&snowberry, &paths, true).await;
    assert!(builder.is_empty());
    assert_eq!(builder.roots(), 0);
    assert_eq!(builder.status().await["pushed"], 1000);
}
