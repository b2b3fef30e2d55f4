"""Fixtures for tests of the OCI runtime.

rootfs        a small root filesystem, shared and not to be changed
bundle        a bundle on it
ours          our runtime, as root
runtime_for   `runtime_for(name)`: ours, runc or crun, as root
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oci.bundles import Bundle, Runtime, RuntimeFor, need
from tests.support import tiny
from tests.support.users import User


@pytest.fixture(scope="session")
def rootfs(run_dir: Path) -> Path:
    where = run_dir / "oci-rootfs"
    with tarfile.open(tiny.make(run_dir / "oci.tar")) as archive:
        archive.extractall(where)
    where.chmod(0o755)
    return where


@pytest.fixture
def bundle(scratch: Path, rootfs: Path) -> Bundle:
    return Bundle(scratch / "bundle", rootfs)


@pytest.fixture
def runtime_for(root_user: User, scratch: Path) -> Iterator[RuntimeFor]:
    made: list[Runtime] = []

    def make(name: str) -> Runtime:
        need(name)
        made.append(Runtime(name, scratch, root_user))
        return made[-1]

    yield make
    for runtime in made:
        if runtime.name != "crun":
            runtime.clean_up()


@pytest.fixture
def ours(runtime_for: RuntimeFor) -> Runtime:
    return runtime_for("ours")
