"""Prints the part of a lock file that some packages need, hashes and all.

``python runtime_requirements.py LOCK PYPROJECT`` takes what ``[project.dependencies]`` names; names given behind the two files are taken
instead. The lock says for each package which others asked for it (``# via``), and that is followed from the named ones on. What is printed
may hold a package too many, where only an extra of another one asked for it; never one too few.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def blocks(lock: str) -> dict[str, tuple[str, set[str]]]:
    """Each package's lines in the lock, and who asked for it."""
    found: dict[str, tuple[str, set[str]]] = {}
    for block in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE):
        if match := re.match(r"([a-z0-9-]+)(\[[a-z,]+\])?==", block):
            asking = re.findall(r"^    #(?: via|  ) +([a-z0-9-]+)", block, flags=re.MULTILINE)
            found[match[1]] = block, set(asking)
    return found


def needed(packages: dict[str, tuple[str, set[str]]], roots: set[str]) -> set[str]:
    """The roots, what they ask for, what that asks for, and so on."""
    if missing := roots - set(packages):
        raise SystemExit(f"not in the lock: {', '.join(sorted(missing))}")
    found, grown = set(roots), True
    while grown:
        more = {name for name, (_, asking) in packages.items() if asking & found} - found
        found |= more
        grown = bool(more)
    return found


def main(lock: str, pyproject: str, *names: str) -> None:
    """See the module."""
    asked = names or tuple(tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))["project"]["dependencies"])
    roots = {re.split(r"[\[<>=!~; ]", name, maxsplit=1)[0].lower() for name in asked}
    packages = blocks(Path(lock).read_text(encoding="utf-8"))
    print("".join(packages[name][0] for name in sorted(needed(packages, roots))), end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
