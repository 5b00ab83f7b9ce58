//! Which files a join writes, and that an undo leaves none of it.

use std::os::unix::fs::PermissionsExt as _;

use snowberry::forward::Joined;

use crate::kit::{Cache, Machine};
use crate::world::{Settings, Snowberry};

const NIX_CONF: &str = "etc/nix/nix.conf";
const OWN_CONF: &str = "etc/nix/snowberry.conf";
const JOINED: &str = "etc/snowberry/joined.toml";

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_leaves_every_byte_as_it_was() {
    let cache = Cache::start(Settings::new()).await;
    for before in [Some("sandbox = true\n"), Some("sandbox = true"), Some(""), None] {
        let machine = Machine::new();
        machine.put("etc/other", "kept");
        if let Some(text) = before {
            machine.put(NIX_CONF, text);
        }
        let all = machine.all();
        for _ in 0..2 {
            machine.join_trusting(&cache, &["--install"]).await.expect(0, OWN_CONF);
        }
        let nix_conf = machine.read(NIX_CONF);
        assert_eq!(nix_conf.matches("!include snowberry.conf").count(), 1, "{nix_conf}");
        assert!(nix_conf.starts_with(before.unwrap_or_default()), "{nix_conf}");
        machine.join(&["--undo"]).await.expect(0, "removed /etc/snowberry/joined.toml");
        assert_eq!(machine.all(), all, "{before:?}");
        machine.join(&["--undo"]).await.expect(0, "");
        assert_eq!(machine.all(), all, "{before:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_learnt_is_what_the_cache_is() {
    let cache = Cache::start(Settings::new()).await;
    let machine = Machine::new();
    let ran = machine.join_trusting(&cache, &[]).await;
    ran.expect(0, "wrote /etc/nix/nix.conf");
    for path in [OWN_CONF, JOINED, "etc/snowberry/ca.pem"] {
        assert!(ran.stderr.contains(&format!("wrote /{path}")), "{}", ran.stderr);
        let mode = machine.path(path).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{path}");
    }
    let joined = Joined::parse(&machine.read(JOINED)).unwrap();
    assert_eq!(joined.name, "snowberry");
    assert_eq!((joined.port, joined.ca_sha256), (cache.address().port(), Some(cache.ca.0)));
    assert_eq!(joined.tls_port, Some(cache.snowberry.tls_address().await.port()));
    assert_eq!(joined.public_key, Some(cache.snowberry.key().await));
    assert_eq!(joined.addresses, [cache.address().ip()]);
    let conf = machine.read(OWN_CONF);
    assert!(conf.contains(&format!("extra-substituters = http://{}\n", cache.address())), "{conf}");
    assert!(conf.contains("narinfo-cache-negative-ttl = 60\n"), "{conf}");
    assert!(!conf.contains("trusted-public-keys"), "{conf}");
    machine
        .join_trusting(&cache, &["--trust-key"])
        .await
        .expect(0, "wrote /etc/nix/snowberry.conf");
    let key = cache.snowberry.key().await.to_string();
    assert!(machine.read(OWN_CONF).contains(&format!("extra-trusted-public-keys = {key}\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_builds_gets_units_hook_and_token() {
    let cache = Cache::start(Settings::new()).await;
    let machine = Machine::new();
    machine.put("token", "snowberry_0123\n");
    let token = machine.path("token").display().to_string();
    let all = machine.all();
    machine.join_trusting(&cache, &["--install"]).await.expect(0, "snowberry-forward.socket");
    assert!(
        !machine.read(OWN_CONF).contains("post-build-hook"),
        "nothing is pushed without a token"
    );
    let ran = machine.join_trusting(&cache, &["--token-file", &token]).await;
    ran.expect(0, "systemctl enable --now snowberry-forward.socket snowberry-forward.path");
    let conf = machine.read(OWN_CONF);
    assert!(conf.contains("extra-substituters = http://127.0.0.1:8501\n"), "{conf}");
    assert!(conf.contains("post-build-hook = /usr/local/bin/snowberry-hook\n"), "{conf}");
    let mode = machine.path("etc/snowberry/token").metadata().unwrap().permissions().mode();
    assert_eq!(
        (machine.read("etc/snowberry/token").as_str(), mode & 0o777),
        ("snowberry_0123\n", 0o600)
    );
    let hook = std::fs::read_link(machine.path("usr/local/bin/snowberry-hook")).unwrap();
    let service = machine.read("etc/systemd/system/snowberry-forward.service");
    assert!(service.contains(&format!("ExecStart={} forward\n", hook.display())), "{service}");
    machine.join(&["--undo"]).await.expect(0, "removed /etc/snowberry/token");
    assert_eq!(machine.all(), all);

    machine.put(NIX_CONF, "post-build-hook = /mine\n");
    let ran = machine.join_trusting(&cache, &["--install", "--token-file", &token]).await;
    ran.expect(0, "call `snowberry hook` from it");
    assert!(!machine.read(OWN_CONF).contains("post-build-hook"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_sure_writes_nothing() {
    let cache = Cache::start(Settings::new()).await;
    let machine = Machine::new();
    let host = cache.address().to_string();
    machine.join(&[&host]).await.expect(1, "there is nobody to ask");
    machine.join(&[&host, "--yes"]).await.expect(1, "--fingerprint");
    let wrong = "00".repeat(32);
    let ran = machine.join(&[&host, "--yes", "--fingerprint", &wrong]).await;
    ran.expect(1, "somebody is in between");
    assert!(ran.stderr.contains(&cache.ca.to_string()) && ran.stderr.contains("00:00"), "{ran:?}");
    machine.join(&[&host, "--yes", "--fingerprint", "x"]).await.expect(2, "no fingerprint");
    let nobody = format!("127.0.0.1:{}", crate::world::free_port());
    machine.join(&[&nobody, "--yes"]).await.expect(1, "connect");
    machine.join(&["nowhere.invalid", "--yes"]).await.expect(1, "not known here");
    assert!(machine.all().is_empty());
    machine.join(&["--undo"]).await.expect(0, "has not joined");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_elsewhere_is_left_alone() {
    let cache = Cache::start(Settings::new()).await;
    let machine = Machine::new();
    machine.put("etc/static/nix.conf", "sandbox = true\n");
    std::fs::create_dir_all(machine.path("etc/nix")).unwrap();
    std::os::unix::fs::symlink("../static/nix.conf", machine.path(NIX_CONF)).unwrap();
    let all = machine.all();
    machine.join_trusting(&cache, &[]).await.expect(1, "join --print nixos");
    assert_eq!(machine.all(), all);
    std::fs::remove_file(machine.path(NIX_CONF)).unwrap();
    machine.put(OWN_CONF, "mine = true\n");
    machine.join_trusting(&cache, &[]).await.expect(1, "not by `snowberry join`");
    assert_eq!(machine.read(OWN_CONF), "mine = true\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_broke_off_is_mended_by_the_next() {
    let cache = Cache::start(Settings::new()).await;
    let machine = Machine::new();
    machine.put(NIX_CONF, "sandbox = true\n");
    let all = machine.all();
    // joined.toml cannot be written: what comes before it is there, nix.conf is as it was.
    std::fs::create_dir_all(machine.path(JOINED)).unwrap();
    machine.join_trusting(&cache, &["--install"]).await.expect(1, "joined.toml");
    assert_eq!(machine.read(NIX_CONF), "sandbox = true\n");
    std::fs::remove_dir(machine.path(JOINED)).unwrap();
    machine.join_trusting(&cache, &["--install"]).await.expect(0, "wrote /etc/nix/nix.conf");
    machine.join(&["--undo"]).await.expect(0, "removed");
    assert_eq!(machine.all(), all);
    // And undone as it broke off.
    std::fs::create_dir_all(machine.path("etc/nix/nix.conf.snowberry-new")).unwrap();
    machine.join_trusting(&cache, &["--install"]).await.expect(1, "nix.conf");
    std::fs::remove_dir(machine.path("etc/nix/nix.conf.snowberry-new")).unwrap();
    machine.join(&["--undo"]).await.expect(0, "removed");
    assert_eq!(machine.all(), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_without_tls_is_joined_in_the_clear() {
    let snowberry: Snowberry = Settings::new().start().await;
    snowberry.ready().await;
    let machine = Machine::new();
    let host = snowberry.address.to_string();
    machine.join(&[&host, "--yes"]).await.expect(0, "plain http");
    let joined = Joined::parse(&machine.read(JOINED)).unwrap();
    assert_eq!((joined.tls_port, joined.ca_file), (None, None));
    let any = "11".repeat(32);
    machine.join(&[&host, "--yes", "--fingerprint", &any]).await.expect(1, "has no CA");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_for_other_configurations_are_printed() {
    let cache = Cache::start(Settings::new()).await;
    let machine = Machine::new();
    let host = cache.address().to_string();
    for (kind, words) in [
        ("nixos", "services.snowberry-forward = {"),
        ("flake", "nixosModules.snowberry-forward"),
        ("nix-darwin", "services.snowberry-forward = {"),
        ("home-manager", "extra-substituters"),
    ] {
        let ran = machine.join(&[&host, "--print", kind]).await;
        ran.expect(0, words);
        assert!(ran.stderr.contains(&cache.ca.to_string()), "{}", ran.stderr);
    }
    assert!(machine.all().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_user_gets_files_of_their_own() {
    let Some(setpriv) = crate::world::parts::program("setpriv") else { return };
    let cache = Cache::start(Settings::new()).await;
    let machine = Machine::new();
    machine.put("home/.config/nix/nix.conf", "sandbox = true\n");
    machine.give_to(65534);
    let all = machine.all();
    let (host, ca) = (cache.address().to_string(), cache.ca.to_string());
    let home = machine.path("home");
    // The build may lie where no other user comes.
    let program = Machine::new();
    std::fs::set_permissions(&program.root, std::fs::Permissions::from_mode(0o755)).unwrap();
    // By another process: what this one has open for writing, a child that another test starts just then
    // has too, and a program that somebody may write to is not run.
    let copied = std::process::Command::new("cp")
        .args([env!("CARGO_BIN_EXE_snowberry").as_ref(), program.path("snowberry").as_os_str()])
        .status();
    assert!(copied.unwrap().success());
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&setpriv);
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.arg(program.path("snowberry")).arg("join");
        command.args(arguments).env("HOME", &home).env_remove("XDG_CONFIG_HOME");
        command.env("SNOWBERRY_CONFIG", "/dev/null").env("XDG_STATE_HOME", home.join("state"));
        crate::kit::Ran::from(command.output().unwrap())
    };
    let ran = run(&[&host, "--yes", "--fingerprint", &ca, "--install"]);
    ran.expect(0, ".config/systemd/user/snowberry-forward.socket");
    ran.expect(0, "systemctl --user enable --now snowberry-forward.socket");
    let joined = Joined::parse(&machine.read("home/.config/snowberry/joined.toml")).unwrap();
    assert_eq!(joined.ca_file, Some(home.join(".config/snowberry/ca.pem")));
    assert!(machine.read("home/.config/nix/nix.conf").ends_with("!include snowberry.conf\n"));
    run(&["--undo"]).expect(0, "removed");
    assert_eq!(machine.all(), all);
}
