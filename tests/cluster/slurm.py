"""A Slurm cluster of three nodes on this machine, each a slurmd, on loopback addresses, with docs/slurm.md's files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.support import users
from tests.support.timing import limit
from tests.support.users import CHECKOUT, User

NODES: Final = ("n1", "n2", "n3")
PATIENCE_S: Final = 120.0
_PROGRAMS: Final = ("slurmctld", "slurmd", "srun", "munged", "mpicc")
_CGROUPS: Final = Path("/sys/fs/cgroup/freezer")
_CONFIGURATION: Final = """\
ClusterName=unionfs
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={here}/munge/socket
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool-%n
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/%n.pid
SlurmctldLogFile={here}/slurmctld.log
SlurmdLogFile={here}/%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/cgroup
Prolog={here}/prolog
Epilog={here}/epilog
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=3
MinJobAge=3600
NodeName=n[1-3] NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports} CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class CannotStartError(Exception):
    """There can be no cluster here; the message says why."""


def blocks(first_line: str) -> list[str]:
    """The indented blocks of docs/slurm.md that begin with these words, in their order."""
    text = (CHECKOUT / "docs/slurm.md").read_text()
    found = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    plain = ("".join(line[4:] for line in block.splitlines(keepends=True)) for block in found)
    return [block for block in plain if block.startswith(first_line)]


