"""Jobs of a Slurm cluster that run containers: what they print, how they end, and that nothing is left on the nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import slurm
from tests.cluster.slurm import Cluster
from tests.support import rootfs
from tests.support.timing import limit
from tests.support.users import User

HELLO = r"""
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int rank, size, sum;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("hello from %d of %d, sum %d\n", rank, size, sum);
    return MPI_Finalize();
}
"""
TRAP = "trap 'cat /etc/hostname; echo saved; exit 9' TERM; echo ready; while :; do sleep 0.1; done"


@pytest.fixture(scope="session")
def image(run_dir: Path, ordinary_user: User) -> Path:
    """A Debian with mpich, the user's."""
    return rootfs.unpack(rootfs.debian_tar("libmpich12"), run_dir / "cluster-image", ordinary_user)


@pytest.fixture(scope="session")
def running_cluster(run_dir: Path, ordinary_user: User, root_user: User) -> Iterator[Cluster]:
    del root_user  # starts it
    with slurm.running(run_dir / "cluster", ordinary_user) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    yield running_cluster
    assert running_cluster.left() == {}


def test_steps_are_the_users_on_all_nodes(cluster: Cluster, image: Path) -> None:
    look = 'echo "$SLURMD_NODENAME $SLURM_PROCID $(id -un) $(pwd) $(hostname)"'
    told = cluster.run("srun", "-N3", cluster.unionfs, "run", "--as-me", image, "sh", "-c", look).stdout
    user, host = cluster.user, os.uname().nodename
    expected = [f"n{number + 1} {number} {user.name} {user.home} {host}" for number in range(3)]
    assert sorted(told.splitlines()) == expected


def test_exit_codes_and_signals_are_those_of_a_plain_step(cluster: Cluster, image: Path) -> None:
    container = (cluster.unionfs, "run", "--as-me", image)
    flags = ("srun", "-N2", "-n6", "--kill-on-bad-exit=0")
    for script in ("exit $SLURM_PROCID", "kill -SEGV $$", "exec /nowhere"):
        plain, boxed = (cluster.run(*flags, *words, "sh", "-c", script, check=False) for words in ((), container))
        assert boxed.returncode == plain.returncode != 0, script
    told = cluster.run(*flags, *container, "sh", "-c", "exit $SLURM_PROCID", check=False).stderr
    codes = re.findall(r"task (\d): Exited with exit code (\d)", told)
    assert sorted(codes) == [(str(task), str(task)) for task in range(1, 6)]


def test_an_array_of_100(cluster: Cluster, image: Path) -> None:
    command = "n=$SLURM_ARRAY_TASK_ID; echo $n > array-$n; echo x > /scratch; [ $n != 42 ] || exit 7"
    job = cluster.batch(f"exec {cluster.unionfs} run --as-me {image} sh -c '{command}'", "--array=0-99")
    busy = {"PENDING", "RUNNING", "COMPLETING"}
    cluster.wait_for(lambda: not busy & {state for state, _ in cluster.jobs(job)}, "the array")
    ends = cluster.jobs(job)
    assert sorted(ends) == sorted([("COMPLETED", "0:0")] * 99 + [("FAILED", "7:0")])
    written = {path.name: path.read_text().strip() for path in cluster.user.home.glob("array-*")}
    assert written == {f"array-{number}": str(number) for number in range(100)}


def test_a_signal_and_a_cancelled_job(cluster: Cluster, image: Path) -> None:
    job = cluster.batch(f'srun {cluster.unionfs} run --as-me {image} bash -c "{TRAP}"; exit $?')
    cluster.wait_for_output(job, "ready")
    cluster.run("scancel", "--signal=TERM", f"{job}.0")
    assert cluster.ended(job) == ("FAILED", "9:0")
    assert {os.uname().nodename, "saved"} <= set(cluster.output(job).splitlines())
    deaf = f"{cluster.unionfs} run --as-me {image} sh -c 'trap \"\" TERM; echo ready; sleep 600'"
    job = cluster.batch(f"srun {deaf}", "-N3", "-n6")
    cluster.wait_for_output(job, "ready")
    cluster.run("scancel", job)
    assert cluster.ended(job) == ("CANCELLED", "0:15")


