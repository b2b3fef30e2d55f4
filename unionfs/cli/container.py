"""`unionfs container VERB`: the verbs on containers, under the longer names of Docker and podman."""

from __future__ import annotations

from typing import Final

from unionfs.cli import aliases

MODULES: Final = {  # verb -> module of unionfs.cli
    "ls": "ps",
    "ps": "ps",
    "list": "ps",
    "prune": "container_prune",
    "commit": "commit",
    "cp": "cp",
    "create": "create",
    "diff": "diff",
    "exec": "exec",
    "export": "export",
    "inspect": "inspect",
    "kill": "kill",
    "logs": "logs",
    "rename": "rename",
    "restart": "restart",
    "rm": "rm",
    "run": "run",
    "start": "start",
    "stop": "stop",
    "top": "top",
    "wait": "wait",
}


def main(argv: list[str]) -> int:
    """Run `unionfs container ARGV`."""
    return aliases.run("container", MODULES, argv, "remove all containers that are not running")
