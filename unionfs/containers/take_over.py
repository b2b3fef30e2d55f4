"""Make another user's container root's own while its changes are applied to this machine.

`apply` runs as root on files that the user wrote. Meanwhile the container's directory belongs to root, so that no file
in it can be replaced, and it is accessed by a descriptor; a separate process, which also outlives a killed `apply`,
gives it back. Before that, everything in it is checked: no links, no file with other names, no files of other users,
only ids that the user has, and no journal that root did not write. Only files in the upper can still change, and
`unionfs.changes` follows no link there. The owner removes the container.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import stat
import tempfile
from collections.abc import Iterator

from unionfs import store_files
from unionfs.changes import apply as applying
from unionfs.changes.check import Objection
from unionfs.containers.apply import NotReadyError, Prepared
from unionfs.containers.errors import ContainerError
from unionfs.containers.record import Container
from unionfs.id_ranges import IdRange, IdRanges
from unionfs.launcher import idmap
from unionfs.trees.open_beneath import open_beneath


def owner_of(container: Container) -> int:
    """The owner of the container if this process is root and the owner another user; else 0."""
    if os.geteuid() != 0:
        return 0
    try:
        return store_files.owner_of(container.root)
    except store_files.OwnerError as error:
        raise ContainerError("opening the store", "", str(error), hint=error.hint) from error


@contextlib.contextmanager
def taken_over(container: Container, owner: int) -> Iterator[Container]:
    """Context with the container of `owner` under a path that only root can change. At the end it is given back, unless
    changes were applied in part: then it stays root's, who can resume. Raises: ContainerError, OSError."""
    root_fd = os.open(container.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_beneath(root_fd, os.fsencode(f"containers/{container.id}"), os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(root_fd)
    gid = pwd.getpwuid(owner).pw_gid
    journal = os.path.basename(container.journal)
    try:
        if container.frozen:
            raise _refused(container, "other directories than its upper hold its changes")
        before = os.fstat(fd)
        if before.st_uid not in (owner, 0):
            raise _refused(container, f"its directory belongs to another user ({before.st_uid})")
        accepted = {before.st_uid, owner}  # root's files in it are ours only if the directory has always been root's
        with _given_back(fd, owner, gid, journal) as taken_fd:
            os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o700)
            _check_ids(container, owner, gid)
            _take_files(container, fd, accepted, journal, taken_fd)
            with tempfile.TemporaryDirectory(prefix="unionfs-apply-", dir="/run") as place:
                os.mkdir(os.path.join(place, "containers"))
                os.symlink(f"/proc/self/fd/{fd}", os.path.join(place, "containers", container.id))
                yield container._replace(root=place)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _given_back(fd: int, owner: int, gid: int, journal: str) -> Iterator[int]:
    """Give the directory `fd` back after the block, unless it has a journal: a separate process does it, also if
    ours is killed. Yields a descriptor for the names of files to give back, too, each ended by NUL."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()  # the terminal sends it no signals
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)
            os.close(write_fd)
            with open(read_fd, "rb") as pipe:
                names = pipe.read().split(b"\0")[:-1]
            if journal not in os.listdir(fd):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        os.chown(name, owner, gid, dir_fd=fd, follow_symlinks=False)
                os.fchown(fd, owner, gid)
        finally:
            os._exit(0)
    os.close(read_fd)
    try:
        yield write_fd
    finally:
        os.close(write_fd)
        os.waitpid(pid, 0)


def end_journal(container: Container) -> None:
    """Remove the journal, since all changes are applied. Raises: OSError."""
    journal = container.journal
    applying.take_back(journal)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(journal)


def remove_as_owner(container: Container) -> None:
    """Run `unionfs rm` as the owner of the store. Raises: ContainerError."""
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            store_files.run_as_owner(container.root, ["-m", "unionfs", "rm", "--root", container.root, container.id])
        finally:
            os._exit(125)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise ContainerError("removing the container", container.name, "its owner could not remove it")


def _refused(container: Container, why: str) -> ContainerError:
    hint = "root applies nothing that its user could have forged"
    return ContainerError("apply", container.name, why, hint=hint)


def _check_ids(container: Container, owner: int, gid: int) -> None:
    allowed = idmap.find(owner, gid)
    facts = container.facts
    for kind, claimed, own in (("user", facts.uid_map, allowed.uids), ("group", facts.gid_map, allowed.gids)):
        if not claimed or not _is_within(claimed, own):
            raise _refused(container, f"its record claims {kind} ids that its owner does not have")


def _is_within(claimed: IdRanges, own: IdRanges) -> bool:
    return all(
        any(start <= outside and outside + count <= start + length for _, start, length in own)
        for _, outside, count in claimed
    )


def refuse_rights(prepared: Prepared, owner: int) -> None:
    """Refuse devices, capabilities, and set-id files of ids that the owner of the store could not have made.

    Raises: NotReadyError.
    """
    own = idmap.find(owner, pwd.getpwuid(owner).pw_gid)
    refused = [
        Objection(one.path, one.what)
        for one in prepared.plan.rights
        if not (one.uid is None or _is_within((IdRange(0, one.uid, 1),), own.uids))
        or not (one.gid is None or _is_within((IdRange(0, one.gid, 1),), own.gids))
        or (one.uid is None and one.gid is None)
    ]
    if refused:
        why = "these files would give rights that its owner does not have"
        hint = f"to give them: unionfs apply --allow-privileged {prepared.container.name}"
        raise NotReadyError(prepared.container, why, refused, hint=hint)


def _take_files(container: Container, fd: int, accepted: set[int], journal: str, taken_fd: int) -> None:
    """Check each name in the container's directory, and make its regular files root's."""
    for name in os.listdir(fd):
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISLNK(st.st_mode):
            raise _refused(container, f"{name} is a symbolic link")
        if name in ("upper", "work", "merged") and not stat.S_ISDIR(st.st_mode):
            raise _refused(container, f"{name} is not a directory")
        if name == journal and (st.st_uid != 0 or not stat.S_ISREG(st.st_mode) or st.st_nlink != 1):
            raise _refused(container, f"{name} was not written by root")
        if stat.S_ISREG(st.st_mode) and name != journal:
            if st.st_nlink != 1 or st.st_uid not in accepted:
                raise _refused(container, f"{name} has other names, or belongs to another user")
            os.write(taken_fd, os.fsencode(name) + b"\0")
            os.chown(name, 0, 0, dir_fd=fd, follow_symlinks=False)
