//! Realisations of content-addressed derivations, put by a real Nix and read by another.

use tempfile::TempDir;

use crate::Lab;
use crate::made;
use crate::world::{NixClient, Release, Settings};

/// A content-addressed path that refers to another one.
const EXPRESSION: &str = r#"
let
  build = name: text: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" ("echo " + text + " > $out") ];
    __contentAddressed = true;
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
  };
in build "ca-top" "${build "ca-below" "below"}"
"#;

/// A machine that knows of them.
fn machine(release: Release, substituters: &[&str]) -> Option<NixClient> {
    let nix = NixClient::new(release, substituters, "")?
        .setting("extra-experimental-features = ca-derivations");
    std::fs::write(nix.folder().join("ca.nix"), EXPRESSION).unwrap();
    Some(nix)
}

async fn check(release: Release) {
    let Some(builder) = machine(release, &[]) else { return };
    let builder = builder.setting("max-jobs = 2");
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    let target = format!("file://{}", folder.path().display());
    let lab = Lab::with(Settings::new().upstream_with(&target, &made::public_key(), "push=true"));
    let lab = lab.await;

    let built = builder.run(&["nix-build", "/world/ca.nix", "--no-out-link"]).await;
    let path = built.expect_success().trim().to_owned();
    let url = lab.push_url();
    let put = ["nix", "copy", "--to", &url, "--file", "/world/ca.nix"];
    builder.run(&put).await.expect_success();
    lab.drained().await;

    // The folder has what Nix would have put there, and so do we, by both spellings.
    let documents: Vec<_> = std::fs::read_dir(folder.path().join("realisations"))
        .expect("realisations at the target")
        .map(|entry| entry.unwrap())
        .collect();
    assert!(!documents.is_empty());
    let mut tops = 0;
    for entry in &documents {
        let name = entry.file_name().into_string().unwrap();
        let body = std::fs::read(entry.path()).unwrap();
        let realisation: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let out_path = realisation["outPath"].as_str().unwrap();
        tops += usize::from(path.ends_with(out_path));
        for spelled in [name.clone(), name.replace('!', "%21")] {
            let answer = lab.get(&format!("/realisations/{spelled}")).await;
            assert_eq!((answer.status, &answer.body[..]), (200, &body[..]), "{spelled}");
        }
    }
    assert_eq!(tops, 1, "one realisation is of {path}");

    // A machine that builds nothing gets the output by its realisation alone.
    let substituter = lab.snowberry.url();
    let reader = machine(release, &[&substituter]).unwrap().setting("require-sigs = false");
    let got = reader.run(&["nix-build", "/world/ca.nix", "--no-out-link"]).await;
    assert_eq!(got.expect_success().trim(), path);
    reader.run(&["nix-store", "--verify", "--check-contents"]).await.expect_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn realisations_of_nix_2_8_are_taken_and_read() {
    check(Release::Bookworm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn realisations_of_nix_sid_are_taken_and_read() {
    check(Release::Sid).await;
}
