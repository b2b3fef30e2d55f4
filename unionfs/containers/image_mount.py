"""Mounts the squashfs of an image file (layers.image_file) for one container, and for commands that read it.

Without root by squashfuse_ll, in the container's user and mount namespaces: it gets the file and the connection to the
kernel as descriptors, and ends with the mount or with the process that started it. The kernel mounts a file itself only
for root of the machine, and only if no other user may have written it: its parser is not made for hostile content.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, NoReturn

from layers import image_file, squashfs
from layers.config import Settings
from layers.errors import LayerError
from unionfs.containers.config import ImageFile
from unionfs.containers.errors import ContainerError
from unionfs.containers.record import Container
from unionfs.launcher import idmap, userns
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.monitor import RootfsMounts
from unionfs.syscalls import mounts, peers
from unionfs.syscalls.namespaces import CLONE_NEWNS, set_no_new_privileges, set_parent_death_signal, unshare
from unionfs.trees.open_beneath import open_beneath

PROGRAM: Final = "squashfuse_ll"

_WHAT: Final = "mounting an image"
_ATTRIBUTES: Final = mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV
_MESSAGE_MAX: Final = 4096
_OTHERS_WRITE: Final = 0o022


def damaged(path: str) -> str:
    """A hint for errors of reading an image file."""
    return f"if {path} is damaged, copy or download it again"


class FromFile(NamedTuple):
    """An image file with its configuration."""

    name: str  # its path
    file: ImageFile
    settings: Settings
    without_entrypoint: tuple[str, ...] = ()  # the entrypoint that replaces the image's if the user wants none

    @property
    def lowers(self) -> tuple[str, ...]:
        """Empty: the lowers are in the container's own directory (containers.create)."""
        return ()

    def facts(self, root: str) -> None:
        """None: the image is not in a store."""
        del root


_SOURCE: Final = 'for f in /.singularity.d/env/*.sh; do if [ -f "$f" ]; then . "$f"; fi; done; '
_SIF_RUN: Final = ("/bin/sh", "-c", _SOURCE + 'exec /.singularity.d/runscript "$@"', "sh")
_SIF_EXEC: Final = ("/bin/sh", "-c", _SOURCE + 'exec "$@"', "sh")


def _settings_of_sif(path: str) -> Settings:
    """As `apptainer run`: the environment of the image, then its runscript with the arguments."""
    names = {"CONTAINER": path, "NAME": os.path.basename(path)}
    env = tuple(f"{kind}_{name}={text}" for kind in ("APPTAINER", "SINGULARITY") for name, text in names.items())
    return Settings(env=env, entrypoint=_SIF_RUN)


