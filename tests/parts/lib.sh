# What the scripts of tests/parts share. A part is a folder in the cache folder, made under another
# name and renamed when it is whole, so that a run that was cut leaves nothing that looks finished.

CACHE=${SNOWBERRY_TEST_CACHE:-$(dirname "${BASH_SOURCE[0]}")/../.cache}
mkdir -p "$CACHE/log"; CACHE=$(cd "$CACHE" && pwd)
export SNOWBERRY_TEST_CACHE=$CACHE

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*"; }

# part NAME RECIPE COMMAND... : makes $CACHE/NAME by `COMMAND... FOLDER` unless it is there already,
# made by the same recipe (a line of text that names versions). Two runs wait for each other.
part() {
  local name=$1 recipe=$2; shift 2
  local folder=$CACHE/$name making=$CACHE/$name.making started=$SECONDS
  exec 9>"$CACHE/$name.lock"; flock 9
  if [ "$(cat "$folder/.recipe" 2>/dev/null)" = "$recipe" ]; then say "$name: cached"; return 0; fi
  rm -rf --one-file-system "$making" "$folder"; mkdir -p "$making"
  "$@" "$making"
  printf '%s\n' "$recipe" > "$making/.recipe"
  mv "$making" "$folder"
  say "$name: made in $((SECONDS - started)) s"
}

# The mirror and the proxy of this machine's own apt: no other place may be reachable.
mirror() {
  apt-get indextargets --format '$(CODENAME) $(SITE)' 'Identifier: Packages' 'Origin: Debian' |
    awk -v own="$(. /etc/os-release; echo "${VERSION_CODENAME:-}")" '$1 == own { print $2; exit }'
}
