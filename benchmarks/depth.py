"""Measure the cost of a chain of forks for its last member: the processor time of a union over many frozen branches.

    python -m benchmarks.depth [--depths 1 50] [--directories 100] [--files 40] [--rounds 5]

Each branch has changed one file in a fifth of the directories. For each depth one JSON line, medians in milliseconds of
processor time in this process, without a mount, so that other work on the machine changes little: `open` the union,
`list` all directories and look up all their names (as find -ls does), and in a new union `look` them up without listing
(as a build does). `..._without` is the same for branches whose names are not recorded (core.frozen_names).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from unionfs import compiled

compiled.use_compiled()

from unionfs import markers  # noqa: E402  all that may import a compiled module comes after `use_compiled`
from unionfs.core import frozen_names  # noqa: E402
from unionfs.core.attrs import ROOT  # noqa: E402
from unionfs.core.freeze import freeze_unmounted  # noqa: E402
from unionfs.core.options import Options  # noqa: E402
from unionfs.core.union import Union  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 50])
    parser.add_argument("--directories", type=int, default=100)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for depth in arguments.depths:
        with tempfile.TemporaryDirectory(prefix="unionfs-bench-") as top:
            options = _chain(Path(top), depth, arguments.directories, arguments.files)
            took: dict[str, list[float]] = {}
            for recorded in (True, False):
                if not recorded:
                    for lower in options.lowers[:-1]:
                        os.removexattr(lower, markers.NAMES_XATTR)
                for _ in range(arguments.rounds):
                    _round(options, "" if recorded else "_without", took)
        medians = {case: round(statistics.median(values), 1) for case, values in took.items()}
        print(json.dumps({"depth": depth, **medians}), flush=True)


def _chain(top: Path, depth: int, directories: int, files: int) -> Options:
    for name in ("lower", "upper", "work"):
        (top / name).mkdir()
    for number in range(directories):
        place = top / "lower" / f"d{number}"
        place.mkdir()
        for file in range(files):
            (place / f"f{file}").write_text("text")
        (place / "note").write_text("0")
    lower, upper, work = (str(top / name) for name in ("lower", "upper", "work"))
    options = Options(lowers=(lower,), upper=upper, work=work)
    lowers: list[str] = []
    for number in range(depth):
        for directory in range(number % 5, directories, 5):
            place = top / "upper" / f"d{directory}"
            place.mkdir()
            (place / "note").write_text(str(number))
        path = freeze_unmounted(options)
        frozen_names.record(path)
        lowers.insert(0, path)
    return options._replace(lowers=(*lowers, lower))


def _round(options: Options, suffix: str, took: dict[str, list[float]]) -> None:
    def timed(case: str, body: Callable[[], object]) -> None:
        began = time.process_time()
        body()
        took.setdefault(case + suffix, []).append((time.process_time() - began) * 1000)

    for case in ("list", "look"):
        union: Union | None = None

        def opened() -> None:
            nonlocal union
            union = Union(options)

        timed("open", opened)
        assert union is not None
        timed(case, lambda case=case, union=union: _walk(union, is_listed=case == "list"))  # type: ignore[misc]
        union.close()


def _walk(union: Union, *, is_listed: bool) -> None:
    names = [line.name for line in union.readdir(ROOT, 2)]
    inner: list[bytes] = []
    for name in names:
        nodeid = union.lookup(ROOT, name).nodeid
        if is_listed or not inner:
            inner = [line.name for line in union.readdir(nodeid, 2)]
        for each in inner:
            union.lookup(nodeid, each)


if __name__ == "__main__":
    main()
