"""Test what this machine allows, for `unionfs doctor`, by doing it instead of reading settings.

Each test runs in a child process with its own namespaces, so it leaves nothing behind. Settings are
read only to explain a failure. Draws no conclusions: see `diagnosis`.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from unionfs import compiled
from unionfs.launcher import idmap, namespace_settings, userns
from unionfs.launcher.errors import LaunchError
from unionfs.store_files import default_root
from unionfs.syscalls.mounts import MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_REC, mount, new_mount
from unionfs.syscalls.namespaces import CLONE_NEWNS, CLONE_NEWPID, unshare

MODULES: Final = ("trio", "xxhash", "pyfuse3")
FUSE: Final = "/dev/fuse"
TUN: Final = "/dev/net/tun"

_SUBIDS_USUAL: Final = 65536
_SUBIDS_FIRST: Final = 100000


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts. The text of a failure is empty if the test succeeded."""

    user: str
    is_root: bool  # with the capabilities that make a user namespace unnecessary
    kernel: tuple[int, int]
    packages: str  # "apt", "dnf", "pacman", "zypper", "apk" or ""
    namespaces: str  # why making namespaces, or mounting in them, fails
    settings: dict[str, str]  # namespace_settings.SETTINGS that exist
    has_seccomp: bool
    subordinate_ids: tuple[int, int]  # how many user and group ids
    free_ids: int  # the first id of a range that no user has
    id_helpers: str  # why newuidmap or newgidmap cannot be used
    id_map: str  # why existing ids cannot be mapped
    fuse_device: str
    tun_device: str
    fuse_mount: str  # why FUSE cannot be mounted in our namespaces
    proc_mount: str
    fusermount: str
    cgroups: str  # "v2", "hybrid", "v1" or "none"
    state: str  # the directory of containers
    state_xattrs: str
    thin_pools: str  # why the kernel has no thin pools
    modules: dict[str, str]  # why each of MODULES cannot be imported
    code: str  # whether the hot modules are compiled, as text


def examine(root: str | None) -> Machine:
    """Run all tests. `root`: the store of containers, None for the default."""
    privileged = idmap.is_privileged()
    uid, gid = os.geteuid(), os.getegid()
    found = None if privileged else idmap.find(uid, gid)
    anybody = None if privileged else idmap.single(uid, gid, "only a test")
    name = _user_name(uid)
    state = os.path.abspath(root) if root else default_root()
    return Machine(
        user=name,
        is_root=privileged,
        kernel=_kernel_version(),
        packages=_package_manager(),
        namespaces=_attempt(anybody, CLONE_NEWNS, _try_mounting),
        settings=namespace_settings.read(),
        has_seccomp=re.search(r"^Seccomp:\s*[12]", _text("/proc/self/status"), re.MULTILINE) is not None,
        subordinate_ids=(_count(idmap.SUBUID, name, uid), _count(idmap.SUBGID, name, uid)),
        free_ids=first_free(_text(idmap.SUBUID) + _text(idmap.SUBGID)),
        id_helpers=next(filter(None, map(idmap.helper_problem, idmap.HELPERS)), ""),
        id_map="" if found is None or found.limited else _attempt(found, 0, lambda: None),
        fuse_device=_why_closed(FUSE),
        tun_device=_why_closed(TUN),
        fuse_mount=_attempt(anybody, CLONE_NEWNS, _try_fuse),
        proc_mount=_attempt(anybody, CLONE_NEWNS, _try_proc),
        fusermount=_why_no_fusermount(),
        cgroups=_cgroups(),
        state=state,
        state_xattrs=_try_xattrs(state),
        thin_pools=_why_no_thin_pools(),
        modules={name: _try_import(name) for name in MODULES},
        code=compiled.code_in_use(),
    )


def first_free(subids: str) -> int:
    """The first id of a range that overlaps none in the text of a subuid(5) file. Pure."""
    ends = [int(first) + int(count) for first, count in re.findall(r"^[^:\n]+:(\d+):(\d+)$", subids, re.MULTILINE)]
    return max((_SUBIDS_FIRST, *ends))


def _attempt(id_map: idmap.NamespaceMap | None, kinds: int, action: Callable[[], None]) -> str:
    """Call `action` in a child with new namespaces and these ids. Returns why it fails; empty if it succeeds."""
    read_fd, write_fd = os.pipe()

    def body() -> int:
        try:
            action()
        except OSError as error:
            os.write(write_fd, os.fsencode(f"{error.filename}: {error.strerror}" if error.filename else str(error)))
        return 0

    try:
        pid = userns.fork(id_map, kinds, body)
    except LaunchError as error:
        os.close(read_fd)
        return error.why
    finally:
        os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        said = os.fsdecode(pipe.read())
    _, status = os.waitpid(pid, 0)
    return said or ("" if status == 0 else f"the test ended with status {status}")


def _try_mounting() -> None:
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/", "tmpfs", MS_NOSUID | MS_NODEV)


def _try_fuse() -> None:
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    fd = os.open(FUSE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
    mount("unionfs-doctor", "/mnt" if os.path.isdir("/mnt") else "/tmp", "fuse", MS_NOSUID | MS_NODEV, options)


def _try_proc() -> None:
    unshare(CLONE_NEWPID)
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            new_mount("proc").close()
        except OSError as error:
            code = error.errno or errno.EIO
        finally:
            os.write(write_fd, b"%d" % code)
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        code = int(pipe.read() or b"%d" % errno.EIO)
    os.waitpid(pid, 0)
    if code:
        raise OSError(code, os.strerror(code), "/proc")


def _try_xattrs(directory: str) -> str:
    """Why files in `directory`, which need not exist, cannot have extended attributes; empty if they can."""
    while not os.path.isdir(directory) and directory != "/":
        directory = os.path.dirname(directory)
    try:
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            os.setxattr(file.name, "user.unionfs.doctor", b"1")
    except OSError as error:
        return f"{directory}: {error.strerror}"
    return ""


def _try_import(name: str) -> str:
    try:
        import_module(name)
    except ImportError as error:
        return str(error)
    return ""


def _why_closed(device: str) -> str:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _why_no_fusermount() -> str:
    for directory in os.get_exec_path():
        path = os.path.join(directory, "fusermount3")
        if os.access(path, os.X_OK):
            return "" if os.stat(path).st_mode & 0o4000 else f"{path} is not set-user-id root"
    return "fusermount3 is not installed"


def _why_no_thin_pools() -> str:
    release = os.uname().release
    listed = _text(f"/lib/modules/{release}/modules.dep") + _text(f"/lib/modules/{release}/modules.builtin")
    if os.path.isdir("/sys/module/dm_thin_pool") or "/dm-thin-pool.ko" in listed:
        return ""
    return f"Linux {release} has no module dm_thin_pool"


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _kernel_version() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _package_manager() -> str:
    names = {"apt-get": "apt", "dnf": "dnf", "pacman": "pacman", "zypper": "zypper", "apk": "apk"}
    directories = (*os.get_exec_path(), "/usr/bin", "/sbin")
    return next(
        (known for name, known in names.items() if any(os.access(f"{d}/{name}", os.X_OK) for d in directories)), ""
    )


def _count(path: str, name: str, uid: int) -> int:
    return sum(given.length for given in idmap.parse_ranges(_text(path), (name, str(uid))))


def _cgroups() -> str:
    kinds = {line.split()[2] for line in _text("/proc/self/mounts").splitlines() if "/sys/fs/cgroup" in line}
    if "cgroup2" in kinds:
        return "hybrid" if "cgroup" in kinds else "v2"
    return "v1" if "cgroup" in kinds else "none"


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
