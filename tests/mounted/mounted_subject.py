"""A subject that has been built: branches made, an agent started under its identity, the union mounted.

Knows the project only as a command (tests.support.users.User). Never touches a mounted path itself: the agent's
children do, which can be killed; and it looks up mounts in /proc only, so that a dead or stuck daemon hangs nobody.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.mounted import trees
from tests.mounted.agent import Agent, Outcome, build, command
from tests.mounted.subjects import PASSTHROUGH, Subject
from tests.support import chaos, mountinfo, mounts, scratch, users
from tests.support.timing import limit

_UNSHARE: Final = (
    *("unshare", "--user", "--map-root-user", "--map-auto", "--kill-child"),
    *("--mount", "--propagation", "slave", "--"),
)
_GONE_S: Final = 10.0


def identity(who: str, user: users.User) -> tuple[str, ...]:
    """The command prefix that takes on an identity. `user` is root for who=root, else an ordinary one."""
    return (*user.prefix, *(_UNSHARE if who == "userns" else ()))


def code_for(user: users.User, base: Path) -> str:
    """A PYTHONPATH with which `user` finds the project and the checks, which are copied to `base` if need be."""
    paths = user.env["PYTHONPATH"]
    if paths == os.fspath(users.CHECKOUT):
        return paths
    copy = base / "agent-code"
    if not copy.exists():
        (copy / "tests").mkdir(parents=True)
        shutil.copy(users.CHECKOUT / "tests/__init__.py", copy / "tests")
        shutil.copytree(users.CHECKOUT / "tests/mounted", copy / "tests/mounted")
        subprocess.run(["chmod", "-R", "go+rX", copy], check=True, timeout=limit(60))
    return f"{paths}:{copy}"


class MountedSubject:
    """A subject that has been built and mounted. Use as a context manager; at the end nothing is left of it."""

    def __init__(
        self,
        subject: Subject,
        user: users.User,
        base: Path,
        *,
        names: Sequence[str] = (),
        lowers: int | None = None,
        read_only: bool = False,
        mounted: bool = True,
        keeper: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`base` does not exist yet, in a directory that everybody may enter; `names` are the checks to prepare for.

        `lowers`: how many, if not as many as the layout wants. `read_only`: without an upper. `mounted`: at once;
        otherwise there is time to fill the branches. `keeper`: another daemon continues when the first dies. `env` is
        added to the environment of the mount command.
        """
        self.subject = subject
        self.user = user
        self.base = base
        self.merged = base / "merged"
        self.beside = base / "beside"  # a plain directory on the upper's filesystem
        self.upper = base / "upper"
        self.work = base / "work"
        self.log = base / "daemon.log"
        count = lowers or (3 if subject.layout == "scattered" else 1)
        self.lowers = [base / f"lower{number}" for number in range(count)]
        self.read_only = read_only
        self._mount_at_once = mounted
        self._names = names
        self._env = dict(env or {})
        self._keeper = keeper
        self._agent: Agent | None = None
        self._lowers_as_made: list[trees.Snapshot] = []
        self._killer: chaos.Killer | None = None  # while mounted, under kills
        self.stage = 0  # how often it was remounted; changed by remount only

    @property
    def agent(self) -> Agent:
        assert self._agent is not None
        return self._agent

    def __enter__(self) -> MountedSubject:
        self.base.mkdir()
        self.base.chmod(0o755)
        scratch.make_shared(self.base)
        for directory in (self.merged, self.beside, self.upper, self.work, *self.lowers):
            directory.mkdir()
        self.user.own(self.base)
        self._agent = Agent(
            identity(self.subject.who, self.user),
            log=self.base / "log",
            env={**self.user.env, "PYTHONPATH": code_for(self.user, self.base), "BESIDE": str(self.beside)},
        )
        try:
            self._build()
            if self._mount_at_once:
                self.mount()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if self._agent is not None:
                self.give_up()
        finally:
            if self._agent is not None:
                self._agent.close()
            mountinfo.unmount_below(self.base)

    def _build(self) -> None:
        dialects = ("overlay",) if self.subject.transport == "overlay" else ("aufs", "overlay")
        if self.subject.is_native:
            branches = [self.merged]
        elif self.subject.layout == "plain":
            branches = self.lowers
        else:
            branches = [self.upper, *self.lowers]
        self.agent.call(build, list(self._names), branches, dialects, timeout_s=120)
        self._lowers_as_made = self._look_at_lowers()

    def _look_at_lowers(self) -> list[trees.Snapshot]:
        return [self.agent.call(trees.snapshot, lower, timeout_s=120) for lower in self.lowers]

    def lowers_changed(self) -> list[str]:
        """What is different in the lowers from when they were made, inode numbers and change times included."""
        changed = []
        for lower, before, after in zip(self.lowers, self._lowers_as_made, self._look_at_lowers(), strict=True):
            changed += [f"{lower.name}: {line}" for line in trees.differences(before, after)]
        return changed

    def complaints(self) -> list[str]:
        """What the daemon logged that it should not have had to: warnings, errors, tracebacks."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(errors="replace").splitlines()
        if chaos.is_wanted():
            lines = [line for line in lines if "this one continues after" not in line]
        return [line for line in lines if any(word in line for word in ("WARNING", "ERROR", "CRITICAL", "Traceback"))]

    # -- mounting --------------------------------------------------------------------------------------------------

    def mount(self) -> None:
        """Mount the union. Raises: AssertionError with what the command said."""
        if self.subject.is_native:
            if self.read_only:
                self.agent.call(command, ["mount", "--bind", "-o", "ro", str(self.merged), str(self.merged)])
            return
        done = self.agent.call(command, self.mount_argv(), self._env, timeout_s=60)
        assert done.returncode == 0, f"mount failed ({done.returncode}): {done.stderr}"
        assert self._mount_line(), f"the mount command succeeded, but {self.merged} is no mount"
        if chaos.is_wanted() and self._keeper and self.subject.transport == "kernel":
            self._killer = chaos.Killer(chaos.mount(f"{self.base}/")).start()

    def mount_argv(self) -> list[str]:
        """The command that mounts, as the subject's own user calls it."""
        subject = self.subject
        if subject.is_ours:
            is_passed = subject.transport == PASSTHROUGH
            return mounts.mount_argv(
                self.lowers,
                self.merged,
                user=self.user,
                transport="kernel" if is_passed else subject.transport,
                upper=None if self.read_only else self.upper,
                work=None if self.read_only else self.work,
                options=(
                    *("--whiteout", subject.whiteout, "--log", str(self.log)),
                    *(("--passthrough",) if is_passed else ()),
                    *(() if self._keeper else ("--no-keeper",)),
                ),
            )
        options = f"lowerdir={':'.join(map(str, self.lowers))},upperdir={self.upper},workdir={self.work}"
        if subject.transport == "fuse-overlayfs":
            return ["fuse-overlayfs", "-o", options, str(self.merged)]
        options += ",userxattr" if subject.who == "userns" else ",index=on,redirect_dir=on,xino=on"
        return ["mount", "-t", "overlay", "overlay", "-o", options, str(self.merged)]

    def _stop_killing(self) -> None:
        if self._killer is not None:
            killer, self._killer = self._killer, None
            killer.stop()

    def unmount(self) -> None:
        """Unmount and wait for the daemon to leave. Raises: AssertionError if either does not happen."""
        self._stop_killing()
        if self.subject.is_native:
            if self.read_only:
                self.agent.call(command, ["umount", str(self.merged)])
            return
        argv = ["umount", str(self.merged)]
        if self.subject.is_ours:
            argv = [*self.user.unionfs_cmd, *argv]
        elif self.subject.who == "user":
            argv = ["fusermount3", "-u", str(self.merged)]
        done = self.agent.call(command, argv, timeout_s=60)
        assert done.returncode == 0, f"umount failed ({done.returncode}): {done.stderr}seen by {self._who_sees_it()}"
        assert not self._mount_line(), f"the umount command succeeded, but {self.merged} is still mounted"
        left = self.wait_for_daemons()
        assert not left, f"processes left behind after the unmount: {left}"

    def remount(self) -> None:
        """Unmount and mount again, with the same branches."""
        self.stage += 1
        try:
            self.unmount()
        finally:  # whatever was wrong with the unmounting is told once, and not again by all who come after
            if not self._mount_line():
                self.mount()

    def daemons(self) -> dict[int, str]:
        """The processes that serve this stand: those whose command line names its directory. pid -> command line."""
        found = {}
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = line.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if f"{self.base}/" in text:
                found[int(line.parent.name)] = text
        return found

    def wait_for_daemons(self) -> dict[int, str]:
        """The daemons that are still there after they had time to leave."""
        for pid in self.daemons():
            _wait_for_end(pid, _GONE_S)
        return self.daemons()

    def is_mounted(self) -> bool:
        return self._mount_line() is not None

    def _mount_line(self) -> str | None:
        """The line of mountinfo that says what is mounted at `merged`, in the agent's mount namespace."""
        text = Path(f"/proc/{self.agent.pid}/mountinfo").read_text(errors="surrogateescape")
        for line in text.splitlines():
            if line.split(" ")[4] == str(self.merged):
                return line
        return None

    def _who_sees_it(self) -> list[str]:
        """The processes in whose mount namespace `merged` is a mount: what keeps a daemon alive that was unmounted."""
        found = []
        for mountinfo_file in Path("/proc").glob("[0-9]*/mountinfo"):
            with suppress(OSError):
                if f" {self.merged} " in mountinfo_file.read_text(errors="surrogateescape"):
                    line = (
                        (mountinfo_file.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
                    found.append(f"{mountinfo_file.parent.name} {line[:200]}")
        return found

    def give_up(self) -> None:
        """Get rid of the mount whatever state it is in, without waiting for anybody."""
        self._stop_killing()
        for _ in range(5):
            line = self._mount_line() if self.agent.is_alive() else None
            if line is None:
                break
            abort_file = Path("/sys/fs/fuse/connections", line.split(" ")[2].split(":")[1], "abort")
            if "fuse" in line.split(" - ")[1] and abort_file.exists():
                abort_file.write_text("1")
            lazily = ["fusermount3", "-u", "-z"] if self.subject.who == "user" else ["umount", "-l"]
            self.agent.try_call(command, [*lazily, str(self.merged)])
        for pid in self.wait_for_daemons():
            os.kill(pid, signal.SIGKILL)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, function: Callable[..., Any], *args: Any, below: str = "", timeout_s: float = 30.0) -> Any:
        """Run `function` in a child whose current directory is in the mount. Raises: FailedError, MissingError."""
        outcome = self.try_run(function, *args, below=below, timeout_s=timeout_s)
        return outcome.result()

    def try_run(self, function: Callable[..., Any], *args: Any, below: str = "", timeout_s: float = 30.0) -> Outcome:
        """As `run`, but failures come back. If the mount did not survive, it is replaced for whoever comes next."""
        outcome = self.agent.try_call(function, *args, cwd=self.merged / below, timeout_s=timeout_s)
        if outcome.kind in ("failed", "stuck") and not self._answers():
            outcome = outcome._replace(kind="failed", story=f"{outcome.story}\nTHE MOUNT DIED; it was mounted anew")
            self.give_up()
            self.mount()
        return outcome

    def _answers(self) -> bool:
        return self.agent.try_call(os.listdir, cwd=self.merged, timeout_s=10).kind == "done"


def _wait_for_end(pid: int, timeout_s: float) -> None:
    """Wait until process `pid` has ended, for `timeout_s` at most."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([pidfd], [], [], limit(timeout_s))
    finally:
        os.close(pidfd)
