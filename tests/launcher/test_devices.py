"""What a container sees of the machine in /proc, /sys and /dev."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.launcher.conftest import Run
from tests.support.timing import limit
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT
from unionfs.launcher.plan import HIDDEN

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)


def test_devices(run: Run, debian: Path) -> None:
    script = r"""
        cd /dev; ls
        for name in null zero full random urandom tty; do stat -c '%F %t:%T %n' $name; done
        readlink ptmx fd stdin stdout stderr core
        echo lost > /dev/null; head -c 3 /dev/zero | od -An -c; dd if=/dev/zero of=/dev/full count=1
        echo shared > /dev/shm/file && cat /dev/shm/file; stat -c %a /dev/shm /dev/mqueue; ls /dev/pts"""
    told = run(debian, "sh", "-c", script)
    assert told.stdout.split("\n") == [
        *("core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"),
        *("stderr", "stdin", "stdout", "tty", "urandom", "zero"),
        "character special file 1:3 null",
        "character special file 1:5 zero",
        "character special file 1:7 full",
        "character special file 1:8 random",
        "character special file 1:9 urandom",
        "character special file 5:0 tty",
        *("pts/ptmx", "/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "/proc/kcore"),
        r"  \0  \0  \0",
        "shared",
        "1777",
        "1777",
        "ptmx",
        "",
    ]
    assert "No space left on device" in told.stderr


def test_new_device_nodes_have_no_effect(run: Run, debian: Path) -> None:
    script = "for dir in / /tmp /dev /dev/shm; do mknod $dir/node c 1 3 && head -c 1 $dir/node && echo works; done"
    told = run(debian, "sh", "-c", script, check=False)
    assert told.stdout == ""
    assert re.search("not permitted|denied", told.stderr)


def test_other_processes_cannot_be_seen(run: Run, debian: Path) -> None:
    told = run(
        debian, "python3", "-c", "import os; print(sorted(int(name) for name in os.listdir('/proc') if name.isdigit()))"
    )
    assert told.stdout == "[1, 2]\n"


def test_init_reveals_no_file_of_the_host(run: Run, debian: Path) -> None:
    script = """
        tr '\\0' ' ' < /proc/1/cmdline | sed 's/ *$//'; echo; cat /proc/1/comm
        for name in environ maps mem; do cat /proc/1/$name; done
        for name in root cwd exe fd/0; do readlink /proc/1/$name && echo $name can be read; done"""
    told = run("-e", "SECRET=hidden", debian, "sh", "-c", script, check=False)
    assert told.stdout == "unionfs-init\nunionfs-init\n"
    assert told.stderr.count("Permission denied") == 3


def test_revealing_files_are_hidden_and_settings_are_read_only(run: Run, debian: Path) -> None:
    script = """
import os, stat, sys
null = os.stat("/dev/null").st_rdev
for path in sys.argv[1:]:
    if os.path.isdir(path):
        print(path, os.listdir(path), hex(os.statvfs(path).f_flag & os.ST_RDONLY))
    elif os.path.exists(path):
        print(path, os.stat(path).st_rdev == null)
for path in ("/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity"):
    try:
        if os.path.exists(path):
            open(path, "w")
    except OSError as error:
        print(path, error.strerror)
for path in ("/proc", "/proc/sys", "/sys"):
    print(path, os.statvfs(path).f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC))"""
    told = run(debian, "python3", "-c", script, *HIDDEN).stdout.splitlines()
    hidden = [f"{path} [] 0x1" if os.path.isdir(path) else f"{path} True" for path in HIDDEN if os.path.exists(path)]
    refusing = ("/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity")
    refused = [f"{path} Read-only file system" for path in refusing if os.path.exists(path)]
    assert told == [*hidden, *refused, "/proc 14", "/proc/sys 15", "/sys 15"]


def test_mounts_cannot_be_undone(run: Run, debian: Path) -> None:
    script = "umount /proc/sys; mount -o remount,rw /sys; mount -t tmpfs x /mnt; chroot / true && echo chroot"
    told = run(debian, "sh", "-c", script, check=False)
    assert told.stdout == "chroot\n"
    assert len(told.stderr.splitlines()) >= 3


MACHINE_CHANGED = """
import os, sys
paths = [os.path.join(place, name) for place, names, files in os.walk("/dev") for name in (*names, *files)]
paths += [f"/proc/{name}" for name in os.listdir("/proc") if not name.isdigit()]
paths += sys.argv[1:]
for path in paths:
    for change in (
        lambda: os.chmod(path, 0o700),
        lambda: os.chown(path, 7, 7),
        lambda: os.utime(path, (978307200, 978307200)),
        lambda: os.setxattr(path, "trusted.unionfs-test", b"x"),
    ):
        try:
            change()
        except OSError:
            pass
os.utime("/dev/null")
print(open("/dev/null").read() == "", len(open("/dev/urandom", "rb").read(8)), open("/proc/meminfo").read() != "")
"""


def _machine_state() -> dict[str, tuple[int, int, int, bool]]:
    paths = [Path(place, name) for place, names, files in os.walk("/dev") for name in (*names, *files)]
    paths += [path for path in Path("/proc").iterdir() if not path.name.isdigit()]
    paths += [Path(path) for path in HIDDEN if os.path.exists(path)]
    found: dict[str, tuple[int, int, int, bool]] = {}
    for path in paths:
        try:
            st = path.lstat()
        except FileNotFoundError:
            continue  # a terminal of another test
        found[str(path)] = (st.st_mode, st.st_uid, st.st_gid, st.st_mtime == 978307200)
    return {path: state for path, state in found.items() if not path.startswith("/dev/pts/")}


@pytest.mark.parametrize("driver", ["fuse", "overlay", "vfs"])
def test_no_inode_of_the_machine_is_changed(run: Run, user: User, debian: Path, driver: str) -> None:
    before = _machine_state()
    try:
        told = run("--driver", driver, debian, "python3", "-c", MACHINE_CHANGED, *HIDDEN)
        assert told.stdout == "True 8 True\n"
        if user.kind == "root":  # procfs shows what the kernel keeps for all of its mounts only to a new one
            fresh = ["unshare", "-mpf", "--mount-proc", "stat", "-c", "%a:%u", "/proc/meminfo", "/proc/keys"]
            assert subprocess.check_output(fresh, text=True, timeout=limit(60)) == "444:0\n" * 2
        after = _machine_state()
        assert {path: state for path, state in after.items() if before.get(path, state) != state} == {}
    finally:  # a failing test must not leave the machine changed either
        for path, (mode, uid, gid, _) in before.items():
            if not stat.S_ISLNK(mode) and os.path.exists(path) and os.stat(path).st_mode != mode:
                os.chown(path, uid, gid)
                os.chmod(path, stat.S_IMODE(mode))


def test_a_view_of_the_machine_has_devices_of_its_own(user: User, tidy: None) -> None:
    before = os.stat("/dev/full")
    command = "chmod 640 /dev/full && chmod 600 /proc/keys; echo ran"
    told = user.run([*user.unionfs_cmd, "try", "--discard", "sh", "-c", command], check=False)
    after = os.stat("/dev/full")
    assert "ran" in told.stdout
    assert (after.st_mode, after.st_ctime_ns) == (before.st_mode, before.st_ctime_ns)
    assert stat.S_IMODE(os.stat("/dev/null").st_mode) == 0o666
