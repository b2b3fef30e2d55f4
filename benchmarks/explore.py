"""Measure `layers explore` on an image of many entries: made here, opened twice, walked by keys, written as a page.

    python -m benchmarks.explore [--entries 500000] [--layers 20]

Prints one JSON line per case: seconds to open with no index and with one, the most memory of any process in bytes,
milliseconds for a key at the median and at the 95th percentile, and bytes of the page.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import io
import json
import os
import random
import resource
import statistics
import tarfile
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from layers.cli import stacks
from layers.explore.indexes import open_tree
from layers.explore.tree_index import TreeIndex
from layers.screen.app import ExplorerApp, Side
from layers.screen.page import page
from layers.store import Store

_KEYS: Final = ("down", "down", "space", "pagedown", "right", "up", "left", "end", "home", "down", "enter", "n")


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
            took = sorted(asyncio.run(_keys(Side("t", tree, stack.layers), arguments.keys)))
            _tell("a key", median_ms=round(statistics.median(took), 1), p95_ms=round(took[len(took) * 95 // 100], 1))
            _tell_page(tree, stack)
    used = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    _tell("memory", most_bytes=max(used))


def _tell(case: str, **values: Any) -> None:
    print(json.dumps({"case": case, **values}), flush=True)


def _tell_page(tree: TreeIndex, stack: stacks.Stack) -> None:
    began = time.monotonic()
    size = len(page(tree, stack.layers, "t").encode())
    _tell("page", bytes=size, seconds=round(time.monotonic() - began, 3))


async def _keys(side: Side, count: int) -> list[float]:
    """Milliseconds from each key to the end of what it caused."""
    app = ExplorerApp([side])
    took = []
    async with app.run_test(size=(200, 60)) as pilot:
        await pilot.press("slash", *"file-1", "enter")
        for number in range(count):
            began = time.monotonic()
            await pilot.press(_KEYS[number % len(_KEYS)])
            took.append((time.monotonic() - began) * 1000)
    return took


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
