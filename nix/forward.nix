# services.snowberry-forward: a machine of the house that reads from the cache, and hands it what it
# builds.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.snowberry-forward;
  common = import ./forward-common.nix { inherit config lib pkgs; };
in
{
  options.services.snowberry-forward = common.options;

  config = lib.mkIf cfg.enable {
    inherit (common.shared) environment nix;

    # The units are the package's own, with their sandbox: nothing runs until Nix asks.
    systemd.packages = [ cfg.package ];
    systemd.sockets.snowberry-forward.wantedBy = [ "sockets.target" ];
    systemd.paths.snowberry-forward = lib.mkIf cfg.push { wantedBy = [ "paths.target" ]; };
    systemd.services.snowberry-forward = {
      environment.SNOWBERRY_CONFIG = "/etc/snowberry/forward.toml";
      path = [ config.nix.package ];
      restartTriggers = [ common.checked ];
      # The service is nobody that can read a secret: systemd reads it, as root.
      serviceConfig = lib.mkIf (cfg.tokenFile != null) {
        LoadCredential = [
          ""
          "token:${cfg.tokenFile}"
        ];
      };
    };
  };
}
