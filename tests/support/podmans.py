"""Podman and buildah of an ordinary user, each test file with stores of its own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.process import ChildError
from tests.support.users import User

_NEEDED: Final = ("podman", "buildah", "runc", "conmon")


def need_podman() -> None:
    """Skip where podman is not installed."""
    missing = [program for program in _NEEDED if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)} (names of Debian packages)")


def our_program(where: Path, user: User, then: str = "") -> Path:
    """`unionfs` as a mount program that the user can run; `then` is shell code that runs before it."""
    program = where / "mount-program"
    environment = " ".join(f"{name}='{user.env[name]}'" for name in ("PYTHONPATH",) if name in user.env)
    program.write_text(f'#!/bin/bash\n{then}\n{environment} exec {sys.executable} -m unionfs "$@"\n')
    program.chmod(0o755)
    return program


class Podman:
    """Podman with a store of its own below `where`, which mounts with `program`."""

    def __init__(self, user: User, where: Path, program: Path, options: Sequence[str] = ()) -> None:
        self.user = user
        self.where = where
        self.program = program
        (where / "containers.conf").write_text('[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n')
        self._store = ["--root", f"{where}/root", "--runroot", f"{where}/run", "--storage-driver", "overlay"]
        for option in (f"overlay.mount_program={program}", *options):
            self._store += ["--storage-opt", option]
        self._env = {"CONTAINERS_CONF": str(where / "containers.conf")}

    def __call__(self, *args: str | Path, check: bool = True) -> str:
        return self.run(["podman", *self._store, "--runtime", "runc", *args], check=check)[1].strip()

    def buildah(self, *args: str | Path) -> str:
        """`buildah ARGS` on the same store."""
        return self.run(["buildah", *self._store, *args])[1].strip()

    def refused(self, *args: str | Path, options: Sequence[str] = ()) -> tuple[int, str]:
        """The exit code of a podman command that fails, and its output."""
        status, _, said = self.run(["podman", *self._store, *options, "--runtime", "runc", *args], check=False)
        return status, said

    def run(self, argv: Sequence[str | Path], check: bool = True) -> tuple[int, str, str]:
        done = self.user.run(argv, env=self._env, timeout_s=240, check=check)
        return done.returncode, done.stdout, done.stderr

    def sh(self, name: str, script: str) -> str:
        """Run a script in a running container."""
        return self("exec", name, "sh", "-ec", script)


BASE: Final = "localhost/base:1"
"""The image of `debian_store`."""


@contextmanager
def debian_store(
    user: User, where: Path, debian_tar: Path, *, then: str = "", options: Sequence[str] = ()
) -> Iterator[Podman]:
    """A store in the new directory `where` with one image, BASE. `then`: as in `our_program`; `options`: of storage."""
    need_podman()
    where.mkdir()
    shutil.copyfile(debian_tar, where / "debian.tar")
    with podman_store(user, where, our_program(where, user, then), options) as made:
        made("import", "-q", where / "debian.tar", BASE)
        yield made


@contextmanager
def podman_store(user: User, where: Path, program: Path, options: Sequence[str] = ()) -> Iterator[Podman]:
    """A store that is removed afterwards, with all its containers."""
    user.own(where)
    made = Podman(user, where, program, options)
    try:
        yield made
    finally:
        for command in (("rm", "-af", "-t", "0"), ("unshare", "rm", "-rf", f"{where}/root"), ("system", "migrate")):
            try:
                made(*command)
            except ChildError as error:
                print(error)
