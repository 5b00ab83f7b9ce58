"""Whose work is in the program, on standard output: each crate with its version and licence, and the
texts of the licences as the crates bring them, each text once. It reads what `cargo metadata
--filter-platform TARGET` prints.
"""

import json
import pathlib
import sys

HEAD = "snowberry contains, beside its own, the following Rust crates.\n"
# What a crate calls the files in question.
NAMES = ("license", "licence", "copying", "notice", "copyright", "unlicense")


def linked(metadata):
    """The packages that end up in the program: not those that only take part in building it."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    macros = {package["id"] for package in metadata["packages"]
              if any("proc-macro" in target["kind"] for target in package["targets"])}
    found, open_ids = set(), [metadata["resolve"]["root"]]
    while open_ids:
        for dependency in nodes[open_ids.pop()]["deps"]:
            kinds = {kind["kind"] for kind in dependency["dep_kinds"]}
            if None in kinds and dependency["pkg"] not in found | macros:
                found.add(dependency["pkg"])
                open_ids.append(dependency["pkg"])
    return [package for package in metadata["packages"] if package["id"] in found]


def texts_of(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    for path in sorted(folder.rglob("*")):
        deep = len(path.relative_to(folder).parts)
        if path.is_file() and deep <= 3 and path.name.lower().startswith(NAMES) \
                and path.suffix.lower() in ("", ".md", ".txt") and path.stat().st_size < 200_000:
            text = path.read_text(encoding="utf-8", errors="replace")
            yield "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def main():
    packages = sorted(linked(json.load(sys.stdin)), key=lambda it: (it["name"], it["version"]))
    print(HEAD)
    owners = {}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        print(f"{name}: {package['license'] or 'see its own file'}")
        for text in texts_of(package):
            owners.setdefault(text, []).append(name)
    for text, names in owners.items():
        print(f"\n{'=' * 78}\n{', '.join(dict.fromkeys(names))}:\n{'=' * 78}\n\n{text}")


main()
