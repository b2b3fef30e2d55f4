"""Stores and homes on NFS, and control groups of version 2. Run by cluster.job, in a guest that has /srv/nfs at /net.

`user` is an ordinary user of the tests. Root of the guest is nobody on NFS (root_squash), as it is on clusters.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cluster.slurm import blocks
from tests.oci.bundles import CONFIG
from tests.support import tiny
from tests.support.timing import limit
from tests.support.users import User, new_ordinary_user, processes_of

_IMAGE: Final = "shared:1"
_EXPORT, _NET = Path("/srv/nfs"), Path("/net")
_GROUPS: Final = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def owner(run_dir: Path) -> Iterator[User]:
    with new_ordinary_user(run_dir) as user:
        yield user


@pytest.fixture(scope="module")
def shared(owner: User, run_dir: Path) -> Path:
    """A store of `owner` on NFS, with one image."""
    tar, root = tiny.make(run_dir / "tiny.tar"), _EXPORT / "shared"
    tar.chmod(0o644)
    (root / "layers").mkdir(parents=True)
    root.chmod(0o755)
    (root / "layers").chmod(0o755)
    owner.own(root)
    found = _NET / "shared"
    owner.run([*owner.unionfs_cmd, "import", "--root", found, "--compression", "none", tar, _IMAGE], timeout_s=300)
    return found


@pytest.fixture
def home(ordinary_user: User) -> Iterator[User]:
    """The ordinary user, with a home on NFS."""
    place = _EXPORT / "home"
    place.mkdir()
    ordinary_user.own(place)
    yield dataclasses.replace(
        ordinary_user, home=_NET / "home", env={**ordinary_user.env, "HOME": f"{_NET}/home", "UNIONFS_LINGER": "0"}
    )
    shutil.rmtree(place)


def _unionfs(user: User, *words: str | Path, **environment: str) -> str:
    told = user.run([*user.unionfs_cmd, *words], env=environment, timeout_s=300)
    return told.stdout


def _mount_type(mountpoint: Path) -> str:
    lines = Path("/proc/mounts").read_text().splitlines()
    return next(words[2] for line in lines if (words := line.split())[1] == str(mountpoint))


def _state(tree: Path) -> list[tuple[object, ...]]:
    paths = [tree, *tree.rglob("*")]
    return [(str(path), (st := path.lstat()).st_mtime_ns, st.st_ctime_ns, st.st_mode, st.st_nlink) for path in paths]


def test_a_store_on_nfs_is_listed_run_and_built_on_as_it_is(shared: Path, ordinary_user: User, scratch: Path) -> None:
    scratch.chmod(0o755)
    user, own, before = ordinary_user, scratch / "own", _state(_EXPORT / "shared")
    assert _mount_type(_NET) == "nfs4"
    own.mkdir()
    user.own(own)
    stores = {"UNIONFS_IMAGE_STORES": str(shared)}
    (one,) = json.loads(_unionfs(user, "images", "--json", "--root", own / "S", **stores))
    assert (one["repository"], one["store"]) == ("shared", str(shared))
    script = "cat /data/file; echo new > /data/file; cat /data/file"
    run = ("run", "--rm", "--root", own / "S", "--scratch", own, _IMAGE, "sh", "-c", script)
    assert _unionfs(user, *run, **stores) == "a file\nnew\n"
    (own / "Containerfile").write_text(f"FROM {_IMAGE}\nRUN echo built > /data/built\n")
    _unionfs(user, "build", "-q", "--root", own / "S", "-t", "built:1", "-f", own / "Containerfile", own, **stores)
    told = _unionfs(user, "run", "--rm", "--root", own / "S", "built:1", "cat", "/data/built", "/data/file", **stores)
    assert told == "built\na file\n"
    assert _state(_EXPORT / "shared") == before


def test_the_owner_pulls_and_removes_beside_a_running_container(
    shared: Path, owner: User, ordinary_user: User, scratch: Path, run_dir: Path
) -> None:
    ordinary_user.own(scratch)
    words = ("run", "--rm", "-i", "--root", scratch / "S", "--image-store", shared, _IMAGE)
    running = ordinary_user.popen(
        [*ordinary_user.unionfs_cmd, *words, "sh", "-c", "echo ready; read line; cat data/file"]
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    tar = tiny.make(run_dir / "tiny.tar")
    _unionfs(owner, "import", "--root", shared, "--compression", "gzip", tar, "other:1")
    _unionfs(owner, "rmi", "--root", shared, "other:1", "--no-prune")
    assert running.communicate("\n", timeout=limit(120)) == ("a file\n", "")


def test_a_home_on_nfs_has_store_and_containers(home: User, run_dir: Path) -> None:
    """Changes are kept: extended attributes of users are there since NFS 4.2 and Linux 5.9."""
    tar = tiny.make(run_dir / "tiny.tar")
    _unionfs(home, "import", "--compression", "none", tar, "mine:1")
    script = "rm /data/file; mkdir -p /data/dir; echo kept > /data/new; cat /data/new; ls /data | head -1"
    assert _unionfs(home, "run", "--name", "box", "mine:1", "sh", "-c", script).startswith("kept\n")
    changes = _unionfs(home, "diff", "box").splitlines()
    assert {"D /data/file", "A /data/new"} <= set(changes)
    _unionfs(home, "commit", "-q", "box", "more:1")
    assert _unionfs(home, "run", "--rm", "more:1", "cat", "/data/new") == "kept\n"
    _unionfs(home, "rm", "box")
    assert os.listdir(_EXPORT / "home/.local/share/unionfs/containers") == [".lock"]


def test_a_home_on_nfs_with_a_scratch_directory_of_the_node_gets_no_container(
    home: User, run_dir: Path, scratch: Path
) -> None:
    home.own(scratch)
    tar = tiny.make(run_dir / "tiny.tar")
    _unionfs(home, "import", "--compression", "none", tar, "mine:1")
    told = _unionfs(home, "run", "--rm", "--scratch", scratch, "mine:1", "sh", "-c", "echo x > /x; cat /x")
    assert told == "x\n"
    assert not (_EXPORT / "home/.local/share/unionfs/containers").exists()
    assert os.listdir(scratch / f"unionfs-{home.uid}" / "containers") == [".lock"]


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of version 2 in which limits can be set for groups below it."""
    assert _file(_GROUPS / "cgroup.controllers"), "control groups of version 2 are not mounted"
    _write(_GROUPS / "cgroup.subtree_control", "+pids +memory +cpu")
    made = _GROUPS / "unionfs-test"
    made.mkdir()
    yield made
    for path in sorted((path for path in made.rglob("*") if path.is_dir()), reverse=True):
        path.rmdir()
    made.rmdir()


