"""`unionfs image VERB`: the verbs on images, under the longer names of Docker and podman."""

from __future__ import annotations

from typing import Final

from unionfs.cli import aliases

MODULES: Final = {  # verb -> module of unionfs.cli
    "ls": "images",
    "list": "images",
    "pull": "pull",
    "push": "push",
    "rm": "rmi",
    "prune": "image_prune",
    "tag": "tag",
    "history": "history",
    "inspect": "inspect",
    "load": "load",
    "save": "save",
    "import": "import_",
    "search": "search",
}


def main(argv: list[str]) -> int:
    """Run `unionfs image ARGV`."""
    return aliases.run("image", MODULES, argv, "remove unused images")
