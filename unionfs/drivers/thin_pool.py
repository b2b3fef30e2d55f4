"""The thin pool of a store: one device for each key, as a snapshot of another, and the record of their numbers.

    ROOT/devicemapper/pool.json      which pool: {"tag": HEX, "device": PATH or null, "sectors": of each thin device}
    ROOT/devicemapper/data, meta     sparse files of the pool, attached to loop devices; none with a DEVICE
    ROOT/devicemapper/devices.json   the record: {"devices": {KEY: {"number", "state", "kind", "of"}}}
    ROOT/devicemapper/lock           locked while the record or the pool is changed

A device is in the record before it is in the pool, and leaves the record after it left the pool: in the states `making`
and `removing` the pool may have it or not. So no device is lost or leaked if a process is killed or the power fails.
Each message to a pool is on its disk before the kernel answers.

The kernel releases every device after its last use: a loop device with the pool, the pool with its last thin device, a
thin device with its last mount (`losetup --detach` and `dmsetup remove --deferred` of devices in use). If a process is
killed before it has requested that, the next process that uses the store does it.

Sources: Linux Documentation/admin-guide/device-mapper/thin-provisioning.rst, dmsetup(8), losetup(8).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import secrets
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from unionfs import store_files
from unionfs.drivers import device_tools
from unionfs.drivers.device_tools import ToolError
from unionfs.drivers.driver import DriverError
from unionfs.syscalls import mounts

MAKING: Final = "making"
READY: Final = "ready"
REMOVING: Final = "removing"

BASE: Final = "base"
LAYER: Final = "layer"
CONTAINER: Final = "container"

_SECTOR: Final = 512
_METADATA_BLOCK: Final = 4096
_BLOCK: Final = 65536  # bytes of a block, which is shared or copied as a whole
_DEVICE_SIZE: Final = 10 << 30
_DATA_MAX: Final = 100 << 30
_DATA_MIN: Final = 64 << 20
_METADATA_MIN: Final = 16 << 20
_METADATA_SHARE: Final = 640  # bytes of data for each byte of metadata: twice what the kernel's documentation advises
_NUMBER_MAX: Final = (1 << 24) - 1  # of thin devices in a pool
_FREE_WANTED: Final = 10  # percent of data and metadata
_TRIES: Final = 100
_PAUSE_S: Final = 0.05
_OPTIONS: Final = "discard,noinit_itable"  # inode tables need no zeros: unwritten blocks of a thin device are zeros
_FAMILY: Final = "unionfs-"
_LOOP_GET_STATUS64: Final = 0x4C05  # <linux/loop.h>; struct loop_info64 begins with the file's device and inode
_LOOP_INFO64_SIZE: Final = 232


class Usage(NamedTuple):
    """The used and total space of a pool, in bytes."""

    where: str
    data: int
    data_max: int
    metadata: int
    metadata_max: int
    mode: str  # of the kernel: rw, ro, out_of_data_space or Fail
    devices: dict[str, int]  # number of devices by kind
    disk: int | None  # bytes that the files take on their filesystem; None for a DEVICE

    @property
    def problem(self) -> str:
        """Why no container can begin; empty if one can."""
        if self.mode == "out_of_data_space" or (self.mode == "rw" and self.data == self.data_max):
            return "it is full"
        if self.mode != "rw":
            return f"the kernel has stopped writing to it (mode {self.mode})"
        for what, used, most in (("data", self.data, self.data_max), ("metadata", self.metadata, self.metadata_max)):
            if (most - used) * 100 < most * _FREE_WANTED:
                return f"less than {_FREE_WANTED} % of its {what} space is free ({used >> 20} of {most >> 20} MiB used)"
        return ""


class Pool:
    """The pool of the store at `root`. Preconditions: root of the machine, and no other user can write to the store."""

    def __init__(self, root: str) -> None:
        self.place: Final = os.path.join(root, "devicemapper")
        self._tag = ""  # of the names of our devices; set by _open_pool, as all below
        self._pool = ""  # the name of the pool's device
        self._number = ""  # of the pool's device: MAJOR:MINOR
        self._sectors = 0  # of each thin device
        self._held: int | None = None  # a descriptor of the pool's device, so that it stays active

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Context in which the pool stays active, which saves time between several calls. Raises: DriverError."""
        with self._opened():
            fd = self._held = self._open_pool()
        try:
            yield
        finally:
            self._held = None
            os.close(fd)

    def exists(self) -> bool:
        """Whether the store has a pool."""
        return os.path.lexists(os.path.join(self.place, "pool.json"))

    def use(self, device: str) -> None:
        """Use the thin pool `device` for the store's devices from now on. Raises: DriverError if it is no thin pool, or
        the store has another one."""
        path = os.path.realpath(device)
        with self._locked():
            if self.exists():
                known = self._read("pool.json")["device"]
                if known is None or os.path.realpath(known) != path:
                    where = known or f"files in {self.place}"
                    raise DriverError(f"this store has another pool: {where}", "--root DIR names another store")
                return
            fd = _open_path(device)
            try:
                _table_of(_name_of(fd), device)
            finally:
                os.close(fd)
            self._describe(device)

    def state(self, key: str) -> str:
        """MAKING, READY or REMOVING; empty if there is no such device."""
        return str(self._devices().get(key, {}).get("state", ""))

    def outdated(self) -> list[str]:
        """The keys of devices of which one of the paths `of` does not exist any more."""
        return [key for key, one in self._devices().items() if not all(map(os.path.isdir, one["of"]))]

    def unfinished(self) -> list[str]:
        """The keys of devices of layers, and of the base, that are MAKING."""
        return [key for key, one in self._devices().items() if one["kind"] != CONTAINER and one["state"] == MAKING]

    def begin(self, key: str, kind: str, of: Sequence[str], origin: str | None) -> None:
        """Make the device `key`, MAKING: a snapshot of the READY device `origin`, or an empty one.

        `kind`: BASE, LAYER or CONTAINER. It is outdated without one of the directories `of`. Raises: DriverError."""
        with self._opened() as record:
            source = "" if origin is None else f" {record['devices'][origin]['number']}"
            for _ in range(_TRIES):
                # At random, because a DEVICE may have devices of other programs, which count from 0 or 1: if this
                # process is killed now, the next one deletes the number.
                number = secrets.randbelow(_NUMBER_MAX) + 1
                if any(one["number"] == number for one in record["devices"].values()):
                    continue
                record["devices"][key] = {"number": number, "state": MAKING, "kind": kind, "of": list(of)}
                self._write_record(record)
                try:
                    with self._suspended(record, origin):
                        self._send_message(f"create_snap {number}{source}" if source else f"create_thin {number}")
                except ToolError as error:
                    del record["devices"][key]
                    self._write_record(record)
                    if os.strerror(errno.EEXIST) not in error.said:
                        raise
                else:
                    return
            raise DriverError(f"the pool {self._pool} has no free number for a device")

    def finish(self, key: str) -> None:
        """Declare the device READY: it is complete, and no longer mounted."""
        with self._locked():
            record = self._record()
            record["devices"][key]["state"] = READY
            self._write_record(record)

    def remove(self, *keys: str) -> None:
        """Remove devices, if they exist. Raises: DriverError, whose text contains EBUSY's if one is mounted."""
        if not self._devices().keys() & set(keys):
            return
        with self._opened() as record:
            for key in keys:
                if key in record["devices"]:
                    self._remove(record, key)

    def mount(self, key: str, target: str) -> None:
        """Mount the device's filesystem at `target`. Raises: DriverError, OSError."""
        with self._opened() as record:
            fd = self._open_thin(record["devices"][key]["number"])
            try:
                mounts.mount(_path_of(fd), target, "ext4", 0, _OPTIONS)
            finally:
                os.close(fd)

    def format(self, key: str) -> None:
        """Make an empty ext4 on the device. Raises: DriverError."""
        with self._opened() as record:
            fd = self._open_thin(record["devices"][key]["number"])
            try:
                # Unwritten blocks are zeros, and stay shared by all devices: with lazy_* mke2fs writes no zeros.
                options = "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
                words = ("-q", "-F", "-t", "ext4", "-m", "0", "-J", "size=16", "-E", options)
                device_tools.run("mke2fs", *words, _path_of(fd))
            finally:
                os.close(fd)

    def usage(self) -> Usage:
        """Raises: DriverError."""
        with self._opened() as record:
            block = int(_table_of(self._pool, self._pool)[5]) * _SECTOR
            status = device_tools.run("dmsetup", "status", self._pool).split()
            count = dict(Counter(one["kind"] for one in record["devices"].values()))
            disk = None
            if self._is_own():
                disk = sum(os.stat(os.path.join(self.place, name)).st_blocks * 512 for name in ("data", "meta"))
            where = f"files in {self.place}" if disk is not None else f"/dev/mapper/{self._pool}"
            found = Usage(where, 0, 0, 0, 0, "Fail", count, disk)
            if len(status) < 8:
                return found
            metadata, data = (list(map(int, text.split("/"))) for text in status[4:6])
            return found._replace(
                data=data[0] * block,
                data_max=data[1] * block,
                metadata=metadata[0] * _METADATA_BLOCK,
                metadata_max=metadata[1] * _METADATA_BLOCK,
                mode=status[7],
            )

    # -- the record ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        os.makedirs(self.place, 0o700, exist_ok=True)
        with store_files.hold_lock(os.path.join(self.place, "lock")):
            yield

    @contextlib.contextmanager
    def _opened(self) -> Iterator[dict[str, Any]]:
        """Context with the record, in which the pool is active, and no other process changes either."""
        with self._locked():
            fd = self._open_pool()
            try:
                record = self._record()
                for key in [key for key, one in record["devices"].items() if one["state"] == REMOVING]:
                    with contextlib.suppress(DriverError):  # still mounted: the next process completes it
                        self._remove(record, key, tries=1)
                yield record
            finally:
                os.close(fd)

    def _devices(self) -> dict[str, dict[str, Any]]:
        return dict(self._record()["devices"])

    def _record(self) -> dict[str, Any]:
        try:
            return self._read("devices.json")
        except FileNotFoundError:
            return {"devices": {}}

    def _write_record(self, record: dict[str, Any]) -> None:
        self._write("devices.json", record)

    def _read(self, name: str) -> dict[str, Any]:
        path = os.path.join(self.place, name)
        try:
            return dict(json.loads(store_files.read_file(path)))
        except (ValueError, TypeError) as error:
            raise DriverError(f"{path}: bad content: {error}") from error

    def _write(self, name: str, value: dict[str, Any]) -> None:
        """Replace a file: after a power failure it has the old or the new content."""
        path = os.path.join(self.place, name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}.new")
        store_files.write_file(f"{path}.new", json.dumps(value).encode(), synced=True)
        os.rename(f"{path}.new", path)
        fd = store_files.open_directory(self.place)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # -- the pool --------------------------------------------------------------------------------------------------

    def _open_pool(self) -> int:
        """A descriptor of the active pool; it is released with it. Preconditions: the lock. Raises: DriverError."""
        if self._held is not None:
            return os.dup(self._held)
        if not self.exists():
            self._make_files()
        known = self._read("pool.json")
        self._tag, self._sectors = known["tag"], known["sectors"]
        if known["device"] is not None:
            fd = _open_path(known["device"])
            _table_of(_name_of(fd), known["device"])
        else:
            fd = _open_released(self._name("pool"), self._activate)
            self._release_loops()
        self._pool, self._number = _name_of(fd), _number_of(fd)
        return fd

    def _files(self) -> tuple[str, str]:
        return os.path.join(self.place, "meta"), os.path.join(self.place, "data")

    def _is_own(self) -> bool:
        return self._pool == self._name("pool")

    def _make_files(self) -> None:
        st = os.statvfs(self.place)
        free = st.f_bavail * st.f_frsize // 10 * 9
        metadata = max(_METADATA_MIN, min(_DATA_MAX, free) // _METADATA_SHARE // _BLOCK * _BLOCK)
        data = min(_DATA_MAX, free - metadata) // _BLOCK * _BLOCK
        if data < _DATA_MIN:
            raise DriverError(f"{self.place}: too little space: a pool would have {max(0, data) >> 20} MiB of data")
        for name, size in (("data", data), ("meta", metadata)):
            fd = store_files.open_file(os.path.join(self.place, name), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                os.ftruncate(fd, size)
                if name == "meta":
                    os.posix_fallocate(fd, 0, size)  # a full disk must not stop the kernel from writing it
                os.fsync(fd)
            finally:
                os.close(fd)
        self._describe(None)

    def _describe(self, device: str | None) -> None:
        known = {"tag": secrets.token_hex(6), "device": device, "sectors": _DEVICE_SIZE // _SECTOR}
        self._write("pool.json", known)

    def _activate(self) -> None:
        meta, data = self._files()
        for path in (meta, data):
            self._wait_until_detached(path)
        with open(store_files.open_file(meta, os.O_RDONLY), "rb") as file:
            is_new = not any(file.read(_METADATA_BLOCK))
        loops: list[str] = []
        try:
            loops.extend(device_tools.run("losetup", "--find", "--show", path).strip() for path in (meta, data))
            if not is_new:  # through the loop device: thin_check opens with O_DIRECT, which not all filesystems have
                self._check(loops[0], meta)
            with contextlib.suppress(ToolError):  # else the data are in the page cache twice
                device_tools.run("losetup", "--direct-io=on", loops[1])
            sectors = os.stat(data).st_size // _SECTOR
            table = f"0 {sectors} thin-pool {loops[0]} {loops[1]} {_BLOCK // _SECTOR} 0 1 error_if_no_space"
            device_tools.run("dmsetup", "create", self._name("pool"), "--table", table)
        finally:
            for loop in loops:
                device_tools.run("losetup", "--detach", loop)  # detached when the pool, which uses them, is removed

    def _check(self, device: str, path: str) -> None:
        try:
            device_tools.run("thin_check", "--clear-needs-check-flag", device)
        except ToolError as error:
            hint = f"thin_repair may mend {path}; without it, the containers of this driver are lost"
            raise DriverError(f"{path} is damaged: {error}", hint) from error

    def _release_loops(self) -> None:
        """Have the kernel release the loop devices with the active pool, if a process was killed before it requested
        that."""
        for path in self._files():
            for loop in _loops_of(path):
                if _text(f"/sys/block/{os.path.basename(loop)}/loop/autoclear") == "0":
                    device_tools.run("losetup", "--detach", loop)

    def _wait_until_detached(self, path: str) -> None:
        """Wait until a pool that is just being removed has written its last data and released the file."""
        for _ in range(_TRIES):
            if not (found := _loops_of(path)):
                return
            for loop in found:  # left by a process that was killed
                with contextlib.suppress(ToolError):
                    device_tools.run("losetup", "--detach", loop)
            time.sleep(_PAUSE_S)
        raise DriverError(f"{path} is still attached to a loop device", "losetup --list, dmsetup ls")

    def _send_message(self, message: str) -> None:
        device_tools.run("dmsetup", "message", self._pool, "0", message)

    # -- its devices -----------------------------------------------------------------------------------------------

    def _name(self, what: int | str) -> str:
        return f"{_FAMILY}{self._tag}-{what}"

    def _open_thin(self, number: int) -> int:
        """A descriptor of the active device; it is released with the last user. Preconditions: the pool is open."""
        name = self._name(number)
        table = f"0 {self._sectors} thin {self._number} {number}"
        return _open_released(name, lambda: device_tools.run("dmsetup", "create", name, "--table", table))

    @contextlib.contextmanager
    def _suspended(self, record: dict[str, Any], key: str | None) -> Iterator[None]:
        """Context in which the device, if it is mounted, has all its data on disk and gets no more."""
        fd = None if key is None else _open(self._name(record["devices"][key]["number"]))
        if fd is None:
            yield
            return
        try:
            device_tools.run("dmsetup", "suspend", _name_of(fd))
            try:
                yield
            finally:
                device_tools.run("dmsetup", "resume", _name_of(fd))
        finally:
            os.close(fd)

    def _remove(self, record: dict[str, Any], key: str, *, tries: int = _TRIES) -> None:
        number = record["devices"][key]["number"]
        if record["devices"][key]["state"] != REMOVING:
            record["devices"][key]["state"] = REMOVING
            self._write_record(record)
        if self._is_own():
            with contextlib.suppress(DriverError):  # only frees space of the file's filesystem; refused while mounted
                fd = self._open_thin(number)
                try:
                    device_tools.run("blkdiscard", _path_of(fd))
                finally:
                    os.close(fd)
        for left in reversed(range(tries)):
            try:
                self._send_message(f"delete {number}")
                break
            except ToolError as error:
                if os.strerror(errno.ENODATA) in error.said:  # it was not made, or is deleted already
                    break
                if os.strerror(errno.EBUSY) not in error.said or not left:
                    raise
            with contextlib.suppress(ToolError):
                device_tools.run("dmsetup", "remove", self._name(number))
            time.sleep(_PAUSE_S)
        del record["devices"][key]
        self._write_record(record)


def _open_released(name: str, make: Callable[[], object]) -> int:
    """A descriptor of the device `name`, which `make` makes if there is none. The kernel removes it after its last use.
    Raises: DriverError."""
    why: DriverError | None = None
    for _ in range(_TRIES):
        fd = _open(name)
        if fd is not None:
            device_tools.run("dmsetup", "remove", "--deferred", name)
            return fd
        try:
            make()
        except ToolError as error:
            if os.strerror(errno.EBUSY) not in error.said:
                raise
            why = error  # it is just being removed
            time.sleep(_PAUSE_S)
    raise why or DriverError(f"the device {name} does not appear")


def _open(name: str) -> int | None:
    """A descriptor of the device `name`; None if there is none. Nodes in /dev/mapper are not used: dmsetup removes the
    node of a device whose removal is deferred."""
    for path in glob.glob("/sys/block/dm-*/dm/name"):
        number = path.split("/")[3]
        if _text(path) == name:
            try:
                fd = os.open(f"/dev/{number}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in (errno.ENXIO, errno.ENODEV):
                    return None
                raise DriverError.of("opening the device", error) from error
            if _name_of(fd) == name:
                return fd
            os.close(fd)
    return None


def _open_path(device: str) -> int:
    """Raises: DriverError."""
    try:
        return os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DriverError.of("opening the thin pool", error) from error


def _loops_of(path: str) -> list[str]:
    """The loop devices that a file is attached to. They are found by its inode: the path in sysfs is another one when
    the mount namespace in which the file was attached has ended."""
    st = os.stat(path)
    found = []
    for directory in glob.glob("/sys/block/loop*/loop"):
        name = f"/dev/{directory.split('/')[3]}"
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_SIZE))
            finally:
                os.close(fd)
            if struct.unpack_from("=QQ", status) == (st.st_dev, st.st_ino):
                found.append(name)
    return found


def _number_of(fd: int) -> str:
    number = os.fstat(fd).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def _name_of(fd: int) -> str:
    """The name of an open device of device mapper; empty for others."""
    return _text(f"/sys/dev/block/{_number_of(fd)}/dm/name")


def _path_of(fd: int) -> str:
    return f"/dev/dm-{os.minor(os.fstat(fd).st_rdev)}"


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _table_of(name: str, shown: str) -> list[str]:
    """The words of a thin pool's table. Raises: DriverError if the device is none."""
    words = device_tools.run("dmsetup", "table", name).split() if name else []
    if len(words) < 6 or words[2] != "thin-pool":
        raise DriverError(f"{shown} is not a thin pool", "lvcreate --type thin-pool makes one")
    return words