def test_the_time_limit(cluster: Cluster, image: Path) -> None:
    job = cluster.batch(f'exec {cluster.unionfs} run --as-me {image} bash -c "{TRAP}"', "--time=1")
    cluster.wait_for_output(job, "ready")
    state, _ = cluster.ended(job)
    assert state == "TIMEOUT"
    assert "saved" in cluster.output(job).splitlines()


def test_a_node_that_fails(cluster: Cluster, image: Path) -> None:
    step = f"srun {cluster.unionfs} run --as-me {image} sh -c 'echo x > /scratch; echo ready; sleep 600'"
    job = cluster.batch(step, "--nodelist=n2", "--no-requeue")
    cluster.wait_for_output(job, "ready")
    cluster.kill_node("n2", job)
    cluster.start_node("n2")
    assert cluster.ended(job)[0] == "NODE_FAIL"
    cluster.wait_for(lambda: cluster.node_states()["n2"] == "idle", "the node")


def test_a_step_of_which_all_processes_are_killed(cluster: Cluster, image: Path) -> None:
    step = f"srun {cluster.unionfs} run --as-me {image} sh -c 'echo x > /scratch; echo ready; sleep 600'"
    job = cluster.batch(f"{step}; exit $?", "--nodelist=n3")
    cluster.wait_for_output(job, "ready")
    (group,) = Path("/sys/fs/cgroup/freezer/slurm_n3").glob(f"uid_*/job_{job}/step_0")
    pids = [int(pid) for procs in group.rglob("cgroup.procs") for pid in procs.read_text().split()]
    assert len(pids) > 3  # the launcher, the monitor, the daemon, init, the command
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert cluster.ended(job) == ("FAILED", "137:0")


def test_four_ranks_on_two_nodes(cluster: Cluster, image: Path) -> None:
    source = cluster.user.home / "hello.c"
    source.write_text(HELLO)
    subprocess.run(["mpicc", "-o", source.with_suffix(""), source], check=True, timeout=limit(60))
    words = ("srun", "--mpi=pmi2", "-N2", "-n4", cluster.unionfs, "run", "--as-me", image, source.with_suffix(""))
    told = cluster.run(*words).stdout
    assert sorted(told.splitlines()) == [f"hello from {rank} of 4, sum 6" for rank in range(4)]


def test_bundles(cluster: Cluster, image: Path) -> None:
    bundle = cluster.user.home / "bundle"
    bundle.mkdir()
    (text,) = slurm.blocks("{")
    ids = iter((cluster.user.uid, cluster.user.gid))
    (bundle / "config.json").write_text(re.sub(r'"hostID": 1000', lambda _: f'"hostID": {next(ids)}', text))
    assert json.loads((bundle / "config.json").read_text())["process"]["args"] == ["sh"]
    (bundle / "rootfs").symlink_to(image)
    look = "id -u; echo job $SLURM_JOB_ID; touch /x 2>&1 | grep -o Read-only; exit 5"
    job = cluster.batch(look, f"--container={bundle}")
    assert cluster.ended(job) == ("FAILED", "5:0")
    assert cluster.output(job).splitlines()[:3] == ["0", f"job {job}", "Read-only"]
    step = cluster.run("srun", f"--container={bundle}", "sh", "-c", "exit 3", check=False)
    assert step.returncode == 3
    job = cluster.batch("echo ready; sleep 600", f"--container={bundle}")
    cluster.wait_for_output(job, "ready")
    cluster.run("scancel", job)
    assert cluster.ended(job)[0] == "CANCELLED"
