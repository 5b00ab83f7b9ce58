# services.snowberry: the cache, on a Pi or any server with NixOS.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.snowberry;
  keys = import ./options.nix { inherit lib; };
  rendered = (pkgs.formats.toml { }).generate "snowberry.toml" (keys.written cfg.settings);
  # What is wrong in it stops the build of the system, not its next start.
  checked = pkgs.runCommand "snowberry.toml" { } ''
    ${lib.getExe cfg.package} check --config-only --config ${rendered}
    cp ${rendered} $out
  '';
in
{
  options.services.snowberry = {
    enable = lib.mkEnableOption "snowberry, the Nix binary cache of a home network";

    package = lib.mkPackageOption pkgs "snowberry" { };

    port = lib.mkOption {
      type = lib.types.port;
      default = 80;
      description = "Where plain HTTP is served.";
    };

    tlsPort = lib.mkOption {
      type = lib.types.nullOr lib.types.port;
      default = 443;
      description = ''
        Where TLS is served, with a certificate of the cache's own authority unless
        `settings.tls` names another. Tokens travel over TLS only. `null`: no TLS.
      '';
    };

    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether to open the two ports, and 5353/udp for mDNS.";
    };

    credentials = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      default = { };
      example = {
        bucket = "/run/secrets/nixbuilder";
      };
      description = ''
        Files that only the service may read, by name: systemd hands them over, and the
        configuration finds them at `/run/credentials/snowberry.service/NAME`.
      '';
    };

    settings = lib.mkOption {
      type = keys.settings;
      default = { };
      example = lib.literalExpression ''
        {
          name = "snowberry";
          store.budget = "200 GiB";
          upstream = [
            {
              url = "s3://nix-cache?profile=nixbuilder&endpoint=s3.homelab.local";
              trusted-public-keys = [ "s3.homelab.local-1:m0J/oDlLEuG6ezc6MzmpLCN2MYjssO3NMIlr9JdxkTs=" ];
              credentials-file = "/run/credentials/snowberry.service/bucket";
              push = true;
            }
            {
              url = "https://cache.nixos.org";
              trusted-public-keys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
            }
          ];
        }
      '';
      description = "What is written to `snowberry.toml`; see snowberry.toml(5).";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.etc."snowberry/snowberry.toml".source = checked;

    users.users.snowberry = {
      isSystemUser = true;
      group = "snowberry";
    };
    users.groups.snowberry = { };

    networking.firewall = lib.mkIf cfg.openFirewall {
      allowedTCPPorts = [ cfg.port ] ++ lib.optional (cfg.tlsPort != null) cfg.tlsPort;
      allowedUDPPorts = [ 5353 ];
    };

    # The units are the package's own, with their sandbox.
    systemd.packages = [ cfg.package ];
    systemd.services.snowberry = {
      wantedBy = [ "multi-user.target" ];
      restartTriggers = [ checked ];
      serviceConfig.LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") cfg.credentials;
    };
    systemd.sockets.snowberry = {
      wantedBy = [ "sockets.target" ];
      socketConfig.ListenStream = [
        ""
        (toString cfg.port)
      ];
    };
    systemd.sockets.snowberry-tls = lib.mkIf (cfg.tlsPort != null) {
      wantedBy = [ "sockets.target" ];
      socketConfig.ListenStream = [
        ""
        (toString cfg.tlsPort)
      ];
    };
  };
}
