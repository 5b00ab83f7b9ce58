{
  description = "snowberry, the Nix binary cache of a home network";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.11";

  outputs =
    { self, nixpkgs }:
    let
      linux = [
        "aarch64-linux"
        "x86_64-linux"
      ];
      eachOf = systems: make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
    in
    {
      overlays.default = import ./overlay.nix;

      packages = eachOf linux (pkgs: rec {
        snowberry = pkgs.callPackage ./package.nix { };
        default = snowberry;
      });

      # For the cache itself, and for each machine of the house.
      nixosModules = {
        snowberry = import ./module.nix;
        snowberry-forward = import ./forward.nix;
        default.imports = [
          (import ./module.nix)
          (import ./forward.nix)
        ];
      };

      darwinModules = rec {
        snowberry-forward = import ./darwin.nix;
        default = snowberry-forward;
      };

      # A Raspberry Pi whose card is made by NixOS instead of `image/`:
      # nix build .#nixosConfigurations.pi.config.system.build.sdImage
      nixosConfigurations.pi = nixpkgs.lib.nixosSystem {
        system = "aarch64-linux";
        modules = [
          "${nixpkgs}/nixos/modules/installer/sd-card/sd-image-aarch64.nix"
          self.nixosModules.snowberry
          ./pi.nix
          { nixpkgs.overlays = [ self.overlays.default ]; }
        ];
      };
    };
}
