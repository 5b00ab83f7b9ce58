# The keys of snowberry.toml(5) as options. They are read from options.json, which a test holds
# equal to the keys that the program knows: no key is missing here, and none is made up.
{ lib }:
let
  inherit (lib) types mkOption;
  known = builtins.fromJSON (builtins.readFile ./options.json);

  # By what snowberry.toml(5) says is written there. A kind that is not listed is an error at once.
  typeOf = {
    "URL" = types.str;
    "path" = types.either types.path types.str;
    "size" = types.str;
    "span" = types.str;
    "string" = types.str;
    "true or false" = types.bool;
    "http://HOST[:PORT] or https://HOST[:PORT]" = types.str;
    "list of strings" = types.listOf types.str;
    "list of names" = types.listOf types.str;
    "list of patterns" = types.listOf types.str;
    "list of \"ADDRESS:PORT\"" = types.listOf types.str;
    "list of \"ADDRESS/BITS\"" = types.listOf types.str;
    "list of \"NAME:BASE64\"" = types.listOf types.str;
    "number, 1 to 19" = types.ints.between 1 19;
    "\"pushed\" or \"verified\"" = types.enum [
      "pushed"
      "verified"
    ];
  };

  option =
    key:
    mkOption {
      type = types.nullOr (typeOf.${key.kind} or (throw "options.nix knows no kind ${key.kind}"));
      default = null;
      description = "${key.help} Without it: ${key.default}";
    };

  named = keys: builtins.listToAttrs (map (key: lib.nameValuePair key.name (option key)) keys);
  inTable = table: builtins.filter (key: key.table == table) known;
  tables = lib.unique (map (key: key.table) known);
  single = builtins.filter (table: table != "" && table != "upstream") tables;

  table =
    name:
    mkOption {
      type = types.submodule { options = named (inTable name); };
      default = { };
      description = "The `[${name}]` table.";
    };
in
{
  inherit known typeOf;

  # The type of `settings`.
  settings = types.submodule {
    options =
      named (inTable "")
      // lib.genAttrs single table
      // {
        upstream = mkOption {
          type = types.nullOr (types.listOf (types.submodule { options = named (inTable "upstream"); }));
          default = null;
          description = ''
            The caches that are asked for what is not here, in this order. Without any:
            https://cache.nixos.org with its key.
          '';
        };
      };
  };

  # What was set, without what was not: the file has only that.
  written =
    settings:
    let
      strip =
        value:
        if builtins.isAttrs value then
          lib.filterAttrs (_: inner: inner != null && inner != { }) (builtins.mapAttrs (_: strip) value)
        else if builtins.isList value then
          map strip value
        else
          value;
    in
    strip settings;
}
