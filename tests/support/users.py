"""The users who run commands: root, the user running the tests, or an ordinary user made for the run.

An ordinary user has, as after a login, a home, a runtime directory and ranges of subordinate ids. It cannot read a
checkout below /root, so it gets a copy of the code if necessary.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support import command_server, process
from tests.support.timing import limit
from unionfs import compiled

CHECKOUT = Path(__file__).resolve().parents[2]

_CODE = ("unionfs", "layers", "tests", "benchmarks")
_NAME_PREFIX = "unionfs-"
_servers: dict[tuple[str, tuple[str, ...]], command_server.CommandServer] = {}  # by name and prefix of their users


class CannotMakeUserError(Exception):
    """No ordinary user can be made here; the message says why."""


@dataclass(frozen=True, slots=True)
class User:
    """A user who can run commands. Immutable."""

    kind: str  # "root" or "ordinary", as the report counts them
    name: str
    uid: int
    gid: int
    home: Path  # exists and belongs to the user
    prefix: tuple[str, ...]  # prefix of a command that runs it as this user
    env: Mapping[str, str]  # the whole environment of its commands

    @property
    def unionfs_cmd(self) -> tuple[str, ...]:
        """The words of the `unionfs` command before its arguments, for this user (see `run`)."""
        return (sys.executable, "-m", "unionfs")

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        stdin: str | None = None,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = process.DEFAULT_TIMEOUT_S,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` as this user, in its home unless `cwd` says otherwise; `env` is added to its environment.

        Our own commands are run by a command server (tests.support.command_server) if that makes no difference.
        Raises: process.ChildError as process.run does.
        """
        whole_env = {**self.env, **(env or {})}
        command = command_server.wanted(argv)
        server = self._server() if command else None
        if command and server and server.is_for(whole_env, stdin):
            where = os.fspath(cwd or self.home)
            return server.run(command, stdin=stdin, cwd=where, env=whole_env, timeout_s=timeout_s, check=check)
        return process.run(
            [*self.prefix, *argv],
            stdin=stdin,
            cwd=cwd or self.home,
            env=whole_env,
            timeout_s=timeout_s,
            check=check,
        )

    def _server(self) -> command_server.CommandServer | None:
        """The command server of this user; None if its commands have a mount namespace of their own."""
        key = (self.name, self.prefix)
        server = _servers.get(key)
        if (server is None or server.has_ended()) and self.prefix[:1] in ((), ("setpriv",)):
            server = _servers[key] = command_server.CommandServer(self.prefix, self.env)
        return server

    def end_servers(self) -> None:
        """End the command servers of this user, with any prefix."""
        for key in [key for key in _servers if key[0] == self.name]:
            _servers.pop(key).close()

    def unionfs(
        self,
        *args: str | os.PathLike[str],
        timeout_s: float = process.DEFAULT_TIMEOUT_S,
        check: bool = True,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `unionfs ARGS` as this user."""
        return self.run([*self.unionfs_cmd, *args], stdin=stdin, timeout_s=timeout_s, check=check)

    def python(
        self, code: str, *args: str | os.PathLike[str], timeout_s: float = process.DEFAULT_TIMEOUT_S, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a piece of Python as this user, `args` in sys.argv[1:]. It can import only the standard library."""
        return self.run([sys.executable, "-I", "-S", "-c", code, *args], timeout_s=timeout_s, check=check)

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start `argv` as this user with pipes at its three ends, leading a process group (see process.kill_group)."""
        return subprocess.Popen(
            [*self.prefix, *(os.fspath(arg) for arg in argv)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
            cwd=cwd or self.home,
            env={**self.env, **(env or {})},
            start_new_session=True,
        )

    def own(self, *trees: Path) -> None:
        """Give directory trees to this user, symlinks themselves and not what they point to."""
        if os.geteuid() == self.uid:
            return
        command = ["chown", "-R", "--no-dereference", f"{self.uid}:{self.gid}", "--", *map(os.fspath, trees)]
        subprocess.run(command, check=True, timeout=limit(300))


def current_user(home: Path) -> User:
    """The user running the tests, with `home` for a home directory and its real runtime directory."""
    entry = pwd.getpwuid(os.geteuid())
    runtime = os.environ.get("XDG_RUNTIME_DIR") or os.fspath(_runtime_below(home))
    return User(
        kind="root" if entry.pw_uid == 0 else "ordinary",
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        home=home,
        prefix=(),
        env=_environment(entry.pw_name, home, runtime, os.fspath(CHECKOUT)),
    )


@contextmanager
def new_ordinary_user(run_dir: Path) -> Iterator[User]:
    """Make a user with a home in `run_dir`, and remove both with all its processes afterwards.

    Raises: CannotMakeUserError when this process is not root or the machine's user database cannot be written.
    """
    if os.geteuid() != 0:
        raise CannotMakeUserError("only root can make a user")
    if not shutil.which("useradd") or not shutil.which("setpriv"):
        raise CannotMakeUserError("useradd or setpriv is missing (Debian packages passwd, util-linux)")
    name = f"{_NAME_PREFIX}{secrets.token_hex(4)}"
    home = run_dir / name
    _make_account(name, home)
    try:
        entry = pwd.getpwnam(name)
        runtime = _runtime_below(home)
        os.chown(runtime, entry.pw_uid, entry.pw_gid)
        prefix = ("setpriv", f"--reuid={name}", f"--regid={entry.pw_gid}", "--init-groups", "--")
        code = readable_code(run_dir)
        _refuse_unless_usable(prefix, code, home)
        env = _environment(name, home, os.fspath(runtime), os.fspath(code))
        made = User("ordinary", name, entry.pw_uid, entry.pw_gid, home, prefix, env)
        try:
            yield made
        finally:
            made.end_servers()
    finally:
        _remove_account(name)


def end_servers() -> None:
    """End the command servers of all users."""
    for prefix in list(_servers):
        _servers.pop(prefix).close()


def readable_code(run_dir: Path) -> Path:
    """A directory that every user can read and that contains our packages and the tests, for PYTHONPATH.

    It is the checkout; if that is in a closed directory, a copy in `run_dir`, made at the first call.
    """
    if os.geteuid() != 0 or _everybody_may_enter(CHECKOUT):
        return CHECKOUT
    copy = run_dir / "code"
    if not copy.exists():
        for part in _CODE:
            shutil.copytree(CHECKOUT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(CHECKOUT / "pyproject.toml", copy)
        if (CHECKOUT / compiled.COMPILED_DIR).is_dir():
            shutil.copytree(CHECKOUT / compiled.COMPILED_DIR, copy / compiled.COMPILED_DIR)
        subprocess.run([sys.executable, "-m", "compileall", "-q", copy], check=False, timeout=limit(120))
        subprocess.run(["chmod", "-R", "go+rX", copy], check=True, timeout=limit(60))
    return copy


def remove_accounts_below(run_dir: Path) -> dict[int, str]:
    """Remove the users that a dead run had made in `run_dir`. Returns their processes: pid -> command line."""
    ended: dict[int, str] = {}
    for entry in pwd.getpwall() if os.geteuid() == 0 else ():
        if entry.pw_name.startswith(_NAME_PREFIX) and run_dir in Path(entry.pw_dir).parents:
            ended |= _remove_account(entry.pw_name)
    return ended


def processes_of(name: str) -> dict[int, str]:
    """The processes whose real user is `name` or one of its subordinate ids: pid -> command line."""
    mine = _ids_of(name)
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = dict(line.split(":", 1) for line in status.read_text(errors="replace").splitlines())
            if fields["State"].split()[0] != "Z" and any(int(fields["Uid"].split()[0]) in ids for ids in mine):
                command = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(status.parent.name)] = command.strip() or fields["Name"].strip()
    return found


def left_after(look: Callable[[], dict[int, str]], within_s: float = 10) -> dict[int, str]:
    """The processes that `look` finds and that do not end by themselves `within_s`, as an unmounted daemon does."""
    deadline = time.monotonic() + limit(within_s)
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _make_account(name: str, home: Path) -> None:
    for table in (Path("/etc/subuid"), Path("/etc/subgid")):
        table.touch(exist_ok=True)  # useradd gives out ranges only when the tables exist
    command = ["useradd", "--create-home", "--home-dir", os.fspath(home), "--shell", "/bin/bash", name]
    made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=limit(60))
    if made.returncode != 0:
        raise CannotMakeUserError(f"useradd failed: {made.stderr.strip()}")


def _remove_account(name: str) -> dict[int, str]:
    """Kill the processes of a user, and remove the user. Returns the processes."""
    left = processes_of(name)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    subprocess.run(["userdel", name], check=False, capture_output=True, timeout=limit(60))
    return left


def _runtime_below(home: Path) -> Path:
    runtime = home / ".runtime"
    runtime.mkdir(mode=0o700, exist_ok=True)
    return runtime


def _ids_of(name: str) -> list[range]:
    uid = pwd.getpwnam(name).pw_uid
    ids = [range(uid, uid + 1)]
    for line in Path("/etc/subuid").read_text().splitlines():
        owner, first, count = line.split(":")
        if owner in (name, str(uid)):
            ids.append(range(int(first), int(first) + int(count)))
    return ids


def _environment(name: str, home: Path, runtime: str, code: str) -> dict[str, str]:
    """The environment of a login shell, with our interpreter first in PATH, and `code` as PYTHONPATH."""
    scripts = os.fspath(Path(sys.executable).parent)
    return {
        "HOME": os.fspath(home),
        "LANG": "C.UTF-8",
        "LOGNAME": name,
        "PATH": f"{scripts}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": code,
        "SHELL": "/bin/bash",
        "TERM": "xterm",
        "UNIONFS_LINGER": "1",  # parents of mounts are used as users use them, and are not left when the tests end
        "USER": name,
        "XDG_RUNTIME_DIR": runtime,
    }


def _refuse_unless_usable(prefix: Sequence[str], code: Path, home: Path) -> None:
    """Raises: CannotMakeUserError when the user cannot run our interpreter and import our packages from `code`."""
    probe = [*prefix, sys.executable, "-c", "import unionfs, layers, tests, trio, xxhash"]
    env = {"PYTHONPATH": os.fspath(code), "PATH": "/usr/bin:/bin"}
    tried = subprocess.run(probe, cwd=home, env=env, capture_output=True, text=True, check=False, timeout=limit(60))
    if tried.returncode != 0:
        raise CannotMakeUserError(
            f"an ordinary user cannot run {sys.executable} with what it imports: {tried.stderr.strip()[-300:]}; "
            "use a virtual environment outside of closed directories (make test VENV=/var/tmp/venv)"
        )


def _everybody_may_enter(directory: Path) -> bool:
    return all(stat.S_IMODE(place.stat().st_mode) & 0o5 == 0o5 for place in (directory, *directory.parents))


LET_GO: Final = (
    """awk -v keep="$0" '$3 ~ /^fuse/ && $2 != keep { print $2 }' /proc/self/mounts """
    "| xargs -r umount -l 2>/dev/null || true; "
)
"""Shell code for root in a new mount namespace: unmounts its copies of the mounts of all other tests, which otherwise
`unionfs umount` could not unmount completely. Keeps the mount at the shell's $0."""

WITHOUT_IDS: Final = (
    f'{LET_GO}mount -t tmpfs none /mnt && cp -a /etc/. /mnt && : >/mnt/subuid && mount --move /mnt /etc; exec "$@"'
)
"""Shell code for root in a new mount namespace, before the command of a user without subordinate ids. A mount on
/etc/subuid itself would disappear with the next useradd(8), which renames a new file to that name."""


def without_ids(user: User) -> User:
    """The same user on a machine on which no user has subordinate ids. Preconditions: the tests run as root."""
    return dataclasses.replace(user, prefix=("unshare", "-m", "sh", "-c", WITHOUT_IDS, "sh", *user.prefix))