def _file(path: Path) -> str:
    return path.read_text().strip()


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def test_limits_of_an_oci_bundle(group: Path, root_user: User, run_dir: Path, scratch: Path) -> None:
    """They are set in a group of its own, hold, and the group is removed."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    root = scratch / "rootfs"
    root.mkdir()
    subprocess.run(["tar", "-C", root, "-xf", tiny.make(run_dir / "tiny.tar")], check=True)
    config["root"]["path"] = str(root)
    config["linux"]["cgroupsPath"] = f"/{group.name}/box"
    config["linux"]["resources"] = {
        "pids": {"limit": 7},
        "memory": {"limit": 48 << 20},
        "cpu": {"quota": 50000, "period": 100000},
        "devices": [{"allow": False, "access": "rwm"}],
    }
    config["process"]["args"] = ["sh", "-c", "echo ready; while :; do sleep 1; done"]
    (scratch / "config.json").write_text(json.dumps(config))
    ours = [sys.executable, "-m", "unionfs", "oci", "--root", str(scratch / "state")]
    run = [*ours, "run", "-d", "-b", str(scratch), "box"]
    with open(scratch / "out", "wb") as out:  # the container has it, too, so it is no pipe
        done = subprocess.run(run, check=False, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, (scratch / "out").read_text()
    box = group / "box"
    names = ("pids.max", "memory.max", "cpu.max")
    assert [_file(box / name) for name in names] == ["7", str(48 << 20), "50000 100000"]
    forks = "i=0; while [ $i -lt 9 ]; do sleep 9 & i=$((i + 1)); done; wait"
    refused = subprocess.run([*ours, "exec", "box", "sh", "-c", forks], check=False, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "fork" in refused.stderr
    subprocess.run([*ours, "delete", "--force", "box"], check=True)
    assert not box.exists()


def test_a_container_stays_in_the_group_of_its_job(group: Path, ordinary_user: User, scratch: Path) -> None:
    """A limit of the job holds for the container: the fork that exceeds it fails, and nothing is left."""
    ordinary_user.own(scratch)
    _write(group / "pids.max", "20")
    script = "cat /proc/self/cgroup; i=0; while [ $i -lt 30 ]; do sleep 9 & i=$((i + 1)); done; wait"
    argv = [*ordinary_user.unionfs_cmd, "run", "--rm", "--root", str(scratch), "/", "sh", "-c", script]
    told = _in_group(ordinary_user, group, argv)
    _, said = told.communicate(timeout=limit(120))
    assert told.returncode != 0
    assert "fork" in said
    assert _wait_for(lambda: _file(group / "cgroup.procs") == "")
    assert os.listdir(scratch / "containers") == [".lock"]


def _in_group(user: User, group: Path, argv: list[str]) -> subprocess.Popen[str]:
    join = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *user.prefix, *argv]
    env = {**user.env, "UNIONFS_LINGER": "0"}
    return subprocess.Popen(
        join,
        env=env,
        cwd=user.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + limit(30)
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.2)
    return False


def test_the_epilog_ends_what_a_killed_step_has_left(ordinary_user: User, scratch: Path, group: Path) -> None:
    """docs/slurm.md's epilog, with the groups that Slurm makes with cgroup/v2, after slurmstepd was killed."""
    del group  # has switched the controllers on
    ordinary_user.own(scratch)
    job = _GROUPS / "system.slice/slurmstepd.scope/job_7"
    task = job / "step_0/user/task_0"
    task.mkdir(parents=True)
    argv = [*ordinary_user.unionfs_cmd, "run", "--rm", "/", "sh", "-c", "echo ready; sleep 1000 & setsid sleep 1000"]
    started = _in_group(ordinary_user, task, argv)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    containers = ordinary_user.home / ".local/share/unionfs/containers"
    assert len(os.listdir(containers)) == 2
    (epilog,) = (block for block in blocks("#!/bin/sh") if "kill -KILL" in block)
    script = scratch / "epilog"
    script.write_text(epilog)
    environment = {
        **os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_UID": str(ordinary_user.uid),
        "SLURM_JOB_GID": str(ordinary_user.gid), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ordinary_user.env["PYTHONPATH"],
    }  # fmt: skip
    argv = ["sh", str(script)]
    done = subprocess.run(argv, check=False, env=environment, capture_output=True, text=True, timeout=limit(120))
    assert (done.returncode, done.stderr) == (0, "")
    started.communicate(timeout=limit(30))
    assert not job.exists()
    ordinary_user.end_servers()
    assert _wait_for(lambda: processes_of(ordinary_user.name) == {})
    assert os.listdir(containers) == [".lock"]
