"""The longer names that Docker and podman have for verbs, such as `image ls` for `images`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from unionfs.cli.errors import USAGE, CommandError


def run(noun: str, modules: Mapping[str, str], argv: list[str], prune: str) -> int:
    """Run `unionfs NOUN ARGV`. `modules`: verb -> module of `unionfs.cli`; `prune`: the line of help for `prune`."""
    verb = argv[0] if argv else ""
    if verb in ("", "-h", "--help", "help"):
        lines = "\n".join(f"  {name:<8} unionfs {module.rstrip('_')}" for name, module in modules.items())
        lines = lines.replace(f"unionfs {noun}_prune", prune)
        print(f"usage: unionfs {noun} VERB [OPTIONS...]\n\nverbs, and the equal shorter ones:\n{lines}")
        return 0 if verb else USAGE
    if verb not in modules:
        hint = f"`unionfs {noun} --help` lists them"
        raise CommandError(f"{noun}: there is no command {verb!r}", hint=hint, status=USAGE)
    arguments = ["--type", noun, *argv[1:]] if verb == "inspect" else argv[1:]
    status: int = import_module(f"unionfs.cli.{modules[verb]}").main(arguments)
    return status
