# More than a hundred small derivations whose outputs refer to each other in chains and diamonds.
# Sizes go from nothing to some MiB, one is large; the contents compress to about a third, and are
# the same whenever they are built.
let
  # `numbers SEED LINES` prints random numbers, about eleven bytes a line.
  prelude = ''
    numbers() { awk -v s=$1 -v n=$2 'BEGIN { while (n-- > 0) { s = s * 16807 % 2147483647; print s } }'; }
    echo "building $name"
  '';
  build = name: script: references: derivation {
    inherit name references;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" (prelude + script) ];
    PATH = "/usr/bin:/bin";
  };

  lines = [ 0 1 10 400 6000 25000 80000 ];
  node = index: build "node-${toString index}" ''
    mkdir -p $out/share
    numbers ${toString (index + 1)} ${toString (builtins.elemAt lines (index - index / 7 * 7))} > $out/share/numbers
    echo "$references" > $out/references
  '' (map (builtins.elemAt nodes) (below index));
  below = index: if index == 0 then [ ] else [ (index - 1) (index / 2) (index / 3) ];
  nodes = builtins.genList node 100;

  # One NAR under two store paths.
  twin = name: build name "mkdir $out; numbers 77 30000 > $out/same" [ ];

  # What a NAR can hold: the order of its entries is that of their bytes.
  odd = build "odd+name_1.0-a" ''
    mkdir -p "$out/a" "$out/a b" "$out/a-b" "$out/empty" "$out/Z"
    echo 1 > "$out/ab"; echo 2 > "$out/a.b"; echo 3 > "$out/Z/$(printf '\303\274')"
    printf '12345678' > $out/eight; printf '123456789' > $out/nine; : > $out/none
    printf '#!/bin/sh\n' > $out/run; chmod 755 $out/run
    ln -s ../a/none $out/link; ln -s /nowhere $out/away
  '' [ ];

  others = [
    (twin "twin-a")
    (twin "twin-b")
    odd
    (build "self" "mkdir $out; echo $out > $out/self" [ ])
    (build "empty-file" ": > $out" [ ])
    (build "script" "echo exit 0 > $out; chmod 755 $out" [ ])
    (build "symlink" "ln -s $references/run $out" [ odd ])
    (build "large" "mkdir $out; numbers 4242 2200000 > $out/numbers" [ ])
  ];
in
build "top" "mkdir $out; echo $references > $out/references" (nodes ++ others)
