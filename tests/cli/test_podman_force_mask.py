"""Podman's stores with `force_mask`: all files are one mode on disk, and what they should be is kept in attributes.

What podman 4.3 itself loses on the way into a layer is not asked for: set-id bits, and owners of symlinks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from tests.support.podmans import BASE, debian_store
from tests.support.users import User

pytestmark = [pytest.mark.transport("kernel"), pytest.mark.runs_as("ordinary")]

CHANGE: Final = """
useradd -m bob; chown bob:mail /etc/issue; chmod 711 /bin/true; ln -s x /l; rm -r /etc/apt
touch /n; chgrp shadow /n; chmod 640 /n; su bob -c 'umask 077; echo hi > /home/bob/x'; mv /var/mail /m
"""
SEE: Final = "stat -c '%n %A %u:%g %h' /etc/issue /etc/shadow /bin/true /l /n /home/bob /home/bob/x"


def test_stored_owners_and_modes_are_restored(
    ordinary_user: User, run_dir: Path, debian_tar: Path, fuse_device: Path
) -> None:
    del fuse_device
    where = run_dir / "mask"
    with debian_store(ordinary_user, where, debian_tar, options=["overlay.force_mask=shared"]) as podman:
        podman("run", "--name", "box", "--network=none", BASE, "sh", "-ec", CHANGE)
        podman("commit", "-q", "box", "localhost/made:1")
        seen = podman("run", "--rm", "--network=none", "localhost/made:1", "sh", "-ec", SEE).splitlines()
        assert seen == [
            "/etc/issue -rw-r--r-- 1000:8 1",
            "/etc/shadow -rw-r----- 0:42 1",
            "/bin/true -rwx--x--x 0:0 1",
            "/l lrwxrwxrwx 0:0 1",
            "/n -rw-r----- 0:42 1",
            "/home/bob drwxr-xr-x 1000:1000 2",
            "/home/bob/x -rw------- 1000:1000 1",
        ]
        kept = [os.listxattr(path) for path in (where / "root/overlay").glob("*/diff/etc/issue")]
        assert ["user.containers.override_stat"] in kept
