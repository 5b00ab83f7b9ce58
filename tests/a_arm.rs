//! The program for the Pi. What it is built from and with is held together by tests that need nothing;
//! the built program itself is looked at and run under qemu on request: `tests/run --arm`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test stops and says what it saw"
)]

mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use snowberry::push::tokens::Tokens;
use toml::Value;
use world::closure::hash_of;
use world::{Closure, NixClient, Release, Settings};

/// The aarch64 program, as `image/build-binary` makes it.
const PROGRAM: &str = "SNOWBERRY_BIN_AARCH64";

/// That of Debian 12 and of Raspberry Pi OS of the same year, the oldest that is promised.
const GLIBC_MAX: [u32; 2] = [2, 36];

/// The name by which glibc 2.36 says that it takes relative addresses in their short form.
const RELATIVE: &str = "ABI_DT_RELR";

/// What a card and a page cache are to hold of it.
const PROGRAM_LEN_MAX: u64 = 10 * 1024 * 1024;

/// The pages of a Pi 5's kernel; those of the others are smaller.
const PAGE_LEN: u64 = 16 * 1024;

/// What every system has.
const LIBRARIES: [&str; 4] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-aarch64.so.1"];

/// Crates that move, hash or pack bytes, or speak for each request. redb and h2 are not among them: what
/// the size of theirs costs was measured (docs/building.md).
const HOT: [&str; 11] = [
    "bytes",
    "http",
    "hyper",
    "hyper-util",
    "liblzma-sys",
    "ring",
    "sha2",
    "tokio",
    "tokio-rustls",
    "xxhash-rust",
    "zstd-sys",
];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(name: &str) -> String {
    fs::read_to_string(top().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn parsed(name: &str) -> Value {
    Value::Table(text(name).parse().unwrap())
}

#[test]
fn cross_has_images_that_do_not_move() {
    let cross = parsed("cross.toml");
    let targets = cross["target"].as_table().unwrap();
    assert!(targets.contains_key("aarch64-unknown-linux-gnu"), "{targets:?}");
    for (target, settings) in targets {
        let image = settings["image"].as_str().unwrap();
        let fixed = image.split_once("@sha256:").is_some_and(|(_, digest)| digest.len() == 64);
        let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
        let numbered =
            tag.split('.').count() == 3 && tag.split('.').all(|it| it.parse::<u32>().is_ok());
        assert!(fixed || numbered, "{target}: {image} may be another one tomorrow");
        assert!(image.contains(&format!("/{target}")), "{target}: {image} is for something else");
    }
}

#[test]
fn the_readme_names_the_file_to_cross() {
    let command =
        "CROSS_CONFIG=cross.toml cross build --release --target aarch64-unknown-linux-gnu";
    for place in ["README.md", "cross.toml"] {
        assert!(text(place).contains(command), "{place} does not say: {command}");
    }
    // Where names of files are told apart by their case, `cross` must not find one of its own.
    assert!(!fs::read_dir(top()).unwrap().any(|it| it.unwrap().file_name() == "Cross.toml"));
}

/// A Pi 4 lacks instructions that `-C target-cpu=cortex-a72` takes for granted.
#[test]
fn nothing_is_built_for_one_processor() {
    let mut open = vec![top().to_path_buf()];
    let mut read = 0;
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                // Code says it nowhere, and these hold what others wrote.
                if !["target", ".git", ".cache", "src", "tests", "docs"].contains(&&*name) {
                    open.push(path);
                }
                continue;
            }
            let Ok(text) = fs::read_to_string(&path) else { continue };
            read += 1;
            for word in ["target-cpu", "target-feature", "-march=", "-mcpu="] {
                assert!(!text.contains(word), "{}: {word}", path.display());
            }
        }
    }
    assert!(read > 20, "{read} files were read");
}

