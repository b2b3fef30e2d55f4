"""What do whole jobs cost: rootless podman on each mount program, and our own commands that do the same?

Podman's jobs: `run --rm IMAGE true`; `diff` of a container that changed some hundred files; `commit` of it; a build of
eight RUN steps. The image is a minimal Debian. Each system has a store of its own, of an ordinary user (made for the
run, if root runs this). Of ours: `unionfs run --rm IMAGE true`, `unionfs try true`, `unionfs --version`, and `unionfs
ps` of an empty store; beside them podman on fuse-overlayfs does what podman can.

Seconds are those of the command. Processor seconds are those of the whole machine, user and system, from the start of
the command until its daemons have ended, so nothing else may run. Not part of the suite, since its jobs mount by
themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.materials import default_run_base
from tests.support import machine, process, rootfs
from tests.support.users import User, current_user, new_ordinary_user, processes_of
from unionfs.bench import facts, rounds
from unionfs.bench.run_directory import run_directory

OURS: Final = "ours"
OURS_WITHOUT_VIEW: Final = "ours, view=off"
OURS_WITHOUT_PARENT: Final = "ours, no parent"
FUSE_OVERLAYFS: Final = "fuse-overlayfs"
FUSE_OVERLAYFS_2: Final = "fuse-overlayfs 2"
OVERLAYFS: Final = "overlayfs"
SYSTEMS: Final = (OURS, OURS_WITHOUT_VIEW, OURS_WITHOUT_PARENT, FUSE_OVERLAYFS, FUSE_OVERLAYFS_2, OVERLAYFS)
"""The mount programs; `fuse-overlayfs 2` is the program that $UNIONFS_BENCH_FUSE_OVERLAYFS_2 names, and `overlayfs` the
kernel's, mounted by podman itself."""

JOBS: Final = ("run", "diff", "commit", "build")
COMMANDS: Final = ("run --rm IMAGE true", "try true", "--version", "ps", "build", "build again")
"""Our own commands that are timed."""

BASE: Final = "localhost/base:1"
"""The image of the jobs."""
_CHANGED: Final = "changed"
_CHANGES: Final = (
    "i=0; while [ $i -lt 50 ]; do echo x >/root/f$i; i=$((i+1)); done; "
    "for f in /etc/p*; do [ -f $f ] && echo >>$f; done; rm -f /etc/debian_version; true"
)
_STEP: Final = "RUN echo {n} >/s{n} && mkdir -p /opt/d{n} && cp /etc/p* /opt/d{n}/ 2>/dev/null; echo {n} >>/etc/motd"
_ROUNDS: Final = 5
_STEPS: Final = 8
_TIMEOUT_S: Final = 600
_END_OF_DAEMONS_S: Final = 10
_PAUSE_S: Final = 0.3
"""Seconds before each command, in which the kernel finishes work of the one before."""
_LINGER: Final = {"UNIONFS_LINGER": "60"}
"""The default of UNIONFS_LINGER. The users of the tests have another."""
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Samples:
    """The measurements of one job on one system, a value for each round."""

    seconds: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)
    said: set[str] = field(default_factory=set)  # the output of the command; of `diff` only

    def summary(self) -> dict[str, Any]:
        """Return medians and spreads."""
        return {"seconds": rounds.spread(self.seconds), "processor_s": rounds.spread(self.processor_s)}


class Podman:
    """Podman with a store of its own below `where`, whose mounts `program` makes (None: the kernel)."""

    def __init__(self, user: User, where: Path, runroot: Path, program: Path | None) -> None:
        """`runroot` must exist and be short: podman takes 50 characters."""
        where.mkdir()
        (where / "containers.conf").write_text('[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n')
        user.own(where)
        self._user, self._where, self._runroot = user, where, runroot
        self._store = ["--root", f"{where}/root", "--runroot", f"{runroot}", "--storage-driver", "overlay"]
        if program is not None:
            self._store += ["--storage-opt", f"overlay.mount_program={program}"]

    def __call__(self, *words: str | Path, check: bool = True) -> str:
        """Run one command; return what it printed. Raises: ChildError."""
        return self._run(self.argv(*words), check=check)

    def argv(self, *words: str | Path) -> list[str | Path]:
        """The whole command, which needs CONTAINERS_CONF, too."""
        return ["podman", *self._store, "--runtime", "runc", *words]

    def buildah(self, verb: str, *words: str | Path) -> str:
        """Run one command of buildah on the same store. Raises: ChildError."""
        return self._run(["buildah", *self._store, verb, "--runtime", "runc", *words], check=True)

    def _run(self, argv: Sequence[str | Path], *, check: bool) -> str:
        env = {"CONTAINERS_CONF": f"{self._where}/containers.conf", **_LINGER}
        return self._user.run(argv, env=env, timeout_s=_TIMEOUT_S, check=check).stdout

    def job(self, name: str, steps: int) -> str:
        """Run one of JOBS; return what `diff` printed, else ""."""
        if name == "run":
            self("run", "--rm", "--network=host", BASE, "true")
        elif name == "diff":
            return "\n".join(sorted(self("diff", _CHANGED).splitlines()))
        elif name == "commit":
            self("commit", "-q", _CHANGED, "localhost/committed:1")
        else:
            context = _make_context(self._where, steps)
            self("build", "-q", "--layers", "--no-cache", "--network=host", "-t", "localhost/built:1", context)
        return ""

    def prepare(self, tar: Path) -> None:
        """Import the image, and make the container that `diff` and `commit` look at."""
        self("import", "-q", tar, BASE)
        self("run", "--name", _CHANGED, "--network=host", BASE, "sh", "-c", _CHANGES)

    def clean(self, job: str) -> None:
        """Remove the results of a job; not timed."""
        if job == "commit":
            self("rmi", "-f", "localhost/committed:1")
        elif job == "build":
            self("rmi", "-f", "localhost/built:1")
            self("image", "prune", "-f", check=False)

    def remove(self) -> None:
        """Remove the store."""
        places = (f"{self._where}/root", f"{self._runroot}")
        for words in (("rm", "-af", "-t", "0"), ("unshare", "rm", "-rf", *places), ("system", "migrate")):
            self(*words, check=False)


