"""Common code of `watch`, `top` and `profile`: finds unions, waits for intervals, redraws a screen."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError, failed
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.control.client import NoAnswerError, ask
from unionfs.fuse import mounting
from unionfs.fuse.view_name import is_view
from unionfs.syscalls import mountinfo
from unionfs.syscalls.mountinfo import Mount

_DUMB: Final = ("", "dumb", "unknown")
_CLEAR: Final = "\x1b[H\x1b[J"  # move the cursor to the first place, and erase all from there (ECMA-48)


class Target(NamedTuple):
    """A union whose daemon can be asked."""

    name: str  # the container's, or the mountpoint
    mount: Mount

    def ask(self, question: str) -> Iterator[dict[str, Any]]:
        """The answers of its daemon (unionfs.control.server). Raises: NoAnswerError."""
        return ask(self.mount.minor, question, self.mount.user_id)

    def stats(self) -> dict[str, Any]:
        """The answer to `stats`. Raises: NoAnswerError, also when the daemon has ended."""
        found = next(self.ask("stats"), None)
        if found is None:
            raise NoAnswerError("its daemon ended without an answer")
        return found


def add_flags(parser: Parser) -> None:
    parser.add_argument("--interval", metavar="SECONDS", type=seconds, default=1.0, help="default: 1")
    parser.add_argument("--count", metavar="N", type=int, default=0, help="end after N intervals (default: never)")


def seconds(text: str) -> float:
    """The seconds of an interval. Raises: ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.05 to 3600")
    return value


def target_of(text: str, root: str | None, verb: str) -> Target:
    """The union at a mountpoint, or of a running container. Raises: CommandError, ContainerError."""
    if os.path.lexists(text):
        mountpoint = mounting.resolve_mountpoint(text)
        mounted = mounting.union_at(mountpoint)
        if mounted is not None:
            return Target(mountpoint, mounted)
        if "/" in text:
            hint = "`findmnt -t fuse.unionfs` lists unions"
            raise CommandError(failed(verb, text, "no union is mounted there"), hint=hint)
    container = ContainerStore(root).find(text)
    found = of_container(container)
    if found is None:
        why = "it is not running, or its root filesystem is no union of ours"
        raise CommandError(failed(verb, text, why), hint="unionfs ps -a lists containers")
    return found


def of_container(container: Container) -> Target | None:
    """The union that is the root filesystem of a running container; None if it has none."""
    if container.status != "running" or not container.state.pid:
        return None
    try:
        there = [mount for mount in mountinfo.mounts(container.state.pid) if mount.mountpoint == "/"]
    except OSError:  # it has ended
        return None
    return Target(container.name, there[-1]) if there and there[-1].fstype == mounting.FSTYPE else None


def all_targets(root: str | None) -> list[Target]:
    """The unions of this mount namespace, and those of running containers."""
    mounts = [mount for mount in mountinfo.mounts() if mount.fstype == mounting.FSTYPE and not is_view(mount)]
    found = {mount.minor: Target(mount.mountpoint, mount) for mount in mounts}
    for container in ContainerStore(root).list():
        target = of_container(container)
        if target is not None:
            found[target.mount.minor] = target
    return list(found.values())


def ticks(interval: float, count: int) -> Iterator[None]:
    """Yield after each interval, `count` times; 0: for ever."""
    due = time.monotonic() + interval
    done = 0
    while not count or done < count:
        time.sleep(max(0.0, due - time.monotonic()))
        due = max(due, time.monotonic() - interval) + interval
        done += 1
        yield


def draw(lines: list[str]) -> None:
    """Print lines; a terminal that can move its cursor shows them in place of the former ones."""
    can = sys.stdout.isatty() and os.environ.get("TERM", "") not in _DUMB
    print((_CLEAR if can else "") + "\n".join(lines), flush=True)
