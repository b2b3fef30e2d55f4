"""Open the files of a store, which its owner may have replaced by anything; root acts as the store's owner.

A store (containers, volumes, images) belongs to one user, who may replace any file of it: by a link to a file of
root's, a fifo without a writer, a hard link, a directory. So a file is opened by its last name without following a
link or waiting, and must be a regular file with one name that the store's owner made. Replacing directories above it
gains nothing, because root does not act on another user's store as root: `run_as_owner` starts
the command again as that user.

Ground floor: knows files, users and system calls. Does not know the content of a store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from unionfs.syscalls import peers

TEXT_MAX: Final = 16 << 20
"""Maximum size of a record in bytes; a larger file is refused."""


class OwnerError(Exception):
    """Root cannot act on the store as its owner. `str()` is the reason, `hint` says what to do."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.hint = hint


def default_root(environment: Mapping[str, str] = os.environ) -> str:
    """$UNIONFS_ROOT, else $XDG_DATA_HOME/unionfs, else ~/.local/share/unionfs."""
    if named := environment.get("UNIONFS_ROOT"):
        return os.path.abspath(named)
    base = environment.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(base, "unionfs")


def open_file(path: str, flags: int, mode: int = 0o600, *, shared: bool = False) -> int:
    """Open a regular file of a store, or make it if `flags` say so. Never waits, follows no link at the last name.

    With `shared` the file may have several names and any owner: for content that is verified when it is read. Raises:
    ELOOP for a symlink, EINVAL for other types than a regular file, EMLINK for a file with other names, EPERM for a
    file of another user than ours and the directory's; else errors of open(2). `filename` is `path`.
    """
    try:
        fd = os.open(path, flags & ~os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EISDIR):  # a fifo, socket, device or directory
            raise OSError(errno.EINVAL, "not a regular file", path) from None
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a symbolic link instead of a file", path) from None
        raise
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if not shared:
            if st.st_nlink > 1:
                raise OSError(errno.EMLINK, "the file has other names (hard links)", path)
            if st.st_uid not in (os.geteuid(), os.stat(os.path.dirname(path) or ".").st_uid):
                raise OSError(errno.EPERM, f"the file belongs to another user ({st.st_uid})", path)
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def hold_lock(path: str, *, shared: bool = False) -> Iterator[None]:
    """Hold flock(2) on a file that is never removed while it is in use, and is made if missing. Waits without a limit.

    Processes forked meanwhile may have the descriptor too, so the lock is given up by name. Raises: as `open_file`.
    """
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def read_file(path: str, limit: int = TEXT_MAX) -> bytes:
    """The content of a file. Raises: EFBIG beyond `limit` bytes; as `open_file`."""
    fd = open_file(path, os.O_RDONLY)
    with open(fd, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
    return data


def write_file(path: str, data: bytes, mode: int = 0o600, *, synced: bool = False) -> None:
    """Make a new file atomically. Raises: EEXIST, and errors of the filesystem."""
    fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            if synced:
                file.flush()
                os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def read_linked(path: str, limit: int = TEXT_MAX) -> bytes:
    """The content of a configuration file of any owner. Follows links, never waits.

    Raises: EINVAL for other types than a regular file; EFBIG beyond `limit` bytes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
    return data


def open_directory(path: str) -> int:
    """Open a directory of a store for listing. Raises: ENOTDIR for other types, also a link."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def list_directory(path: str) -> list[str]:
    """The names in a directory of a store. Raises: as `open_directory`."""
    fd = open_directory(path)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def owner_of(root: str) -> int:
    """The user who can replace `root`: its owner, or else the owner of a directory or link of its path.

    0 if only root can, and in a user namespace that does not have all users. Raises: OwnerError if several other users
    can.
    """
    if not peers.has_all_users():
        return 0
    owners: set[int] = set()
    for path in (os.path.abspath(root), os.path.realpath(root)):
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # does not exist yet
                owners.add(os.lstat("/".join(parts[:end]) or "/").st_uid)
    owners.discard(0)
    if len(owners) > 1:
        users = ", ".join(map(str, sorted(owners)))
        raise OwnerError(f"{root}: its path belongs to several users ({users})", "move it to a directory of one user")
    return owners.pop() if owners else 0


def foreign_link(path: str) -> str | None:
    """The first symlink of `path` that neither we nor root made; None if there is none."""
    parts = os.path.abspath(path).split("/")
    for end in range(2, len(parts) + 1):
        prefix = "/".join(parts[:end])
        try:
            st = os.lstat(prefix)
        except OSError:  # does not exist yet
            return None
        if stat.S_ISLNK(st.st_mode) and st.st_uid not in (0, os.geteuid()):
            return prefix
    return None


def words_of(argv: Sequence[str], command: Sequence[str]) -> list[str]:
    """The arguments of the interpreter that run this command again: the original ones, if they end with `argv`,
    else those of the module `command[0]`."""
    own = sys.orig_argv[1:]
    if own[len(own) - len(argv) :] == list(argv) and len(own) > len(argv):
        return own
    return ["-m", *command, *argv]


def refuse_foreign(root: str) -> None:
    """Raise OwnerError if this process is an ordinary user and the store another user's."""
    if os.geteuid() == 0:
        return
    try:
        owner = os.stat(root).st_uid
    except OSError:  # does not exist yet, or the verb says why
        return
    if owner not in (0, os.geteuid()) and peers.has_all_users():
        raise OwnerError(f"{root}: it belongs to another user ({owner})", "run this as that user or as root")


def run_as_owner(root: str, words: Sequence[str]) -> None:
    """If this process is root and the store another user's: execute `words` with this interpreter as that user.

    Does nothing if the store is this user's own. Raises: OwnerError, also for an ordinary user on the store of another
    user: its owner could have this user's files opened through links.
    """
    if os.geteuid() != 0:
        refuse_foreign(root)
        return
    if (owner := owner_of(root)) == 0:
        return
    try:
        user = pwd.getpwuid(owner)
    except KeyError:
        raise OwnerError(f"{root}: it belongs to user {owner}, who has no account", "give it to a user") from None
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(owner, owner, owner)
    if not os.access(__file__, os.R_OK) or not os.access(sys.executable, os.X_OK):
        why = f"{root}: it belongs to {user.pw_name}, who may not read this installation ({os.path.dirname(__file__)})"
        raise OwnerError(why, f"install unionfs for all users, or run your command as {user.pw_name}")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("XDG_", "SUDO_", "DBUS_"))}
    environment |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    runtime = f"/run/user/{owner}"
    if os.path.isdir(runtime):
        environment["XDG_RUNTIME_DIR"] = runtime
    environment["UNIONFS_ROOT"] = os.path.abspath(root)
    os.execve(sys.executable, [sys.executable, *words], environment)
