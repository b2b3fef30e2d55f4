"""What does the start of a container cost, from a store, a further store and an image file, alone and 32 at once?

Beside ours: Charliecloud (`ch-run` of a directory, and of the same squashfs mounted by squashfuse_ll) and podman on
fuse-overlayfs. The image is a minimal Debian, the command `true`. Seconds are those until all containers have ended;
processor seconds are those of a control group (cpuacct) in which the commands run, until its daemons have ended. Cold:
the page cache was dropped before.

Then the time of Python's imports (`python3 -c "import ..."`) in a container of an image file, and through squashfuse_ll
alone with chroot(2), the first time and again. Needs root, cgroup v1, podman, charliecloud and squashfuse; systems that
are missing are left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.bench_podman import BASE, Podman
from benchmarks.materials import default_run_base
from tests.support import rootfs
from tests.support.users import User, new_ordinary_user
from unionfs.bench import facts
from unionfs.bench.run_directory import run_directory

_IMPORTS: Final = "import json, asyncio, http.client, email, xml.dom.minidom, sqlite3, unittest, decimal, ctypes"
_TIMED: Final = f"a=$(date +%s%N); python3 -c '{_IMPORTS}' || exit; b=$(date +%s%N); echo $((b - a))"
_GROUP: Final = Path("/sys/fs/cgroup/cpuacct/unionfs-bench")
_CH_RUN_FILE: Final = 'd=$(mktemp -d); squashfuse_ll "$0" $d && ch-run $d -- true && fusermount3 -u $d && rmdir $d'
_JOIN: Final = 'echo $$ > "$0"; exec "$@"'
_TIMEOUT_S: Final = 300.0
_END_S: Final = 15.0
_SERVERS: Final = ("unionfs:", "unionfs-monitor", "squashfuse", "fuse-overlayfs")


def _argv(user: User, words: Sequence[str | Path]) -> list[str]:
    return ["sh", "-c", _JOIN, f"{_GROUP}/cgroup.procs", *user.prefix, *map(str, words)]


def _run(user: User, words: Sequence[str | Path], count: int, env: Mapping[str, str]) -> tuple[float, float]:
    """Start `count` commands at once; return seconds and processor seconds. Raises: RuntimeError if one fails."""
    before = int((_GROUP / "cpuacct.usage").read_text())
    began = time.perf_counter()
    started = [
        subprocess.Popen(
            _argv(user, words), env={**user.env, **env}, cwd=user.home, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for _ in range(count)
    ]  # fmt: skip
    told = [(one.communicate(timeout=_TIMEOUT_S)[0], one.returncode) for one in started]
    seconds = time.perf_counter() - began
    if failed := [text for text, status in told if status]:
        raise RuntimeError(f"{len(failed)} of {count} failed: {failed[0].decode(errors='replace')}")
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline and any(map(_is_serving, (_GROUP / "cgroup.procs").read_text().split())):
        time.sleep(0.01)
    return seconds, (int((_GROUP / "cpuacct.usage").read_text()) - before) / 1e9


def _cell(row: Sequence[tuple[float, float]]) -> str:
    seconds, processor = zip(*row, strict=True)
    spread = (max(seconds) - min(seconds)) / 2
    return f"{median(seconds):.3f} ± {spread:.3f} s, {median(processor):.2f} s"


def _is_serving(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith(_SERVERS)
    except OSError:
        return False


def _drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@contextmanager
def _group() -> Iterator[None]:
    _GROUP.mkdir(exist_ok=True)
    try:
        yield
    finally:
        for pid in (_GROUP / "cgroup.procs").read_text().split():
            (_GROUP.parent / "cgroup.procs").write_text(pid)
        _GROUP.rmdir()


def _with_dev(tar: Path, copy: Path) -> Path:
    """A copy of the root filesystem with the directory /dev, which ch-run needs."""
    shutil.copy(tar, copy)
    with tarfile.open(copy, "a") as archive:
        entry = tarfile.TarInfo("dev")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
    copy.chmod(0o644)
    return copy


def systems(user: User, owner: User, directory: Path, tar: Path, stack: ExitStack) -> dict[str, list[str | Path]]:
    """The command of each system that starts one container; images are made here."""
    program = Path(sys.executable).with_name("unionfs")
    own, shared, file = directory / "own", directory / "shared", directory / "image.sqfs"
    (shared / "layers").mkdir(parents=True)
    for path in (shared, shared / "layers"):
        path.chmod(0o755)
    own.mkdir()
    user.own(own)
    owner.own(shared)
    for store, its_owner in ((own, user), (shared, owner)):
        its_owner.run(
            [program, "import", "--root", store, "-q", "--compression", "none", tar, BASE], timeout_s=_TIMEOUT_S
        )
    owner.run([program, "save", "-q", "--root", shared, "--format", "squashfs", BASE, owner.home / "i"], timeout_s=300)
    shutil.copy(owner.home / "i", file)
    user.own(file)
    words = {
        "own store": f"{program} run --rm --root {own} {BASE} true",
        "further store": f"{program} run --rm --root {own}/none --image-store {shared} --scratch {own} {BASE} true",
        "image file": f"{program} run --rm --root {own} {file} true",
    }
    found: dict[str, list[str | Path]] = {name: list(line.split()) for name, line in words.items()}
    if shutil.which("ch-run"):
        tree = directory / "tree"
        tree.mkdir()
        subprocess.run(["tar", "-C", tree, "-xf", tar], check=True)
        user.own(tree)
        found["ch-run, directory"] = ["env", f"USER={user.name}", "ch-run", tree, "--", "true"]
        found["ch-run, image file"] = ["env", f"USER={user.name}", "sh", "-c", _CH_RUN_FILE, file]
    fuse_overlayfs = shutil.which("fuse-overlayfs")
    if shutil.which("podman") and fuse_overlayfs:
        short = Path(stack.enter_context(TemporaryDirectory(prefix="unionfs-")))
        user.own(short)
        podman = Podman(user, directory / "podman", short, Path(fuse_overlayfs))
        stack.callback(podman.remove)
        podman("import", "-q", tar, BASE)
        found["podman, fuse-overlayfs"] = podman.argv("run", "--rm", "--network=host", BASE, "true")
    return found


def imports(user: User, file: Path, directory: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of Python's imports from the image file, medians: [the first time, again]."""
    program = Path(sys.executable).with_name("unionfs")
    place = directory / "alone"
    place.mkdir()
    user.own(place)
    script = f"{_TIMED}; {_TIMED}"
    alone = 'squashfuse_ll "$1" "$2" && /usr/sbin/chroot "$2" sh -c "$3"; umount -l "$2"'
    systems: dict[str, list[str | Path]] = {
        "ours": [program, "run", "--rm", "--root", directory / "own", file, "sh", "-c", script],
        "squashfuse_ll alone": ["unshare", "-rm", "sh", "-c", alone, "sh", file, place, script],
    }
    found: dict[str, list[list[float]]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, words in systems.items():
            _drop_caches()
            first, again = (int(line) / 1e9 for line in user.run(words).stdout.split())
            found[name].append([first, again])
    return {name: [median(row[at] for row in rows) for at in range(2)] for name, rows in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", metavar="N", type=int, default=3)
    parser.add_argument("--at-once", metavar="N", type=int, default=32)
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        directory = stack.enter_context(run_directory(default_run_base()))
        directory.chmod(0o755)
        user, owner = (stack.enter_context(new_ordinary_user(directory)) for _ in range(2))
        owner.home.chmod(0o755)
        stack.enter_context(_group())
        known = systems(
            user, owner, directory, _with_dev(rootfs.debian_tar("python3"), directory / "debian.tar"), stack
        )
        cases: dict[str, tuple[int, Callable[[], None]]] = {
            "1, cold": (1, _drop_caches),
            "1, warm": (1, lambda: None),
            f"{arguments.at_once} at once, cold": (arguments.at_once, _drop_caches),
            f"{arguments.at_once} at once, warm": (arguments.at_once, lambda: None),
        }
        env = {"UNIONFS_LINGER": "60", "CONTAINERS_CONF": f"{directory}/podman/containers.conf"}
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(arguments.rounds):
            for name, words in known.items():
                for case, (count, before) in cases.items():  # warm: what the same system has just read
                    before()
                    found.setdefault((case, name), []).append(_run(user, words, count, env))
        where = facts.machine()
        print(f"{where['cpu']}, {where['cpus']} CPUs, Linux {where['kernel']}; medians of {arguments.rounds}.\n")
        print(f"| | {' | '.join(cases)} |\n|---{'|---:' * len(cases)}|")
        for name in known:
            rows = [found[case, name] for case in cases]
            cells = [_cell(row) for row in rows]
            print(f"| {name} | {' | '.join(cells)} |")
        print("\n| Python's imports from the image file | first | again |\n|---|---:|---:|")
        for name, (first, again) in imports(user, directory / "image.sqfs", directory, arguments.rounds).items():
            print(f"| {name} | {first:.3f} s | {again:.3f} s |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
