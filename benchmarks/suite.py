"""Run workloads on systems side by side, in interleaved rounds: `python -m benchmarks.suite`.

For each workload, for each round, for each system, in an order that is reversed every round, there is one session:
fresh branches, fresh mount, all phases, everything unmounted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from benchmarks.materials import Materials, NoMaterialError, default_cache, default_run_base
from benchmarks.session import session
from benchmarks.workload import Context, Phase, Sample, Scale, Workload
from tests.support import machine
from unionfs.bench import child, filesystems, rounds, systems, table
from unionfs.bench.child import FailedError
from unionfs.bench.run_directory import run_directory

FILES: Final = (
    "find",
    "tar",
    "grep",
    "imports",
    "untar",
    "create",
    "change",
    "git",
    "cbuild",
    "sequential",
    "random",
    "layers",
    "memory",
    "stall",
    "mount",
    "remove",  # the last: on ext4 creating files is slower for a while after it
)
"""The benchmark files without `bench_`, in the order of the table."""

ALONE: Final = ("unpack", "drivers", "messages", "podman", "build", "start")
"""The benchmark files that measure no mounts, and are run by themselves only."""

SYSTEMS: Final = (
    systems.OURS,
    systems.OURS_PYFUSE3,
    systems.OURS_PASSTHROUGH,
    systems.OURS_WITHOUT_KEEPER,
    systems.FUSE_OVERLAYFS,
    systems.OVERLAYFS,
    systems.NATIVE,
)
"""The systems that workloads run on, in the order of the columns."""

_ON_REQUEST: Final = (systems.OURS_PYFUSE3, systems.OURS_PASSTHROUGH, systems.OURS_WITHOUT_KEEPER)

_ROUNDS: Final = 5
_QUICK_ROUNDS: Final = 1
_QUICK_SCALE: Final = 0.1
_NOT_QUICK: Final = ("tar", "untar", "change", "remove")  # as long at any scale: they take the whole root filesystem
_TINY: Final = 0.05  # below this scale the root filesystem is a tiny one, too

Progress = Callable[[str], None]


@dataclass(slots=True)
class Result:
    """The samples of a run, filled in by `run` only."""

    samples: dict[tuple[str, str, str], list[Sample]] = field(default_factory=dict)  # (workload, phase, system)
    phases: dict[tuple[str, str], Phase] = field(default_factory=dict)  # (workload, phase), in the order of the table
    left_out: list[dict[str, str]] = field(default_factory=list)  # workload ("" means all), system, why
    order: list[dict[str, Any]] = field(default_factory=list)  # sessions as they were run: workload, round, system, s


@dataclass(frozen=True, slots=True)
class Choice:
    """The workloads, systems and sizes of a run."""

    workloads: Sequence[Workload]
    systems: Sequence[str]
    rounds: int
    scale: Scale
    materials: Materials


def all_workloads() -> list[Workload]:
    """Return the workloads of every benchmark file."""
    found: list[Workload] = []
    for name in FILES:
        module = import_module(f"benchmarks.bench_{name}")
        found += module.WORKLOADS if hasattr(module, "WORKLOADS") else [module.WORKLOAD]
    return found


def run(choice: Choice, directory: Path, progress: Progress) -> Result:
    """Run all sessions in `directory`. A system that fails or hangs is reported, and left out of that workload from
    then on."""
    result = Result()
    usable = []
    for system in choice.systems:
        why = systems.why_missing(system)
        if why is None:
            usable.append(system)
        else:
            result.left_out.append({"workload": "", "system": system, "why": why})
    for workload in choice.workloads:
        _run_workload(workload, usable, choice, directory, result, progress)
    return result


def _run_workload(
    workload: Workload, usable: Sequence[str], choice: Choice, directory: Path, result: Result, progress: Progress
) -> None:
    contestants = []
    for system in usable:
        if system in workload.without:
            result.left_out.append({"workload": workload.name, "system": system, "why": workload.without[system]})
        else:
            contestants.append(system)
    try:
        workload.lowers(choice.materials, choice.scale)
    except NoMaterialError as why:
        result.left_out.append({"workload": workload.name, "system": "all", "why": str(why)})
        return
    context = Context(Path(), Path(), choice.materials, choice.scale)
    for number in range(choice.rounds):
        for system in rounds.order(contestants, number):
            progress(f"{workload.name}: round {number + 1} of {choice.rounds}: {system}")
            began = time.monotonic()
            ran = {"workload": workload.name, "round": number, "system": system}
            result.order.append(ran)
            try:
                found = session(workload, system, context, directory)
            except FailedError as why:
                contestants = [other for other in contestants if other != system]
                result.left_out.append({"workload": workload.name, "system": system, "why": str(why)})
                for phase in workload.phases:
                    result.samples.pop((workload.name, phase.name, system), None)
                continue
            finally:
                ran["s"] = round(time.monotonic() - began, 3)
            for phase, sample in found:
                result.phases.setdefault((workload.name, phase.name), phase)
                result.samples.setdefault((workload.name, phase.name, system), []).append(sample)


def main(argv: Sequence[str] | None = None, *, only: Workload | Sequence[Workload] = ()) -> int:
    """Run the command. A benchmark file that is run by itself calls this with `only` its own workloads."""
    own = [only] if isinstance(only, Workload) else list(only)
    arguments = _arguments(argv, own)
    choice = _choice(arguments, own or all_workloads())
    machine.open_fuse_device()
    quiet = not sys.stderr.isatty()
    try:
        with run_directory(default_run_base()) as directory:
            filesystem = filesystems.fstype_of(directory)
            if os.geteuid() == 0:  # else a container that starts meanwhile keeps a copy of our mounts, and our daemons
                child.enter_namespaces(directory, in_user_namespace=False)
            with hogs(arguments.hogs):
                result = run(choice, directory, (lambda _: None) if quiet else table.progress)
    except KeyboardInterrupt:
        print("\nstopped; nothing is left mounted", file=sys.stderr)
        return 130
    found = {**report.summary(result, choice, filesystem), "hogs": arguments.hogs}
    _write(found, arguments)
    return 0


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """Have `count` processes use a processor each."""
    started = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                child.die_with_parent()
                while True:
                    pass
            started.append(pid)
        yield
    finally:
        for pid in started:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _arguments(argv: Sequence[str] | None, own: Sequence[Workload]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Workloads on systems side by side; less is better in every row.")
    add = parser.add_argument
    add(
        "--quick", action="store_true", help=f"{_QUICK_ROUNDS} round at a scale of {_QUICK_SCALE}: does it work at all?"
    )
    if not own:
        add("--only", metavar="NAME,...", type=_words, help=f"only these workloads: {', '.join(FILES)}")
    add("--systems", metavar="NAME,...", type=_words, help=f"only these: {', '.join(SYSTEMS)}")
    add("--pyfuse3", action="store_true", help="with our transport behind libfuse, too")
    add("--passthrough", action="store_true", help="with our --passthrough, too")
    add("--no-keeper", action="store_true", help="with our --no-keeper, too: what a keeper costs")
    add("--rounds", metavar="N", type=int)
    add("--hogs", metavar="N", type=int, default=0, help="beside N processes that only use a processor")
    add("--scale", metavar="FACTOR", type=float, help="size of the workloads (default: 1)")
    add("--json", metavar="FILE", help="write everything that was measured")
    add("--plots", metavar="DIR", help="write PNG and SVG pictures")
    add("--markdown", metavar="FILE", help="put the table between the two marker lines of FILE")
    add("--title", metavar="TEXT", default="", help="a remark for the JSON and the table, as what else the machine did")
    return parser.parse_args(argv)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _choice(arguments: argparse.Namespace, workloads: Sequence[Workload]) -> Choice:
    wanted: list[str] | None = getattr(arguments, "only", None)
    if wanted is not None:
        unknown = set(wanted) - {workload.name for workload in workloads} - set(FILES)
        if unknown:
            raise SystemExit(f"unknown workloads: {', '.join(sorted(unknown))}")
        workloads = [one for one in workloads if one.name in wanted or one.name.partition("-")[0] in wanted]
    elif arguments.quick and len(workloads) > len(_NOT_QUICK):
        workloads = [one for one in workloads if one.name not in _NOT_QUICK]
    on_request = dict(zip(_ON_REQUEST, (arguments.pyfuse3, arguments.passthrough, arguments.no_keeper), strict=True))
    chosen = arguments.systems or [system for system in SYSTEMS if on_request.get(system, True)]
    unknown = set(chosen) - set(SYSTEMS)
    if unknown:
        raise SystemExit(f"unknown systems: {', '.join(sorted(unknown))}")
    factor = arguments.scale or (_QUICK_SCALE if arguments.quick else 1.0)
    count = arguments.rounds or (_QUICK_ROUNDS if arguments.quick else _ROUNDS)
    materials = Materials(default_cache(), small=factor < _TINY)
    return Choice(workloads, chosen, count, Scale(factor), materials)


def _write(found: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    found = {**found, "remark": arguments.title}
    report.show(found)
    if arguments.json:
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
    if arguments.markdown:
        report.write_between_markers(Path(arguments.markdown), report.as_markdown(found))
    if arguments.plots:
        from benchmarks import plots

        for path in plots.draw(found, Path(arguments.plots)):
            print(os.fspath(path))


if __name__ == "__main__":
    sys.exit(main())
