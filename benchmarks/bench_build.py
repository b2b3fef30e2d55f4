"""What does building an image cost: twelve steps in two stages, beside podman and buildah?

Packages from local debs (a C compiler), a COPY of 2,000 files, a compile, chown and chmod of all of them, a second
stage. Rootless, as one user, each system with a store of its own that has the base, a minimal Debian. Cold: no step is
cached. Cached: all are. Memory is the largest sum of the proportional set sizes (PSS) of all processes of the user,
sampled during one more cold build. Not part of the suite, since the builds mount by themselves.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.bench_podman import BASE, Podman, Samples, cell, measured, some_user
from benchmarks.materials import default_run_base
from tests.support import machine, process, rootfs
from tests.support.users import User, processes_of
from unionfs.bench import facts, rounds
from unionfs.bench.run_directory import run_directory

OURS: Final = "unionfs build"
SYSTEMS: Final = (OURS, "podman, fuse-overlayfs", "podman, overlayfs", "buildah, fuse-overlayfs")
_PACKAGES: Final = ("tcc", "libc6-dev", "linux-libc-dev", "libcrypt-dev", "make")
_FILES: Final = 2000
_SOURCES: Final = 60
_ROUNDS: Final = 3
_SAMPLE_S: Final = 0.1
_TIMEOUT_S: Final = 900
_CONTAINERFILE: Final = f"""\
FROM {BASE} AS build
COPY debs /debs
RUN dpkg --force-depends -i /debs/*.deb >/dev/null 2>&1 && rm -r /debs
WORKDIR /src
COPY src .
RUN for f in c/*.c; do tcc -c $f -o $f.o || exit 1; done && tcc c/*.o -o app && ./app
RUN chown -R 1000:1000 /src
RUN chmod -R go-w /src
FROM {BASE}
RUN useradd app
COPY --from=build /src/app /usr/local/bin/app
COPY src /srv/app
RUN chown -R app:app /srv/app
RUN chmod -R o-rwx /srv/app && rm -r /srv/app/c
CMD ["app"]
"""


def make_context(where: Path) -> Path:
    """Write the context into a new directory; the debs are downloaded by apt. Raises: CalledProcessError."""
    context = where / "context"
    (context / "debs").mkdir(parents=True)
    (context / "debs").chmod(0o777)  # apt downloads as another user
    download = ["apt-get", "-qq", "-o", "Debug::NoLocking=1", "download", *_PACKAGES]
    subprocess.run(download, cwd=context / "debs", check=True, stdout=subprocess.DEVNULL)
    sources = context / "src/c"
    sources.mkdir(parents=True)
    for number in range(_SOURCES):
        text = f"#include <stdio.h>\n#include <stdlib.h>\nint function{number}(int n) {{ return n + {number}; }}\n"
        (sources / f"f{number}.c").write_text(text)
    (sources / "main.c").write_text("int main(void) { return 0; }\n")
    for number in range(_FILES - _SOURCES - 1):
        directory = context / f"src/d{number % 40}"
        directory.mkdir(exist_ok=True)
        (directory / f"file{number}").write_bytes(os.urandom(64) * (number % 200))
    (context / "Containerfile").write_text(_CONTAINERFILE)
    return context


Build = Callable[[bool], str]
"""Builds the context, with the cache (True) or without it."""


def systems(
    user: User, directory: Path, tar: Path, context: Path, wanted: Sequence[str], stack: ExitStack
) -> dict[str, Build]:
    """The installed systems, each with the base in its store."""
    found: dict[str, Build] = {}
    short = Path(stack.enter_context(TemporaryDirectory(prefix="unionfs-")))
    user.own(short)
    program = shutil.which("fuse-overlayfs")
    if OURS in wanted:
        found[OURS] = _ours(user, directory, tar, context)
    for number, name in enumerate(name for name in SYSTEMS[1:] if name in wanted):
        tool, _, mounts = name.partition(", ")
        if shutil.which(tool) is None or (mounts == "fuse-overlayfs" and program is None):
            print(f"left out: {name}: not installed", file=sys.stderr)
            continue
        runroot = short / str(number)
        runroot.mkdir()
        user.own(runroot)
        mount_program = Path(program) if program and mounts == "fuse-overlayfs" else None
        store = Podman(user, directory / f"s{number}", runroot, mount_program)
        stack.callback(store.remove)
        try:
            store("import", "-q", tar, BASE)
        except process.ChildError as why:
            print(f"left out: {name}: {str(why).splitlines()[-1]}", file=sys.stderr)
            continue
        found[name] = partial(_theirs, store.buildah if tool == "buildah" else store, context)
    return found


def _ours(user: User, directory: Path, tar: Path, context: Path) -> Build:
    unionfs, store = Path(sys.executable).with_name("unionfs"), directory / "ours"
    store.mkdir()
    user.own(store)
    user.run([unionfs, "import", "--root", store, "-q", tar, BASE], timeout_s=_TIMEOUT_S)

    def build(is_cached: bool) -> str:
        flags = [] if is_cached else ["--no-cache"]
        argv: list[str | Path] = [unionfs, "build", "--root", store, "-q", *flags, "-t", "localhost/built:1", context]
        return user.run(argv, timeout_s=_TIMEOUT_S).stdout

    return build


def _theirs(tool: Callable[..., str], context: Path, is_cached: bool) -> str:
    flags = [] if is_cached else ["--no-cache"]
    return tool("build", "-q", "--layers", *flags, "--network=host", "-t", "localhost/built:1", context)


def largest_memory(user: User, act: Callable[[], object]) -> int:
    """The largest sum of the PSS, in bytes, of the user's processes while `act` runs."""
    largest, over = 0, threading.Event()

    def sample() -> None:
        nonlocal largest
        while not over.wait(_SAMPLE_S):
            largest = max(largest, sum(map(_pss, processes_of(user.name))))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        act()
    finally:
        over.set()
        thread.join()
    return largest


def _pss(pid: int) -> int:
    with suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description="A build of twelve steps, beside podman and buildah.")
    parser.add_argument("--rounds", metavar="N", type=int, default=_ROUNDS)
    parser.add_argument("--systems", metavar="NAME;...", default=";".join(SYSTEMS), help="separated by semicolons")
    arguments = parser.parse_args(argv)
    wanted = [word.strip() for word in arguments.systems.split(";") if word.strip()]
    if unknown := {*wanted} - {*SYSTEMS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    machine.open_fuse_device()
    with run_directory(default_run_base()) as directory, ExitStack() as stack:
        tar = directory / "base.tar"
        shutil.copy(rootfs.debian_tar(), tar)
        tar.chmod(0o644)
        context = make_context(directory)
        user = stack.enter_context(some_user(directory))
        builds = systems(user, directory, tar, context, wanted, stack)
        cold = {name: Samples() for name in builds}
        cached = {name: Samples() for name in builds}
        for number in range(arguments.rounds):
            for name in rounds.order(list(builds), number):
                measured(user, partial(builds[name], False), cold[name])
                measured(user, partial(builds[name], True), cached[name])
        memory = {name: largest_memory(user, partial(build, False)) for name, build in builds.items()}
    where = facts.machine()
    print(
        f"{where['cpu']}, {where['cpus']} CPUs, Linux {where['kernel']}, {where['utc']} UTC, load {where['load']:.1f} "
        f"at the end. Medians of {arguments.rounds} rounds, ± half of the spread; then processor seconds.\n"
    )
    print("| | cold | cached | memory |\n|---|---:|---:|---:|")
    for name in builds:
        print(f"| {name} | {cell(cold[name])} | {cell(cached[name])} | {memory[name] >> 20} MiB |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
