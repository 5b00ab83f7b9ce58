"""The package's /etc/snowberry/snowberry.toml on standard output: every key, commented out, with what
holds without it. Made from nix/options.json, which a test holds against the keys that the program reads.
"""

import json
import re
import sys
import textwrap

HEAD = """\
# The configuration of snowberry. As it stands here nothing is set: the defaults are a cache in front of
# https://cache.nixos.org. snowberry.toml(5) says the same; `snowberry check` says what is wrong.
"""
# Tables of which there may be several.
LISTS = {"upstream"}
# A default that can be written down as it is.
VALUE = re.compile(r'"[^"]*"|\[[^\[\]]*\]|true|false|[0-9]+')


def comment(text):
    return textwrap.fill(text, 100, initial_indent="# ", subsequent_indent="# ",
                         break_long_words=False, break_on_hyphens=False)


def main(options):
    out, table = [HEAD], ""
    for option in options:
        if option["table"] != table:
            table = option["table"]
            out.append(f"#[[{table}]]\n" if table in LISTS else f"#[{table}]\n")
        default = option["default"]
        plain = VALUE.fullmatch(default)
        out.append(comment(option["help"]))
        if plain:
            out.append(f"#{option['name']} = {default}\n")
        else:
            out.append(comment(f"Without it: {default}."))
            out.append(f"#{option['name']} =    # {option['kind']}\n")
    print("\n".join(out), end="")


main(json.load(open(sys.argv[1], encoding="utf-8")))