#[test]
fn one_compiler_is_named_everywhere() {
    let channel =
        parsed("rust-toolchain.toml")["toolchain"]["channel"].as_str().unwrap().to_owned();
    let numbers: Vec<u32> = channel.split('.').map(|it| it.parse().unwrap()).collect();
    assert_eq!(numbers.len(), 3, "{channel} is not one version");
    let lowest = parsed("Cargo.toml")["package"]["rust-version"].as_str().unwrap().to_owned();
    assert!(channel.starts_with(&format!("{lowest}.")), "{channel} and {lowest}");
    // Debian's, which image/toolchain takes, must not be older.
    let lock = text("image/toolchain.lock");
    let debian = lock.lines().find_map(|line| line.strip_prefix("rustc-web amd64 ")).unwrap();
    let debian: Vec<u32> = debian.split(['.', '+']).take(2).map(|it| it.parse().unwrap()).collect();
    assert!(debian.as_slice() >= &numbers[..2], "{debian:?} is older than {channel}");
}

#[test]
fn what_moves_bytes_is_built_for_speed() {
    let manifest = parsed("Cargo.toml");
    let release = manifest["profile"]["release"].as_table().unwrap();
    assert_eq!(release["opt-level"].as_integer(), Some(3));
    assert_eq!(release["lto"].as_str(), Some("fat"));
    assert_eq!(release["panic"].as_str(), Some("unwind"), "one bad request would end the cache");
    assert_eq!(release["overflow-checks"].as_bool(), Some(true));
    let packages = release["package"].as_table().unwrap();
    // A damaged file must stop the store's writer, and not be worked on.
    assert_eq!(packages["redb"]["overflow-checks"].as_bool(), Some(true));
    let lock = text("Cargo.lock");
    let known = |name: &str| lock.contains(&format!("name = \"{name}\"\n"));
    for (name, settings) in packages.iter().filter(|(name, _)| *name != "*") {
        assert!(known(name), "{name} is not among the crates any more");
        // 2 is for speed too: it unrolls and copies code less than 3.
        let small = settings
            .get("opt-level")
            .is_some_and(|level| level.as_integer().is_none_or(|level| level < 2));
        assert!(!small || !HOT.contains(&&**name), "{name} is built for size");
    }
    for name in HOT {
        assert!(known(name), "{name}: this list is old");
    }
}

/// The built program; None: it was not asked for, and the test must return.
fn program() -> Option<PathBuf> {
    let program = std::env::var_os(PROGRAM).map(PathBuf::from);
    if program.is_none() {
        eprintln!("on request only: tests/run --arm builds the program and sets {PROGRAM}");
    }
    program
}

fn readelf(arguments: &[&str], program: &Path) -> String {
    let output = Command::new("readelf").args(arguments).arg(program).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_needs_no_newer_glibc_than_debian_12_has() {
    let Some(program) = program() else { return };
    let versions = readelf(&["--version-info", "--wide"], &program);
    let mut found: Vec<Vec<u32>> = versions
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("GLIBC_"))
        .map(|version| if version == RELATIVE { "2.36" } else { version })
        .map(|version| version.split('.').map(|it| it.parse().unwrap()).collect())
        .collect();
    found.sort();
    found.dedup();
    eprintln!("versions of glibc that it needs: {found:?}");
    let highest = found.last().expect("it needs none: readelf was misread");
    assert!(highest[..2] <= GLIBC_MAX[..], "it needs {highest:?}");

    let dynamic = readelf(&["--dynamic", "--wide"], &program);
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    for line in needed {
        assert!(LIBRARIES.iter().any(|library| line.contains(library)), "{line}");
    }
}

#[test]
fn it_is_small_and_fits_every_kernel_of_a_pi() {
    let Some(program) = program() else { return };
    let len = fs::metadata(&program).unwrap().len();
    eprintln!("it has {len} bytes");
    assert!(len <= PROGRAM_LEN_MAX, "{len} bytes, at most {PROGRAM_LEN_MAX}");
    let header = readelf(&["--file-header"], &program);
    assert!(header.contains("AArch64"), "{header}");
    assert!(header.contains("DYN"), "its place in memory is not random: {header}");
    assert!(!readelf(&["--sections", "--wide"], &program).contains(".symtab"), "it has symbols");
    let segments = readelf(&["--segments", "--wide"], &program);
    let alignments: Vec<u64> = segments
        .lines()
        .filter(|line| line.trim_start().starts_with("LOAD"))
        .map(|line| line.split_whitespace().last().unwrap().trim_start_matches("0x"))
        .map(|hex| u64::from_str_radix(hex, 16).unwrap())
        .collect();
    assert!(!alignments.is_empty(), "{segments}");
    assert!(alignments.iter().all(|it| it % PAGE_LEN == 0), "{alignments:x?}");
}

