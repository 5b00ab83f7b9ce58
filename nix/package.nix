# The one binary, its man pages, completions and units. The tests need root, real servers and other
# Nix releases: `tests/run` does that, not this build.
{
  lib,
  rustPlatform,
  installShellFiles,
  stdenv,
}:
let
  manifest = (builtins.fromTOML (builtins.readFile ../Cargo.toml)).package;
in
rustPlatform.buildRustPackage {
  pname = manifest.name;
  inherit (manifest) version;
  src = lib.fileset.toSource {
    root = ../.;
    # `benches` and `tests` are named in Cargo.toml: cargo wants to see them.
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../askama.toml
      ../src
      ../benches
      ../tests
      ../systemd
      ../README.md
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;
  nativeBuildInputs = [ installShellFiles ];
  doCheck = false;
  postInstall =
    lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
      $out/bin/snowberry man man
      installManPage man/*
      for shell in bash zsh fish; do
        installShellCompletion --cmd snowberry --$shell <($out/bin/snowberry completions $shell)
      done
    ''
    + ''
      mkdir -p $out/lib/systemd/system
      for unit in systemd/*.service systemd/*.socket systemd/*.path systemd/*.timer; do
        if [ -e "$unit" ]; then
          substitute "$unit" "$out/lib/systemd/system/''${unit##*/}" \
            --replace-quiet /usr/bin/snowberry $out/bin/snowberry
        fi
      done
    '';
  meta = {
    inherit (manifest) description;
    license = with lib.licenses; [
      mit
      asl20
    ];
    mainProgram = "snowberry";
    platforms = lib.platforms.linux;
  };
}
