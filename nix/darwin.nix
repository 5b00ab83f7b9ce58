# services.snowberry-forward for nix-darwin: the same options, started by launchd.
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
    launchd.daemons.snowberry-forward.serviceConfig = {
      ProgramArguments = [
        (lib.getExe cfg.package)
        "forward"
        "--config"
        "/etc/snowberry/forward.toml"
      ];
      KeepAlive = true;
      RunAtLoad = true;
    };
  };
}
