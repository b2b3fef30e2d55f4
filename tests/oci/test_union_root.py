"""Bundles whose root filesystem is a union, named by annotations or by a file beside config.json."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.oci.bundles import Bundle, Runtime
from tests.support.mountinfo import mounts
from tests.support.users import User

_CHANGE = "cat /data/file; rm /data/gone; echo new > /new; echo x >> /etc/motd; exit 3"


def _changed(upper: Path) -> list[str]:
    return sorted(os.fspath(path.relative_to(upper)) for path in upper.rglob("*") if not path.is_dir())


@pytest.fixture
def union(bundle: Bundle) -> Bundle:
    bundle.config["root"] = {"path": "merged"}
    bundle.shell(_CHANGE)
    return bundle


@pytest.mark.runs_as("root")
@pytest.mark.transport("kernel")
@pytest.mark.parametrize("by", ["annotations", "file"])
def test_changes_are_in_the_upper(ours: Runtime, union: Bundle, rootfs: Path, by: str, fuse_device: Path) -> None:
    del fuse_device
    union.where.mkdir()
    if by == "file":
        (union.where / "union.json").write_text(json.dumps({"lowers": [os.fspath(rootfs)], "upper": "up"}))
    else:
        union.config["annotations"] = {"io.unionfs.lowerdir": os.fspath(rootfs), "io.unionfs.upperdir": "up"}
    done = ours.run(union, check=False)
    assert (done.stdout, done.returncode) == ("a file\n", 3), done.stderr
    assert _changed(union.where / "up") == ["data/.wh.gone", "etc/motd", "new"]
    assert (rootfs / "data/gone").exists()
    assert os.listdir(union.where / "merged") == []
    again = ours.run(union, check=False)
    assert (again.stdout, again.returncode) == ("a file\n", 3)
    assert [found for found in mounts() if found.mountpoint.is_relative_to(union.where)] == []


@pytest.mark.runs_as("root")
@pytest.mark.transport("kernel")
def test_a_union_that_only_reads(ours: Runtime, union: Bundle, rootfs: Path, scratch: Path, fuse_device: Path) -> None:
    """And what is wrong with branches is told."""
    del fuse_device
    for name in ("proc", "dev"):  # mountpoints, which cannot be made
        (scratch / "top" / name).mkdir(parents=True)
    (scratch / "top" / "here").write_text("top\n")
    union.config["annotations"] = {"io.unionfs.lowerdir": f"{scratch}/top:{rootfs}"}
    union.shell("cat /here; echo x > /x")
    done = ours.run(union, check=False)
    assert (done.stdout, "Read-only file system" in done.stderr) == ("top\n", True)
    union.config["annotations"] = {"io.unionfs.lowerdir": "/no/such"}
    assert "/no/such" in ours.run(union, check=False).stderr


@pytest.mark.runs_as("ordinary")
@pytest.mark.transport("kernel")
def test_without_root(ordinary_user: User, union: Bundle, scratch: Path, rootfs: Path, fuse_device: Path) -> None:
    del fuse_device
    union.linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")]
    union.linux["uidMappings"] = [{"containerID": 0, "hostID": ordinary_user.uid, "size": 1}]
    union.linux["gidMappings"] = [{"containerID": 0, "hostID": ordinary_user.gid, "size": 1}]
    union.config["mounts"] = [entry for entry in union.config["mounts"] if entry["destination"] != "/dev/pts"]
    union.config["annotations"] = {"io.unionfs.lowerdir": os.fspath(rootfs), "io.unionfs.upperdir": "up"}
    union.write()
    ordinary_user.own(scratch)
    done = Runtime("ours", scratch, ordinary_user).run(union, check=False)
    assert (done.stdout, done.returncode) == ("a file\n", 3), done.stderr
    assert _changed(union.where / "up") == ["data/.wh.gone", "etc/motd", "new"]
