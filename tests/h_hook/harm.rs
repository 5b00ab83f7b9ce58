//! The hook never fails a build.

use crate::kit::{Builder, Cache, WANTED, free_address, names};
use crate::world::{NixClient, Release};

/// Builds with the spool on a file system of these options: what the hook said.
async fn build_on(release: Release, options: &str, harm: &str) -> Option<String> {
    let nix = NixClient::new(release, &[], "")?.home(options);
    let builder = Builder::on(nix, release, free_address(), "token")?;
    let script = format!(
        "export XDG_CACHE_HOME=/world/xdg
         sed -i \"s|/world/spool|$HOME/spool|\" /world/snowberry.toml
         {harm}
         nix-store --realise $(nix-instantiate /world/push.nix -A source -A all)"
    );
    let ran = builder.shell(&script).await;
    assert_eq!(ran.expect_success().lines().count(), 2, "{options}, {harm}:\n{}", ran.stderr);
    let said: Vec<&str> =
        ran.stderr.lines().filter(|line| line.contains("post-build-hook: snowberry: ")).collect();
    Some(said.join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_succeeds_with_a_full_disk_in_each_nix() {
    for release in [Release::Bookworm, Release::Trixie, Release::Sid] {
        // One for the folder above, one for the spool, none for an entry.
        let Some(said) = build_on(release, "nr_inodes=2", "").await else { return };
        assert_eq!(said.matches("No space left on device").count(), 4, "{said}");
        assert!(said.contains("this build will not be pushed: note "), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_succeeds_with_a_spool_that_cannot_be() {
    for (options, harm, told) in [
        ("nr_inodes=1", "", "spool: No space left on device"),
        ("ro", "", "spool: Read-only file system"),
        ("size=1m", "echo > $HOME/spool", "spool: File exists"),
        ("size=1m", "ln -s spool $HOME/spool", "/spool: "),
        ("size=1m", "ln -s /nonexistent $HOME/spool", "spool: "),
        (
            "size=1m",
            "nix-store --init; cd /nix/var/nix/gcroots; rm -rf auto; echo > auto",
            "is not kept",
        ),
    ] {
        let Some(said) = build_on(Release::Trixie, options, harm).await else { return };
        assert!(said.contains(told), "{options}, {harm}, {told:?}:\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_input_makes_the_hook_fail() {
    let Some(builder) = Builder::new(Release::Sid, free_address(), "token") else { return };
    let hooks = [
        "/world/snowberry-hook",
        "/world/snowberry-hook --no-such-option ''",
        "/world/snowberry hook --no-such-option",
        "/world/snowberry hook --config /nonexistent",
        "/world/snowberry hook --set spool.path=7",
        "OUT_PATHS=/etc/passwd /world/snowberry-hook",
        "OUT_PATHS=$'\\377\\376 \\n /nix/store/..' DRV_PATH=/nix/store /world/snowberry-hook",
        "OUT_PATHS=$(printf '/nix/store/%s ' {1..5000}) /world/snowberry-hook",
        "DRV_PATH=/nix/store/9d82wl65gr2phigksgzzimbdf176rx4c-a.drv /world/snowberry-hook",
        "env -i /world/snowberry-hook",
        "OUT_PATHS=/x /world/snowberry-hook <&- >&- 2>&-",
        "OUT_PATHS=/x /world/snowberry-hook 2> /dev/full",
        "(ulimit -n 4; OUT_PATHS=/x /world/snowberry-hook)",
    ];
    for hook in hooks {
        let ran = builder.shell(hook).await;
        assert!(ran.success, "{hook}:\n{}", ran.stderr);
        println!("{hook}: {}", ran.stderr.trim());
    }
    assert!(!builder.nix.folder().join("spool").exists(), "nothing was noted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_gone_for_good_fills_no_builder() {
    let Some(builder) = Builder::new(Release::Trixie, free_address(), "token") else { return };
    let paths = builder.build().await;
    let all = WANTED.len();
    let run = "/world/snowberry spool run --once --set 'spool.bytes-max=";
    let within = builder.shell(&format!("{run}\"1 MiB\"'")).await;
    assert!(!within.success && builder.waiting().await == WANTED, "{}", within.stderr);
    let beyond = builder.shell(&format!("{run}\"1 B\"'")).await;
    assert!(!beyond.success && beyond.stderr.contains("4 were dropped"), "{}", beyond.stderr);
    assert_eq!(beyond.stderr.matches("a build was dropped before").count(), all);
    let status = builder.status().await;
    assert_eq!(status["dropped"], all);
    assert_eq!(names(&status["last_dropped"]), WANTED);
    assert!(builder.is_empty() && builder.roots() == 0);
    builder.shell("nix-store --gc").await.expect_success();
    assert!(!builder.are_valid(&paths).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_said_in_the_words_of_the_cache() {
    let address = free_address();
    let cache = Cache::at(address);
    let Some(builder) = Builder::new(Release::Sid, address, "wrong") else { return };
    builder.build().await;
    let snowberry = cache.start().await;
    let ran = builder.shell("/world/snowberry spool run --once").await;
    assert!(
        !ran.success && ran.stderr.contains("This is no token of this cache"),
        "{}",
        ran.stderr
    );
    builder.write("token", &cache.token);
    builder.shell("/world/snowberry spool run --once").await.expect_success();
    assert!(builder.is_empty());
    drop(snowberry);
}