class Cluster:
    """A running cluster. One test uses it at a time."""

    def __init__(self, here: Path, user: User) -> None:
        self.here: Final = here
        self.user: Final = user
        self.unionfs: Final = here / "bin/unionfs"
        self.runtime_dir: Final = here / "run"
        self._memory_before: Final = set(os.listdir("/dev/shm"))  # an earlier user may have had this uid
        self._munged: subprocess.Popen[bytes] | None = None  # set once, by start
        self._controller: subprocess.Popen[bytes] | None = None  # set once, by start
        self._nodes: Final[dict[str, subprocess.Popen[bytes]]] = {}  # changed by start_node and kill_node only

    # -- daemons

    def start(self) -> None:
        """Start all daemons, and wait until the nodes are idle. Raises: CannotStartError."""
        missing = [name for name in _PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
        if missing or not _CGROUPS.is_dir():
            raise CannotStartError(f"missing: {missing or _CGROUPS}")
        self._write_programs()
        self._write_configuration()
        munge = self.here / "munge"
        munge.mkdir(mode=0o755)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o600)
        subprocess.run(["chown", "-R", "munge:munge", munge], check=True, timeout=limit(30))
        files = [
            f"--{name}={munge}/{name.partition('-')[0]}" for name in ("key-file", "pid-file", "log-file", "seed-file")
        ]
        as_munge = ("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "--")
        self._munged = self._spawn(*as_munge, "munged", "--foreground", f"--socket={munge}/socket", *files)
        self.wait_for((munge / "socket").exists, "munged")
        self._controller = self._spawn("slurmctld", "-D", "-c")
        for name in NODES:
            self.start_node(name)
        self.wait_for(lambda: self.node_states() == dict.fromkeys(NODES, "idle"), "the nodes")

    def start_node(self, name: str) -> None:
        self._nodes[name] = self._spawn("slurmd", "-D", "-N", name)

    def kill_node(self, name: str, job: str) -> None:
        """SIGKILL for the slurmd of a node and for the slurmstepds of a job: all of Slurm there."""
        self._nodes[name].kill()
        self._nodes.pop(name).wait()
        for status in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if status.read_bytes().startswith(b"slurmstepd: [%s." % job.encode()):
                    os.kill(int(status.parent.name), signal.SIGKILL)

    def stop(self) -> None:
        """End all daemons."""
        for child in (*self._nodes.values(), self._controller, self._munged):
            if child:
                child.terminate()
                try:
                    child.wait(limit(20))
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
        for path in sorted(_CGROUPS.glob("slurm_n*/**/"), reverse=True):
            with contextlib.suppress(OSError):  # of another run
                path.rmdir()

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SLURM_CONF": f"{self.here}/slurm.conf"}
        with (self.here / "daemons.log").open("ab") as log:
            return subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _write_programs(self) -> None:
        (self.here / "bin").mkdir(parents=True)
        path = self.user.env.get("PYTHONPATH", "")
        for name, verb in (("unionfs", ""), ("unionfs-oci", "oci ")):
            program = self.here / "bin" / name
            program.write_text(f"#!/bin/sh\nPYTHONPATH='{path}' exec {sys.executable} -m unionfs {verb}\"$@\"\n")
            program.chmod(0o755)

    def _write_configuration(self) -> None:
        """What docs/slurm.md says, with the paths of this cluster."""
        self.runtime_dir.mkdir(mode=0o755)
        first = _free_ports(4)
        text = _CONFIGURATION.format(here=self.here, port=first, ports=f"[{first + 1}-{first + 3}]")
        (self.here / "slurm.conf").write_text(text)
        (self.here / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n")
        prolog, epilog = blocks("#!/bin/sh")
        (oci,) = blocks("RunTimeQuery")
        for name, page, mode in (("prolog", prolog, 0o755), ("epilog", epilog, 0o755), ("oci.conf", oci, 0o644)):
            here = page.replace("/run/slurm-oci", str(self.runtime_dir)).replace("unionfs-oci", f"{self.unionfs}-oci")
            (self.here / name).write_text(here.replace(" unionfs container", f" {self.unionfs} container"))
            (self.here / name).chmod(mode)

    # -- jobs

    def run(
        self, *argv: str | Path, check: bool = True, timeout_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm as the user."""
        environment = {"SLURM_CONF": f"{self.here}/slurm.conf"}
        return self.user.run(argv, env=environment, check=check, timeout_s=timeout_s)

    def batch(self, script: str, *flags: str) -> str:
        """Submit a script; return the number of its job. Its output is in `output`."""
        path = self.user.home / "job.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return self.run("sbatch", "--parsable", "--output=%j.out", *flags, path).stdout.strip()

    def output(self, job: str) -> str:
        """What a job has printed so far."""
        path = self.user.home / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def wait_for_output(self, job: str, line: str) -> None:
        self.wait_for(lambda: line in self.output(job).splitlines(), f"{line!r} of job {job}")

    def ended(self, job: str) -> tuple[str, str]:
        """Wait for the end of a job; its state and exit code, as Slurm has them."""
        running = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")
        self.wait_for(lambda: not any(state in running for state, _ in self.jobs(job)), f"the end of job {job}")
        (only,) = self.jobs(job)
        return only

    def jobs(self, job: str) -> list[tuple[str, str]]:
        """State and exit code of a job, or of all jobs of an array."""
        told = self.run("scontrol", "--oneliner", "show", "job", job).stdout
        return re.findall(r"JobState=(\S+) .*?ExitCode=(\S+) ", told)

    def node_states(self) -> dict[str, str]:
        told = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False).stdout
        return dict(line.split() for line in told.splitlines())

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + limit(PATIENCE_S)
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-1500:] for path in sorted(self.here.glob("*.log")))
                raise AssertionError(f"waiting for {what} took too long\n{logs}")
            time.sleep(0.1)

    # -- what is left

    def left(self) -> dict[str, list[str]]:
        """What jobs have left on the nodes, by kind; waits for what is about to go."""
        found = self._left()
        deadline = time.monotonic() + limit(20)
        while any(found.values()) and time.monotonic() < deadline:
            time.sleep(0.2)
            found = self._left()
        return {kind: names for kind, names in found.items() if names}

    def _left(self) -> dict[str, list[str]]:
        containers = self.user.home / ".local/share/unionfs/containers"
        return {
            "processes": list(users.processes_of(self.user.name).values()),
            "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.user.home) in line],
            "cgroups": [str(path) for path in _CGROUPS.glob(f"slurm_n*/uid_{self.user.uid}/job_*")],
            "containers": [path.name for path in containers.glob("[0-9a-f]*")],
            "bundles": [str(path) for path in self.runtime_dir.glob("*/*")],
            "memory": [
                path.name
                for path in Path("/dev/shm").iterdir()
                if path.name not in self._memory_before and path.stat().st_uid == self.user.uid
            ],
        }


def _free_ports(count: int) -> int:
    """The first of some successive ports that are free on the loopback address."""
    for first in range(26800, 32000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise CannotStartError("no free ports")


@contextlib.contextmanager
def running(here: Path, user: User) -> Iterator[Cluster]:
    """A cluster in the new directory `here` for jobs of one user; all of it ends afterwards."""
    here.mkdir(mode=0o755)
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (here / name).mkdir()
    cluster = Cluster(here, user)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
