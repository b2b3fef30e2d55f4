"""Measure `layers explore` on an image of many entries: made here, opened twice, walked by keys, written as a page.

    python -m benchmarks.explore [--entries 500000] [--layers 20]

Prints one JSON line per case: seconds to open with no index and with one, the most memory of any process in bytes,
milliseconds for a key at the median and at the 95th percentile, and bytes of the page.

Keys are typed on a pseudoterminal of 200x60, as a person types them. A key takes from the write of its bytes to the
last byte of what the program draws for it. textual's own pilot cannot measure this: it sleeps 40 ms or more for a key.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import io
import json
import os
import pty
import random
import resource
import select
import statistics
import struct
import tarfile
import tempfile
import termios
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from layers.cli import stacks
from layers.cli.explore import set_frame_rate
from layers.explore.indexes import open_tree
from layers.explore.tree_index import TreeIndex
from layers.screen.page import page
from layers.store import Store

_DOWN, _UP, _RIGHT, _LEFT = b"\x1b[B", b"\x1b[A", b"\x1b[C", b"\x1b[D"
_END, _HOME, _PAGE_DOWN = b"\x1b[F", b"\x1b[H", b"\x1b[6~"
_LAYER_ALONE, _WHOLE, _ORDER, _NEXT = b"\x0c", b"\x01", b"o", b"n"
_KEYS: Final = (
    *(_DOWN, _DOWN, b" ", _PAGE_DOWN, _RIGHT, _UP, _LEFT, _END, _HOME, _DOWN, b"\r", _NEXT),
    *(_LAYER_ALONE, _WHOLE, _ORDER, _ORDER),
)
_QUIET_S: Final = 0.15  # without output: all is drawn
_NOTHING_S: Final = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--keys", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unionfs-bench-") as directory:
        store = Store(directory)
        _make_image(Path(store.images), arguments.entries, arguments.layers)
        stack = stacks.of_image(store, store.find("t:1"))
        for case in ("open without an index", "open with an index"):
            with ExitStack() as keep:
                began = time.monotonic()
                tree = open_tree(stack.layers, store, keep)
                _tell(case, seconds=round(time.monotonic() - began, 3), paths=len(tree))
        with ExitStack() as keep:
            tree = open_tree(stack.layers, store, keep)
            took, cpu_ms = _keys(tree, stack, arguments.keys)
            median_ms, p95_ms = statistics.median(took), took[len(took) * 95 // 100]
            _tell("a key", median_ms=round(median_ms, 1), p95_ms=round(p95_ms, 1), cpu_ms=round(cpu_ms, 1))
            _tell_page(tree, stack)
    used = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    _tell("memory", most_bytes=max(used))


def _tell(case: str, **values: Any) -> None:
    print(json.dumps({"case": case, **values}), flush=True)


def _tell_page(tree: TreeIndex, stack: stacks.Stack) -> None:
    began = time.monotonic()
    size = len(page(tree, stack.layers, "t").encode())
    _tell("page", bytes=size, seconds=round(time.monotonic() - began, 3))


def _keys(tree: TreeIndex, stack: stacks.Stack, count: int) -> tuple[list[float], float]:
    """Milliseconds from each key to the last byte of what it draws, sorted; and of processor time for a key. Keys that
    draw nothing (down on the last row) are left out of the first."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 200, 0, 0))
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
        set_frame_rate()
        from layers.screen.app import ExplorerApp, Side

        ExplorerApp([Side("t", tree, stack.layers)]).run()
        os._exit(0)
    took = []
    try:
        while _drawn(terminal) is None:  # the first screen
            pass
        os.write(terminal, b"/file-1\r")
        _drawn(terminal)
        before = _processor_s(pid)
        for number in range(count):
            began = time.monotonic()
            os.write(terminal, _KEYS[number % len(_KEYS)])
            last = _drawn(terminal)
            if last is not None:
                took.append((last - began) * 1000)
        cpu_ms = (_processor_s(pid) - before) / count * 1000
    finally:
        os.close(terminal)  # which ends it
        os.waitpid(pid, 0)
    return sorted(took), cpu_ms


def _drawn(terminal: int) -> float | None:
    """Read output until there is none for some time. Returns when the last came (monotonic); None: none came."""
    last = None
    while select.select([terminal], [], [], _NOTHING_S if last is None else _QUIET_S)[0]:
        os.read(terminal, 1 << 16)
        last = time.monotonic()
    return last


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _make_image(layout: Path, entries: int, layers: int) -> None:
    """An OCI layout of small files in directories of ten; one entry of twenty replaces or removes one of a layer
    beneath."""
    chance = random.Random(1)
    known: list[str] = []
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    described, diff_ids = [], []
    for number in range(layers):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for count in range(entries // layers):
                name = f"usr/lib/part{count // 10 % 40}/package{number}-{count // 10}/file-{count}.py"
                if known and chance.random() < 0.05:
                    name = chance.choice(known)
                    if chance.random() < 0.3:
                        parent, _, last = name.rpartition("/")
                        name = f"{parent}/.wh.{last}"
                elif len(known) < 50_000:
                    known.append(name)
                info = tarfile.TarInfo(name)
                data = b"" if ".wh." in name else os.urandom(8) * chance.randrange(1, 60)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        diff_ids.append(f"sha256:{hashlib.sha256(sink.getvalue()).hexdigest()}")
        digest, size = _put(blobs, gzip.compress(sink.getvalue(), 1))
        media = "application/vnd.oci.image.layer.v1.tar+gzip"
        described.append({"mediaType": media, "digest": digest, "size": size})
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    config_digest, config_size = _put(blobs, json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest,
                   "size": config_size},
        "layers": described,
    }  # fmt: skip
    digest, size = _put(blobs, json.dumps(manifest).encode())
    entry = {"mediaType": manifest["mediaType"], "digest": digest, "size": size,
             "annotations": {"org.opencontainers.image.ref.name": "docker.io/library/t:1"}}  # fmt: skip
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _put(blobs: Path, data: bytes) -> tuple[str, int]:
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return f"sha256:{name}", len(data)


if __name__ == "__main__":
    main()
