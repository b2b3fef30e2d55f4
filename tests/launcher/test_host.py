"""Containers on a view of this machine itself: it is seen, and stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.launcher.conftest import Run, state
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = [pytest.mark.transport(DEFAULT_TRANSPORT), pytest.mark.usefixtures("fuse_device")]


def test_files_are_seen_and_changes_stay_inside(run: Run, user: User) -> None:
    script = """
        cmp /etc/os-release /usr/lib/os-release && echo same
        echo changed > /etc/hostname; rm /etc/os-release; touch /usr/bin/unionfs-test-file /unionfs-test-file
        cat /etc/hostname; test -e /etc/os-release || echo gone; ls /usr/bin/unionfs-test-file; id -u"""
    before = os.lstat("/etc/os-release")
    told = run("/", "sh", "-ec", script)
    assert told.stdout == "same\nchanged\ngone\n/usr/bin/unionfs-test-file\n0\n"
    assert os.lstat("/etc/os-release") == before
    assert not Path("/usr/bin/unionfs-test-file").exists()
    assert not Path("/unionfs-test-file").exists()


def test_unmapped_owners_are_shown_as_root(run: Run, user: User) -> None:
    told = run("/", "stat", "-c", "%u:%g %a", "/", "/usr/bin/env", "/etc/passwd")
    assert told.stdout.splitlines() == [
        f"0:0 {os.stat(path).st_mode & 0o7777:o}" for path in ("/", "/usr/bin/env", "/etc/passwd")
    ]


def test_a_package_is_installed(run: Run, user: User, package: Path) -> None:
    told = run(
        "-v",
        f"{package}:/greeting.deb",
        "/",
        "sh",
        "-ec",
        "dpkg -i /greeting.deb >&2; cat /usr/share/greeting/text",
        timeout_s=180,
    )
    assert told.stdout == "hello\n"
    assert not Path("/usr/share/greeting").exists()


def test_the_containers_own_files_are_not_seen(run: Run, user: User) -> None:
    # Else the union would show itself in itself, and other containers what they have written.
    store = state(user)
    told = run("/", "sh", "-c", f"ls -A {store}; touch {store}/file && ls {store}")
    assert told.stdout == "file\n"
    assert not (store / "file").exists()


def test_names_resolve_as_outside(run: Run, user: User) -> None:
    assert run("/", "cat", "/etc/resolv.conf").stdout == Path("/etc/resolv.conf").read_text()


def test_a_layer_over_the_machine(run: Run, user: User, scratch: Path) -> None:
    (scratch / "top/etc").mkdir(parents=True)
    (scratch / "top/etc/issue").write_text("from the layer\n")
    (scratch / "top/etc/.wh.os-release").touch()
    user.own(scratch / "top")
    told = run(
        "--lower",
        scratch / "top",
        "--lower",
        "/",
        "sh",
        "-c",
        "cat /etc/issue; ls /etc/os-release /etc/passwd",
        check=False,
    )
    assert told.stdout == "from the layer\n/etc/passwd\n"
