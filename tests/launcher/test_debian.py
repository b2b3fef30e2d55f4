"""Debian's own tools at work in containers, as root and as an ordinary user."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.conftest import Run
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)


def test_python(run: Run, debian: Path) -> None:
    told = run(debian, "python3", "-c", "import os; print(os.getuid(), os.getpid() < 10, sorted(os.listdir('/'))[:3])")
    assert told.stdout == "0 True ['bin', 'boot', 'dev']\n"


def test_dpkg_installs_and_removes(run: Run, debian: Path, package: Path) -> None:
    script = """
        dpkg -i /greeting.deb >/dev/null && stat -c '%U:%G %a' /usr/share/greeting/text
        getent group greeters | cut -d: -f1
        dpkg -r greeting >/dev/null && test ! -e /usr/share/greeting && echo gone"""
    told = run("-v", f"{package}:/greeting.deb:ro", debian, "sh", "-ec", script, timeout_s=120)
    assert told.stdout == "games:games 644\ngreeters\ngone\n"
    assert not (debian / "usr/share/greeting").exists()


def test_apt_installs_a_local_package(run: Run, debian: Path, package: Path) -> None:
    script = "apt-get install -y /greeting.deb >&2 && dpkg-query -W greeting && cat /usr/share/greeting/text"
    told = run("-v", f"{package}:/greeting.deb:ro", debian, "sh", "-ec", script, timeout_s=120)
    assert told.stdout == "greeting\t1.0\nhello\n"
    assert "unsandboxed" not in told.stderr


def test_useradd_and_su(run: Run, debian: Path) -> None:
    script = """
        useradd --create-home alice
        su alice -c 'id -un; cd; touch file; stat -c %U:%G file; touch /etc/file 2>&1 | grep -c denied'
        su - alice -c 'umask; pwd'
        chown 65534:65534 /srv && stat -c %u:%g /srv"""
    told = run(debian, "sh", "-ec", script)
    assert told.stdout == "alice\nalice:alice\n1\n0022\n/home/alice\n65534:65534\n"
    assert "alice" not in (debian / "etc/passwd").read_text()
