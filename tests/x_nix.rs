//! The Nix expressions: they parse, what needs no nixpkgs evaluates, and the modules know exactly the
//! keys of the configuration.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops and says what it saw"
)]

mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use snowberry::config::KEYS;
use world::{NixClient, Release};

/// Set to write `nix/options.json` anew instead of comparing it.
const WRITE: &str = "SNOWBERRY_WRITE_OPTIONS";

/// As much of nixpkgs's library as the options need, without its checks of types.
const LIB: &str = r#"
let
  type = name: { inherit name; };
in
{
  mkOption = option: option;
  nameValuePair = name: value: { inherit name value; };
  genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
  unique = builtins.foldl' (seen: one: if builtins.elem one seen then seen else seen ++ [ one ]) [ ];
  filterAttrs = keep: set: builtins.removeAttrs set
    (builtins.filter (name: !keep name set.${name}) (builtins.attrNames set));
  types = {
    str = type "str"; path = type "path"; bool = type "bool"; port = type "port";
    nullOr = inner: { name = "nullOr"; inherit inner; };
    listOf = inner: { name = "listOf"; inherit inner; };
    either = a: b: { name = "either"; inherit a b; };
    enum = values: { name = "enum"; inherit values; };
    ints.between = low: high: { name = "between"; inherit low high; };
    submodule = module: { name = "submodule"; inherit module; };
  };
}
"#;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("nix")
}

fn options() -> Value {
    let option = |key: &snowberry::config::Key| {
        let (table, name) = key.split();
        json!({
            "table": table, "name": name, "kind": key.kind, "default": key.default,
            "help": key.help,
        })
    };
    KEYS.iter().map(option).collect()
}

#[test]
fn the_modules_have_every_key_of_the_configuration_and_no_other() {
    let path = folder().join("options.json");
    let text = format!("{:#}\n", options());
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, &text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert!(found == text, "nix/options.json is old: {WRITE}=1 cargo test --test x_nix");
}

/// A machine with the expressions at `/world/snowberry/nix` and a nixpkgs that has nothing.
fn machine() -> Option<NixClient> {
    let client = NixClient::new(Release::Sid, &[], "")?;
    let top = client.folder().join("snowberry");
    fs::create_dir_all(top.join("nix")).unwrap();
    for file in fs::read_dir(folder()).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, top.join("nix").join(file.file_name().unwrap())).unwrap();
    }
    let nixpkgs = client.folder().join("nixpkgs");
    fs::create_dir_all(&nixpkgs).unwrap();
    fs::write(nixpkgs.join("flake.nix"), "{ outputs = _: { }; }").unwrap();
    fs::write(client.folder().join("lib.nix"), LIB).unwrap();
    Some(client)
}

async fn eval(client: &NixClient, expression: &str) -> Value {
    let command =
        ["nix", "eval", "--json", "--impure", "--offline", "--no-write-lock-file", "--expr"];
    let ran = client.run(&[&command[..], &[expression]].concat()).await;
    serde_json::from_str(ran.expect_success()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_expression_parses() {
    let Some(client) = machine() else { return };
    let parse = "for file in /world/snowberry/nix/*.nix; do nix-instantiate --parse $file; done";
    let parsed = client.shell(parse).await;
    assert!(parsed.expect_success().lines().count() >= 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_flake_has_without_nixpkgs_evaluates() {
    let Some(client) = machine() else { return };
    let modules = eval(
        &client,
        "let flake = import /world/snowberry/nix/flake.nix;
             outputs = flake.outputs { self = outputs; nixpkgs = { }; };
         in { modules = builtins.mapAttrs (_: builtins.typeOf) outputs.nixosModules;
              overlay = builtins.attrNames
                (outputs.overlays.default { callPackage = path: _: path; } { }); }",
    )
    .await;
    let wanted = json!({
        "modules": { "default": "set", "snowberry": "lambda", "snowberry-forward": "lambda" },
        "overlay": ["snowberry"],
    });
    assert_eq!(modules, wanted);
    // By the flake's own door too, with a nixpkgs that is empty.
    let show = "nix eval --json --offline --no-write-lock-file \
                --override-input nixpkgs path:/world/nixpkgs \
                'path:/world/snowberry?dir=nix#.nixosModules' --apply builtins.attrNames";
    let shown: Vec<String> =
        serde_json::from_str(client.shell(show).await.expect_success()).unwrap();
    assert_eq!(shown, ["default", "snowberry", "snowberry-forward"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_is_an_option_with_a_type_and_what_is_set_is_written() {
    let Some(client) = machine() else { return };
    let options = eval(
        &client,
        "let keys = import /world/snowberry/nix/options.nix { lib = import /world/lib.nix; };
             top = keys.settings.module.options;
             names = prefix: options: map (name: prefix + name)
               (builtins.filter (name: options.${name}.type.name == \"nullOr\"
                 && options.${name}.type.inner.name != \"listOf\"
                 || options.${name}.type.name == \"nullOr\" && name != \"upstream\")
                 (builtins.attrNames options));
             tables = builtins.filter (name: top.${name}.type.name == \"submodule\")
               (builtins.attrNames top);
             inside = name: names \"${name}.\" top.${name}.type.module.options;
         in names \"\" top ++ builtins.concatMap inside tables
            ++ names \"upstream.\" top.upstream.type.inner.inner.module.options",
    )
    .await;
    let found: BTreeSet<&str> =
        options.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let wanted: BTreeSet<&str> = KEYS.iter().map(|key| key.path).collect();
    assert_eq!(found, wanted);

    let written = eval(
        &client,
        "(import /world/snowberry/nix/options.nix { lib = import /world/lib.nix; }).written {
           name = \"snowberry\"; listen = null; store = { budget = \"9 GiB\"; path = null; };
           push = { limit = null; }; upstream = [ { url = \"file:///x\"; ca-file = null; } ]; }",
    )
    .await;
    let wanted = json!({
        "name": "snowberry", "store": { "budget": "9 GiB" }, "upstream": [{ "url": "file:///x" }],
    });
    assert_eq!(written, wanted);
}