/// The program under qemu: what every test of the house starts, on another processor.
fn emulated(program: &Path, settings: Settings) -> Settings {
    let folder = std::env::var_os("SNOWBERRY_TOOLCHAIN")
        .map_or_else(|| top().join("image/.cache/toolchain"), PathBuf::from);
    let runner = folder.join("bin/run-aarch64");
    assert!(runner.exists(), "{}: image/toolchain makes it", runner.display());
    settings.program(program).wrapped(&[runner.to_str().unwrap()])
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_substitutes_a_closure_through_it() {
    let (Some(program), Some(closure)) = (program(), Closure::get()) else { return };
    let settings = Settings::new().upstream(&closure.cache_url("xz"), &closure.public_key);
    let mut snowberry = emulated(&program, settings).start().await;
    let Some(client) = NixClient::new(Release::Trixie, &[], &closure.public_key) else { return };
    let copied = client.run(&["nix", "copy", "--from", &snowberry.url(), &closure.top]).await;
    copied.expect_success();
    client.run(&["nix-store", "--verify", "--check-contents"]).await.expect_success();
    let held = client.shell(&format!("nix-store -qR {} | wc -l", closure.top)).await;
    let held: usize = held.expect_success().trim().parse().unwrap();
    assert!(held >= closure.paths.len(), "{held} paths of {}", closure.paths.len());
    for path in &closure.paths {
        assert_eq!(snowberry.narinfo(hash_of(path)).await.status, 200, "{path}");
    }

    // From its own disk, after a stop in good order.
    assert!(snowberry.stop().await.success());
    snowberry.restart_with(emulated(&program, Settings::new())).await;
    let second = NixClient::new(Release::Trixie, &[], &closure.public_key).unwrap();
    let copied = second.run(&["nix", "copy", "--from", &snowberry.url(), &closure.top]).await;
    copied.expect_success();
}

/// Two paths, one of which refers to the other.
const EXPRESSION: &str = r#"
let
  build = name: script: references: derivation {
    inherit name references;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" script ];
    PATH = "/usr/bin:/bin";
  };
  a = build "a" "mkdir $out; awk 'BEGIN { for (n = 1; n < 200000; n++) print n * 16807 % 2147483647 }' > $out/numbers" [ ];
in
build "top" "mkdir $out; echo $references $out > $out/references" [ a ]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn nix_pushes_a_closure_to_it_and_another_gets_it_back() {
    let Some(program) = program() else { return };
    let Some(builder) = NixClient::new(Release::Trixie, &[], "") else { return };
    let builder = builder.setting("max-jobs = 2");
    let snowberry = emulated(&program, Settings::new()).start().await;
    let tokens = Tokens::new(snowberry.state().join("tokens"));
    let token = tokens.add("builder", [4; 20], 0).unwrap();
    fs::write(builder.folder().join("push.nix"), EXPRESSION).unwrap();
    let built = builder.run(&["nix-build", "--no-out-link", "/world/push.nix"]).await;
    let built = built.expect_success().trim().to_owned();
    for compression in ["zstd", "xz"] {
        let url =
            format!("http://any:{token}@{}/push?compression={compression}", snowberry.address);
        builder.run(&["nix", "copy", "--to", &url, &built]).await.expect_success();
    }

    let key = snowberry.client().get("/public-key").await;
    let key = key.text().lines().next().unwrap().to_owned();
    let reader = NixClient::new(Release::Trixie, &[&snowberry.url()], &key).unwrap();
    reader.run(&["nix-store", "--realise", &built]).await.expect_success();
    let sum = format!("nix-store --dump {built} | sha256sum");
    let (here, there) = (builder.shell(&sum).await, reader.shell(&sum).await);
    assert_eq!(
        here.expect_success(),
        there.expect_success(),
        "{built} came back as something else"
    );
}
