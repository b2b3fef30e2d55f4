"""What does one message cost in our code, by kind?

Prepared requests are given to the dispatcher itself, over real branches, without a device, so without the kernel and
the loop. The processor time of this process counts, which other load changes little. Not part of the suite, because no
other system runs this code.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from unionfs import compiled

compiled.use_compiled()

from benchmarks.materials import default_run_base  # noqa: E402
from tests.fuse.kernel import wire  # noqa: E402  all that may import a compiled module comes after `use_compiled`
from tests.fuse.kernel.wire import ROOT  # noqa: E402
from unionfs.bench.run_directory import run_directory  # noqa: E402
from unionfs.core.options import Options  # noqa: E402
from unionfs.core.union import Union  # noqa: E402
from unionfs.fuse.kernel.dispatch import Dispatcher  # noqa: E402
from unionfs.fuse.kernel.session import MAX_WRITE, Session, Tuning  # noqa: E402
from unionfs.fuse.options import ServeOptions  # noqa: E402

_MESSAGES: Final = 20_000
_ROUNDS: Final = 3
_A_DIRECTORY: Final = 200  # files in each lower directory
_CONTENT: Final = b"x" * 200
_CAPABILITY: Final = b"security.capability\0"

Numbers = Iterator[int]


class Kernel:
    """Sends requests to a union over one lower and an upper as the kernel would, without a kernel."""

    def __init__(self, base: Path, messages: int) -> None:
        directories = max(1, messages // _A_DIRECTORY)
        names = [f"{kind}{number}" for kind in "du" for number in range(directories)]
        for name in names:
            place = base / "lower" / name
            place.mkdir(parents=True)
            for file in range(_A_DIRECTORY):
                (place / f"f{file}").write_bytes(_CONTENT * 25)
        (base / "upper").mkdir()
        (base / "work").mkdir()
        options = Options(lowers=(str(base / "lower"),), upper=str(base / "upper"), work=str(base / "work"))
        self.union = Union(options)
        self._dispatcher = Dispatcher(self.union, Session(ServeOptions(), Tuning()))
        self._room = memoryview(bytearray(MAX_WRITE))
        self.ask(wire.init())
        nodes = [self.node(ROOT, name.encode()) for name in names]
        self.directories, self.unread = nodes[:directories], nodes[directories:]
        self.new = wire.entry_out(
            self.ask(wire.request(wire.MKDIR, ROOT, struct.pack("=II", 0o755, 0) + b"new\0"))[16:]
        )
        self.files: list[int] = []

    def ask(self, request: bytes) -> bytes:
        """Return the whole reply; empty if there is none."""
        self._room[: len(request)] = request
        return bytes(self._dispatcher.handle(self._room, len(request)) or b"")

    def node(self, parent: int, name: bytes) -> int:
        """Look up an existing name; return its node id."""
        return wire.entry_out(self.ask(wire.request(wire.LOOKUP, parent, name + b"\0"))[16:]).nodeid

    def took(self, requests: Sequence[bytes]) -> tuple[float, float]:
        """Return the processor seconds of these requests, user and system, with their copying into the buffer."""
        room, handle = self._room, self._dispatcher.handle
        before = resource.getrusage(resource.RUSAGE_SELF)
        for request in requests:
            length = len(request)
            room[:length] = request
            handle(room, length)
        after = resource.getrusage(resource.RUSAGE_SELF)
        return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime


def _lookups(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    return [
        wire.request(wire.LOOKUP, directory, b"f%d\0" % file)
        for directory in kernel.directories
        for file in range(_A_DIRECTORY)
    ][:count]


def _misses(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    return [wire.request(wire.LOOKUP, kernel.new.nodeid, b"no%d\0" % next(numbers)) for _ in range(count)]


def _attributes(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    return [wire.request(wire.GETATTR, kernel.new.nodeid, bytes(16))] * count


def _makings(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    fixed = struct.pack("=IIII", 0o100644, 0, 0o022, 0)
    return [wire.request(wire.MKNOD, kernel.new.nodeid, fixed + b"n%d\0" % next(numbers)) for _ in range(count)]


def _capabilities(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    return [wire.request(wire.GETXATTR, _made(kernel), struct.pack("=II", 20, 0) + _CAPABILITY)] * count


def _lists(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    names = [(directory, b"f%d" % file) for directory in kernel.directories for file in range(_A_DIRECTORY)]
    return [wire.request(wire.LISTXATTR, kernel.node(*name), struct.pack("=II", 0, 0)) for name in names[:count]]


def _lists_again(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    """LISTXATTRs of files whose empty lists are remembered; a lookup would end that."""
    return [wire.request(wire.LISTXATTR, _made(kernel), struct.pack("=II", 0, 0))] * count


def _ends(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    return [wire.read(kernel.directories[0], (1 << 63) - 1, 1 << 17, wire.READDIRPLUS)] * count


def _writes(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    return [wire.write(_made(kernel), 0, _CONTENT)] * count


def _reads(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    return [wire.read(kernel.node(kernel.directories[0], b"f0"), 0, 4096)] * count


def _listings(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    return [wire.read(directory, 0, 1 << 17, wire.READDIRPLUS) for directory in kernel.directories]


def _first_listings(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    return [wire.read(directory, 0, 1 << 17, wire.READDIRPLUS) for directory in kernel.unread]


def _forgets(kernel: Kernel, count: int, numbers: Numbers) -> list[bytes]:
    found = {kernel.node(directory, b"f%d" % file) for directory in kernel.directories for file in range(_A_DIRECTORY)}
    return [wire.request(wire.FORGET, nodeid, struct.pack("=Q", 1 << 20)) for nodeid in found]


def _made(kernel: Kernel) -> int:
    """A file of the upper."""
    return kernel.node(kernel.new.nodeid, b"n0")


KINDS: Final[dict[str, tuple[Callable[[Kernel, int, Numbers], list[bytes]], int]]] = {
    "GETATTR": (_attributes, 1),
    "LOOKUP missing": (_misses, 1),
    "MKNOD": (_makings, 1),
    "GETXATTR": (_capabilities, 1),
    "WRITE 200 B": (_writes, 1),
    "LOOKUP": (_lookups, 1),
    "READ 4 kB": (_reads, 1),
    "LISTXATTR": (_lists, 1),
    "LISTXATTR, again": (_lists_again, 1),
    "READDIRPLUS, a line": (_listings, _A_DIRECTORY),
    "READDIRPLUS, the end": (_ends, 1),
    "the same, unknown": (_first_listings, _A_DIRECTORY),
    "FORGET": (_forgets, 1),
}
"""By kind, its requests and the number of messages that one of them counts as; each kind needs the files of those
before it."""


def measured(base: Path, messages: int) -> dict[str, tuple[float, float]]:
    """Return the microseconds of a message by kind: user, system."""
    base.mkdir()
    kernel = Kernel(base, messages)
    found = {}
    for kind, (prepare, weight) in KINDS.items():
        requests = prepare(kernel, messages, itertools.count())
        user, system = kernel.took(requests)
        each = 1e6 / (len(requests) * weight)
        found[kind] = user * each, system * each
    kernel.union.close()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print medians; `--json` as one line."""
    parser = argparse.ArgumentParser(description="Processor time of a message in our code.")
    parser.add_argument("--rounds", metavar="N", type=int, default=_ROUNDS)
    parser.add_argument("--messages", metavar="N", type=int, default=_MESSAGES, help="of each kind (default: 20,000)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    with run_directory(default_run_base()) as directory:
        rounds = [measured(directory / str(number), arguments.messages) for number in range(arguments.rounds)]
    medians = {
        kind: [round(statistics.median(each[kind][part] for each in rounds), 2) for part in (0, 1)] for kind in KINDS
    }
    if arguments.json:
        print(json.dumps({"compiled": compiled.is_in_use(), "us": medians}))
        return 0
    print(f"{compiled.code_in_use()}; microseconds of processor time a message")
    for kind, (user, system) in medians.items():
        print(f"{kind:<20} user {user:6.2f}  system {system:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
