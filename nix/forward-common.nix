# What NixOS and nix-darwin have in common for services.snowberry-forward.
{
  config,
  lib,
  pkgs,
}:
let
  cfg = config.services.snowberry-forward;
  keys = import ./options.nix { inherit lib; };
  settings = lib.recursiveUpdate (keys.written cfg.settings) (
    keys.written {
      forward.cache = cfg.cache;
      forward.ca-file = if cfg.caFile == null then null else "${cfg.caFile}";
      spool.token-file = cfg.tokenFile;
    }
  );
  rendered = (pkgs.formats.toml { }).generate "forward.toml" settings;
in
rec {
  options = {
    enable = lib.mkEnableOption "reading from the snowberry of the house, at no cost while it is away";

    package = lib.mkPackageOption pkgs "snowberry" { };

    cache = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "https://snowberry.local";
      description = ''
        The cache. `null`: the one that `snowberry join` was run for on this machine.
      '';
    };

    caFile = lib.mkOption {
      type = lib.types.nullOr lib.types.path;
      default = null;
      example = lib.literalExpression "./snowberry-ca.pem";
      description = ''
        The certificate authority of the cache (its `/ca.pem`): nothing else is trusted. Compare its
        fingerprint with what `snowberry key show` says on the cache itself.
      '';
    };

    trustedPublicKeys = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = [ "snowberry-1a2b3c4d-1:..." ];
      description = ''
        The cache's own key: whoever holds a token of the cache can then put paths onto this machine.
        Not needed for what other caches have signed.
      '';
    };

    push = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether what this machine builds is handed to the cache, by a post-build-hook.";
    };

    tokenFile = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "/run/secrets/snowberry-token";
      description = "A file with the token of this machine, from `snowberry token add` on the cache.";
    };

    settings = lib.mkOption {
      type = keys.settings;
      default = { };
      description = ''
        What is written to `forward.toml`: the tables `forward`, `spool` and `mdns` of
        snowberry.toml(5).
      '';
    };
  };

  # What both say in the same words; each adds how the forwarder is started.
  shared = {
    environment.systemPackages = [ cfg.package ];
    environment.etc."snowberry/forward.toml".source = checked;
    nix.settings = nixSettings;
  };

  checked = pkgs.runCommand "forward.toml" { } ''
    ${lib.getExe cfg.package} check --config-only --config ${rendered}
    cp ${rendered} $out
  '';

  nixSettings = {
    substituters = lib.mkBefore [ "http://127.0.0.1:8501" ];
    trusted-public-keys = cfg.trustedPublicKeys;
    # What the house built a minute ago is not taken for absent for an hour.
    narinfo-cache-negative-ttl = 60;
  }
  // lib.optionalAttrs cfg.push {
    # A hook has no environment of its own.
    post-build-hook = "${pkgs.writeShellScript "snowberry-hook" ''
      SNOWBERRY_CONFIG=/etc/snowberry/forward.toml exec ${lib.getExe cfg.package} hook
    ''}";
  };
}
