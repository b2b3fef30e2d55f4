"""Every benchmark runs at its smallest, on each rung, so that none can rot."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.support import process
from tests.support.users import CHECKOUT

_BENCHES = [path.stem for path in sorted((CHECKOUT / "benchmarks").glob("bench_*.py"))]


def _run(bench: str, rung: str) -> None:
    """Run all cases of `bench` in a child, which can be ended if it hangs, and compare what it tells with its table."""
    argv = [sys.executable, "-m", f"benchmarks.{bench}", "--size", "2", "--repeat", "1", "--rung", rung]
    lines = [json.loads(line) for line in process.run(argv, cwd=CHECKOUT).stdout.splitlines()]
    wanted = []
    for case in import_module(f"benchmarks.{bench}").CASES:
        wanted += [(case.name, rung, cache) for cache in (("cold", "warm") if case.warm else ("cold",))]
    assert [(line["case"], line["rung"], line["cache"]) for line in lines] == wanted
    assert [line["case"] for line in lines if line["median_us"] <= 0] == []


@pytest.mark.parametrize("bench", _BENCHES)
def test_it_runs_on_a_plain_directory(bench: str, fuse_device: Path) -> None:
    _run(bench, "native")


@pytest.mark.parametrize("bench", _BENCHES)
def test_it_runs_on_a_union(bench: str, transport: str) -> None:
    _run(bench, transport)
