# shellcheck shell=bash
# mirror ARCHIVE: where Debian's archive of that name (debian, debian-security) is: below $SNOWBERRY_MIRROR
# where that is set, else where this machine's own apt finds it, whether or not it has fetched lists.
mirror() {
    local sites
    if [ -n "${SNOWBERRY_MIRROR:-}" ]; then
        echo "$SNOWBERRY_MIRROR/$1"
        return
    fi
    # shellcheck disable=SC2016
    sites=$(apt-get indextargets --no-release-info --format '$(SITE)' 2>/dev/null | sort -u)
    if ! grep -m1 "/$1/*\$" <<< "$sites"; then
        echo "no source of this machine's apt is Debian's archive $1: say where one is, SNOWBERRY_MIRROR=http://HOST" >&2
        return 1
    fi
}