def _make_context(where: Path, steps: int) -> Path:
    """Write the Containerfile of the build into a directory below `where`."""
    context = where / "context"
    context.mkdir(exist_ok=True)
    lines = [f"FROM {BASE}", *(_STEP.format(n=n) for n in range(steps))]
    (context / "Containerfile").write_text("\n".join(lines) + "\n")
    return context


def measured(user: User, act: Callable[[], str], into: Samples) -> None:
    """Run `act`, a command of `user`, and add a sample."""
    time.sleep(_PAUSE_S)
    before_s = _machine_processor_s()
    began = time.perf_counter()
    said = act()
    into.seconds.append(time.perf_counter() - began)
    _wait_for_daemons(user)
    into.processor_s.append(_machine_processor_s() - before_s)
    if said:
        into.said.add(said)


def _machine_processor_s() -> float:
    """The processor seconds that all processes and the kernel have used since the machine started."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S


def _wait_for_daemons(user: User) -> None:
    """Wait until no daemon of the user serves a mount: podman unmounts lazily, and its daemons end a moment later."""
    deadline = time.monotonic() + _END_OF_DAEMONS_S
    while time.monotonic() < deadline and any(map(_is_serving, processes_of(user.name))):
        time.sleep(0.01)


def _is_serving(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith(("unionfs:", "fuse-overlayfs"))
    except OSError:
        return False


def _programs(user: User, directory: Path, wanted: Sequence[str]) -> Iterator[tuple[str, Path | None]]:
    """Yield the installed systems, with their mount programs."""
    ours = Path(sys.executable).with_name("unionfs")
    second = os.environ.get("UNIONFS_BENCH_FUSE_OVERLAYFS_2")
    for system in wanted:
        if system == OURS:
            yield system, ours
        elif system in (OURS_WITHOUT_VIEW, OURS_WITHOUT_PARENT):
            wrapper = directory / system.replace(" ", "-").replace(",", "")
            command = f"{ours} -o view=off" if system == OURS_WITHOUT_VIEW else f"env UNIONFS_LINGER=0 {ours}"
            wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            wrapper.chmod(0o755)
            user.own(wrapper)
            yield system, wrapper
        elif system == OVERLAYFS:
            yield system, None
        else:
            program = shutil.which("fuse-overlayfs") if system == FUSE_OVERLAYFS else second
            if program is None:
                print(f"left out: {system}: not installed", file=sys.stderr)
            else:
                yield system, Path(program)


def podman_jobs(
    user: User, directory: Path, tar: Path, wanted: Sequence[str], jobs: Sequence[str], count: int, steps: int
) -> dict[str, dict[str, Samples]]:
    """Return job -> system -> samples of `count` interleaved rounds."""
    stores: dict[str, Podman] = {}
    found: dict[str, dict[str, Samples]] = {job: {} for job in jobs}
    with ExitStack() as stack:
        short = Path(stack.enter_context(TemporaryDirectory(prefix="unionfs-")))
        for number, (system, program) in enumerate(_programs(user, directory, wanted)):
            runroot = short / str(number)
            runroot.mkdir()
            user.own(short)
            store = Podman(user, directory / f"p{number}", runroot, program)
            stack.callback(store.remove)
            try:
                store.prepare(tar)
            except process.ChildError as why:
                print(f"left out: {system}: {str(why).splitlines()[-1]}", file=sys.stderr)
                continue
            stores[system] = store
        for number in range(count):
            for job in jobs:
                for system in rounds.order(list(stores), number):
                    samples = found[job].setdefault(system, Samples())
                    measured(user, partial(stores[system].job, job, steps), samples)
                    stores[system].clean(job)
    return found


def own_commands(
    user: User, directory: Path, tar: Path, names: Sequence[str], count: int, steps: int
) -> dict[str, Samples]:
    """Return command -> samples of `count` rounds. `ps` has an empty store, `run` and `build` one with the image
    unpacked."""
    program, image = Path(sys.executable).with_name("unionfs"), BASE
    context = _make_context(directory, steps)
    user.own(context)
    full, empty = directory / "full", directory / "empty"
    for store in (full, empty):
        store.mkdir()
        user.own(store)
    argv: Mapping[str, list[str]] = {
        "run --rm IMAGE true": ["run", "--root", f"{full}", "--rm", image, "true"],
        "try true": ["try", "--discard", "true"],
        "--version": ["--version"],
        "ps": ["ps", "--root", f"{empty}"],
        "build": ["build", "--root", f"{full}", "-q", "--no-cache", "-t", "localhost/built:1", f"{context}"],
        "build again": ["build", "--root", f"{full}", "-q", "-t", "localhost/built:1", f"{context}"],
    }

    def act(name: str) -> str:
        user.run([program, *argv[name]], env=_LINGER, timeout_s=_TIMEOUT_S)
        return ""

    found = {name: Samples() for name in names}
    if {"run --rm IMAGE true", "build", "build again"} & {*names}:
        user.run([program, "import", "--root", full, "-q", tar, image], timeout_s=_TIMEOUT_S)
        act("run --rm IMAGE true")
    if "build again" in names:
        act("build again")
    for number in range(count):
        for name in rounds.order(list(names), number):
            measured(user, partial(act, name), found[name])
    return found


def cell(samples: Samples | None) -> str:
    """Seconds, median ± half of the spread, and processor seconds."""
    if samples is None:
        return ""
    found = samples.summary()
    half = (found["seconds"]["most"] - found["seconds"]["least"]) / 2
    return f"{found['seconds']['median']:.3f} ± {half:.3f} s, {found['processor_s']['median']:.2f} s"


def as_markdown(jobs: Mapping[str, Mapping[str, Samples]], commands: Mapping[str, Samples], rounds_run: int) -> str:
    """Return the tables: seconds ± half of the spread, and processor seconds of the machine."""
    where = facts.machine()
    lines = [
        f"{where['cpu']}, {where['cpus']} CPUs, Linux {where['kernel']}, {where['utc']} UTC, load {where['load']:.1f} "
        f"at the end. Medians of {rounds_run} rounds, ± half of the spread; then processor seconds of the machine.",
        "",
    ]
    used = [system for system in SYSTEMS if any(system in row for row in jobs.values())]
    if used:
        lines += [f"| podman | {' | '.join(used)} |", "|---" + "|---:" * len(used) + "|"]
        for job, row in jobs.items():
            lines.append(f"| {job} | {' | '.join(cell(row.get(system)) for system in used)} |")
        lines.append("")
    if commands:
        lines += ["| unionfs | |", "|---|---:|"]
        lines += [f"| `{name}` | {cell(samples)} |" for name, samples in commands.items()]
    return "\n".join(lines)


@contextmanager
def some_user(directory: Path) -> Iterator[User]:
    """A new ordinary user; without root, the current one."""
    if os.geteuid() == 0:
        with new_ordinary_user(directory) as user:
            yield user
    else:
        home = directory / "home"
        home.mkdir()
        yield current_user(home)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables as Markdown, or everything as JSON."""
    parser = argparse.ArgumentParser(description="Whole jobs: podman on each mount program, and our own commands.")
    parser.add_argument("--rounds", metavar="N", type=int, default=_ROUNDS)
    parser.add_argument("--steps", metavar="N", type=int, default=_STEPS, help="RUN steps of the build")
    parser.add_argument("--systems", metavar="NAME;...", default=";".join(SYSTEMS), help="separated by semicolons")
    parser.add_argument("--jobs", metavar="NAME,...", type=_words, default=list(JOBS))
    parser.add_argument("--commands", metavar="NAME,...", type=_words, default=list(COMMANDS))
    parser.add_argument("--tar", metavar="FILE", type=Path, help="another root filesystem than a minimal Debian")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    wanted = [word.strip() for word in arguments.systems.split(";") if word.strip()]
    if unknown := {*wanted} - {*SYSTEMS} | {*arguments.jobs} - {*JOBS} | {*arguments.commands} - {*COMMANDS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if arguments.jobs and not (shutil.which("podman") and shutil.which("runc")):
        parser.error("podman and runc are needed (Debian packages of these names)")
    machine.open_fuse_device()
    with run_directory(default_run_base()) as directory:
        tar = directory / "base.tar"
        shutil.copy(arguments.tar or rootfs.debian_tar(), tar)
        tar.chmod(0o644)
        with some_user(directory) as user:
            jobs = podman_jobs(user, directory, tar, wanted, arguments.jobs, arguments.rounds, arguments.steps)
            commands = own_commands(user, directory, tar, arguments.commands, arguments.rounds, arguments.steps)
    for system in (said := {system: samples.said for system, samples in jobs.get("diff", {}).items()}):
        if said[system] != next(iter(said.values())):
            print(f"the output of diff differs on {system}", file=sys.stderr)
    if arguments.json:
        found = {job: {system: samples.summary() for system, samples in row.items()} for job, row in jobs.items()}
        own = {name: samples.summary() for name, samples in commands.items()}
        print(json.dumps({"machine": facts.machine(), "podman": found, "unionfs": own}, indent=1))
    else:
        print(as_markdown(jobs, commands, arguments.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
