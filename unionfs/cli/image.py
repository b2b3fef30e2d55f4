"""`unionfs image VERB`: verbs on images under the longer names that Docker and podman have for them, too."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from unionfs.cli.errors import USAGE, CommandError

_MODULES: Final = {
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
    verb = argv[0] if argv else ""
    if verb in ("", "-h", "--help", "help"):
        lines = "\n".join(f"  {name:<8} unionfs {module.rstrip('_')}" for name, module in _MODULES.items())
        lines = lines.replace("unionfs image_prune", "remove images that nothing needs")
        print(f"usage: unionfs image VERB [OPTIONS...]\n\nverbs, and what each is short for:\n{lines}")
        return 0 if verb else USAGE
    if verb not in _MODULES:
        raise CommandError(
            f"image: there is no command {verb!r}", hint="`unionfs image --help` lists them", status=USAGE
        )
    arguments = ["--type", "image", *argv[1:]] if verb == "inspect" else argv[1:]
    status: int = import_module(f"unionfs.cli.{_MODULES[verb]}").main(arguments)
    return status