def read(path: str) -> FromFile:
    """Examine an image file, and read the configuration inside. Raises: ContainerError, LaunchError."""
    path = os.path.abspath(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = image_file.examine(fd, path)
            content = image_file.read_copy(fd, found)
        finally:
            os.close(fd)
        file = ImageFile(path, found.offset, found.size, found.identity)
        if found.is_sif:
            return FromFile(path, file, _settings_of_sif(path), _SIF_EXEC)
        if content is None:
            content = _read_configuration(file)
        if content is None:
            return FromFile(path, file, Settings())
        description = image_file.parse(content, path)
    except LayerError as error:
        raise ContainerError("", "", str(error), hint=error.hint, status=error.exit_code) from error
    except OSError as error:
        raise ContainerError.of("opening an image", error) from error
    file = file._replace(directories=tuple(reversed(description.layers)))
    return FromFile(path, file, description.config.settings)


def _read_configuration(file: ImageFile) -> bytes | None:
    """The content of image_file.CONFIG; None if there is no such file. Raises: LaunchError, OSError."""

    def look() -> bytes:
        try:
            server = _Server(file)
            try:
                server.wait(f"/proc/self/fd/{server.mount.fd}")
                return _content_below(server.mount.fd)
            finally:
                server.end()
        except LaunchError as error:
            return b"!" + json.dumps([str(error), error.hint]).encode()

    # One id is enough to read a file, and mapping it takes no program.
    one_id = None if idmap.is_privileged() else idmap.single(os.geteuid(), os.getegid(), "more are not needed")
    answer = userns.call(one_id, look, CLONE_NEWNS)
    if answer.startswith(b"!"):
        told, hint = json.loads(answer[1:])
        raise LaunchError("", "", told, hint=hint)
    return answer[1:] if answer.startswith(b"+") else None


def _content_below(root_fd: int) -> bytes:
    """b"+" and the content of image_file.CONFIG; b"-" if there is no such file. Raises: OSError."""
    try:
        fd = open_beneath(root_fd, os.fsencode(image_file.CONFIG), os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return b"-"
    with open(fd, "rb") as opened:
        return b"+" + opened.read(image_file.CONFIG_MAX) if stat.S_ISREG(os.fstat(fd).st_mode) else b"-"


def begin(container: Container, rootfs_mounts: RootfsMounts) -> Callable[[], None]:
    """Mount the image file of the container. Preconditions: it has one; as drivers.driver.Driver.mount.

    The server is still starting then; whatever reads the mount waits for it. Returns a function, called once, which
    waits, too, and raises LaunchError if the server has failed. Raises: LaunchError.
    """
    file = container.config.rootfs.file
    assert file is not None
    try:
        os.makedirs(container.image_mountpoint, 0o755, exist_ok=True)
    except OSError as error:
        raise LaunchError.of(_WHAT, error) from error
    if _mount_by_kernel(file, container.image_mountpoint):
        rootfs_mounts.add(container.image_mountpoint)
        return lambda: None
    server = _Server(file)
    try:
        server.mount.attach(container.image_mountpoint)
    except OSError as error:
        server.end()
        raise LaunchError.of(_WHAT, error) from error
    pidfd = os.pidfd_open(server.pid)
    rootfs_mounts.add(container.image_mountpoint, (server.pid, pidfd, pidfd))
    return lambda: server.wait(container.image_mountpoint)


@contextlib.contextmanager
def shown(container: Container) -> Iterator[None]:
    """Context in which this process sees the content of the container's image file, if it has one, in a mount namespace
    of its own. Preconditions: root, of the machine or of the container's user namespace. Raises: LaunchError, OSError.
    """
    if container.config.rootfs.file is None:
        yield
        return
    unshare(CLONE_NEWNS)
    mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_SLAVE)
    made = RootfsMounts(-1)
    wait = begin(container, made)
    try:
        wait()
        yield
    finally:
        mounts.umount2(container.image_mountpoint, mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)
        for daemon in made.daemons.values():
            os.close(daemon.pidfd)
            os.waitpid(daemon.pid, 0)


class _Server:
    """A squashfuse_ll that serves `mount`, which is not attached yet, or will serve it soon."""

    def __init__(self, file: ImageFile) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise LaunchError(_WHAT, file.path, f"{PROGRAM} is not installed", hint="install the package squashfuse")
        parent, self._path = os.getpid(), file.path
        with contextlib.ExitStack() as stack, contextlib.ExitStack() as failed:
            try:
                image_fd = _opened(file)
                stack.callback(os.close, image_fd)
                fuse_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
                output = self._output = os.memfd_create("squashfuse")
                failed.callback(os.close, output)
                try:
                    options = [("fd", str(fuse_fd)), ("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")]
                    # A superblock that is read-only keeps the attributes of a file that is read (no access time).
                    options += [("allow_other", ""), ("ro", "")]
                    self.mount: Final = mounts.new_mount("fuse", options, _ATTRIBUTES)
                    self.pid: Final = userns.fork(
                        None, 0, lambda: _serve(program, file, image_fd, fuse_fd, output, parent)
                    )
                finally:
                    os.close(fuse_fd)  # so that the connection ends with the server
            except OSError as error:
                raise LaunchError.of(_WHAT, error, path=error.filename or file.path) from error
            failed.pop_all()

    def wait(self, root: str) -> None:
        """Wait until the server answers for the root of the mount, whose path is given. Called once. Raises:
        LaunchError if it has failed."""
        with open(self._output, "rb") as output:
            try:
                os.stat(root)
            except OSError:
                said = os.pread(output.fileno(), _MESSAGE_MAX, 0).decode(errors="replace").strip()
                why = f"{PROGRAM} failed: {said.splitlines()[0]}" if said else f"{PROGRAM} failed without a message"
                raise LaunchError(_WHAT, self._path, why, hint=damaged(self._path)) from None

    def end(self) -> None:
        """Unmount, if the mount is not attached, and wait for the server."""
        self.mount.close()
        os.waitpid(self.pid, 0)


def _opened(file: ImageFile) -> int:
    """A descriptor of the file. Raises: LaunchError if it is not the file that the container was made of; OSError."""
    fd = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        start = os.pread(fd, squashfs.SIZE, file.offset)
        if start.hex() != file.identity:
            why = "it is another image now than when the container was made"
            raise LaunchError(_WHAT, file.path, why, hint="make a new container of it")
        squashfs.parse(start, os.fstat(fd).st_size - file.offset, file.path)
    except LayerError as error:
        os.close(fd)
        raise LaunchError("", "", str(error), hint=error.hint) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _serve(program: str, file: ImageFile, image_fd: int, fuse_fd: int, output: int, parent: int) -> NoReturn:
    """In the child: execute the program. If this process is root of the machine, do so as the owner of the file,
    because the program parses content of that user."""
    owner = os.fstat(image_fd)
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for fd in (image_fd, fuse_fd):
        os.set_inheritable(fd, True)
    os.chdir("/")
    if _is_root_of_machine() and owner.st_uid:
        os.setgroups([])
        os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
        os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
    set_no_new_privileges()
    # The server is in the mount namespace of its own mount, so neither would end by itself if the monitor is killed.
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    words = [program, "-f", "-o", f"offset={file.offset}", f"/proc/self/fd/{image_fd}", f"/dev/fd/{fuse_fd}"]
    os.execv(program, words)


def _is_root_of_machine() -> bool:
    return os.geteuid() == 0 and peers.has_all_users()


def _mount_by_kernel(file: ImageFile, target: str) -> bool:
    """Mount by mount(8), with a loop device, if we are root and root alone may have written the file."""
    if not _is_root_of_machine():
        return False
    fd = _opened(file)
    try:
        st = os.fstat(fd)
        program = shutil.which("mount")
        if st.st_uid or st.st_mode & _OTHERS_WRITE or program is None:
            return False
        options = f"loop,ro,nosuid,nodev,offset={file.offset},sizelimit={file.size}"
        words = [program, "-t", "squashfs", "-o", options, f"/proc/{os.getpid()}/fd/{fd}", target]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return done.returncode == 0
    finally:
        os.close(fd)
