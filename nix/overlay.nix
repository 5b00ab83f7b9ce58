# pkgs.snowberry
final: _prev: { snowberry = final.callPackage ./package.nix { }; }
