"""execve(2) of files in the tree: binaries, scripts, set-id programs, files being written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

from tests.mounted.checking import CHOWN, check, elsewhere, fails, opened, same, write


def _binary() -> None:
    shutil.copy("/bin/sleep", "sleep")
    shutil.copy("/bin/cat", "cat")
    os.chmod("sleep", 0o755)
    os.chmod("cat", 0o755)


def _script() -> None:
    with open("script", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\necho ran $0 $1\n")
    os.chmod("script", 0o755)


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@check("input=hello", prepare=_binary)
def binaries_run() -> None:
    """execve(2): a program of the tree runs, before and after it was renamed or changed in its attributes."""
    same(_output("./cat", "input"), "hello")
    os.chmod("cat", 0o700)
    same(_output("./cat", "input"), "hello")
    os.rename("cat", "tac")
    same(_output("./tac", "input"), "hello")


@check(prepare=_script)
def scripts_run() -> None:
    """execve(2), interpreter scripts: the interpreter finds the script by its path."""
    same(_output("./script", "x"), "ran ./script x\n")
    write("script", b"echo more\n", os.O_APPEND)
    same(_output("./script", "y"), "ran ./script y\nmore\n")


@check("d/f:755=x", prepare=_script)
def what_may_not_run() -> None:
    """execve(2): EACCES without execute permission and for directories, ENOEXEC for what is no program."""
    os.chmod("script", 0o644)
    fails(errno.EACCES, elsewhere, os.execv, "./script", ["script"])
    fails(errno.EACCES, elsewhere, os.execv, "./d", ["d"])
    fails(errno.ENOEXEC, elsewhere, os.execv, "./d/f", ["f"])
    fails(errno.ENOENT, elsewhere, os.execv, "./nothing", ["nothing"])


@check(prepare=_binary)
def a_running_program_is_not_written() -> None:
    """open(2): ETXTBSY for writing a file that is being executed; execve(2): ETXTBSY for a file open for writing."""
    running = subprocess.Popen(["./sleep", "100"])
    try:
        fails(errno.ETXTBSY, os.open, "sleep", os.O_WRONLY)
        fails(errno.ETXTBSY, os.open, "sleep", os.O_RDWR | os.O_TRUNC)
    finally:
        running.kill()
        running.wait()
    with opened("sleep", os.O_WRONLY | os.O_APPEND):
        fails(errno.ETXTBSY, elsewhere, os.execv, "./sleep", ["sleep", "0"])
    same(subprocess.run(["./sleep", "0"], check=False).returncode, 0)


@check(prepare=_binary)
def a_running_program_can_be_replaced() -> None:
    """rename(2), unlink(2): package managers replace programs that run; the running one goes on."""
    running = subprocess.Popen(["./sleep", "100"])
    try:
        shutil.copy("cat", "new")
        os.rename("new", "sleep")
        same(running.poll(), None)
        same(os.path.basename(os.readlink(f"/proc/{running.pid}/exe")), "sleep (deleted)")
    finally:
        running.kill()
        running.wait()


@check(prepare=_binary)
def a_fresh_copy_runs_at_once() -> None:
    """execve(2): a program that was just written and closed runs; no descriptor of anybody keeps it busy."""
    for number in range(20):
        shutil.copy("cat", f"copy{number}")
        same(subprocess.run([f"./copy{number}", "/dev/null"], check=False).returncode, 0)


@check("lib/pkg/__init__.py lib/pkg/mod.py=ANSWER=42")
def python_imports_and_caches() -> None:
    """An interpreter imports from the tree and writes its cache (mkdir, O_EXCL, rename in one program)."""
    code = "import sys; sys.path.insert(0, 'lib'); import pkg.mod; print(pkg.mod.ANSWER)"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True, env=env)
        same(done.stdout, "42\n")
    same(len(os.listdir("lib/pkg/__pycache__")), 2)


def _shared_library() -> None:
    import _ctypes

    shutil.copy(_ctypes.__file__, "library.so")


@check(prepare=_shared_library)
def libraries_are_mapped() -> None:
    """dlopen(3): a shared library of the tree can be mapped executable, also after a change."""
    import ctypes

    def load() -> None:
        ctypes.CDLL("./library.so")

    elsewhere(load)
    os.chmod("library.so", 0o755)
    elsewhere(load)


@check(prepare=_binary)
def set_user_id_programs() -> None:
    """execve(2), set-user-ID: the mode bit is shown and kept when the file is renamed; mount(2) decides its effect."""
    os.chmod("cat", 0o4755)
    os.rename("cat", "suid")
    same(os.stat("suid").st_mode & 0o7777, 0o4755)
    same(subprocess.run(["./suid", "/dev/null"], check=False).returncode, 0)


def _who_am_i() -> None:
    shutil.copy("/usr/bin/id", "id")
    os.chmod("id", 0o755)


@check("", CHOWN, prepare=_who_am_i)
def set_group_id_is_carried() -> None:
    """execve(2): after chown and chmod of a set-id program by root the bits are there for the kernel to see."""
    os.chown("id", 1234, 1234)
    os.chmod("id", 0o6755)
    status = os.stat("id")
    same((status.st_uid, status.st_gid, status.st_mode & 0o7777), (1234, 1234, 0o6755))


@check(prepare=_binary)
def a_running_program_is_not_cut() -> None:
    """truncate(2): ETXTBSY for a file that is being executed, by every name of it; its attributes may be changed."""
    os.link("sleep", "other")
    running = subprocess.Popen(["./sleep", "100"])
    try:
        for name in ("sleep", "other"):
            fails(errno.ETXTBSY, os.truncate, name, 10)
            fails(errno.ETXTBSY, os.open, name, os.O_WRONLY | os.O_APPEND)
        os.chmod("other", 0o711)
        os.utime("sleep", (1, 1))
        same(running.poll(), None)
    finally:
        running.kill()
        running.wait()
    os.truncate("sleep", 10)


@check("d/", prepare=_script)
def scripts_by_descriptor_and_by_link() -> None:
    """execveat(2), proc(5): a script runs by a link, from another directory and by its descriptor, and can be moved."""
    os.symlink("../script", "d/link")
    same(_output("d/link", "x"), "ran d/link x\n")
    os.link("script", "d/hard")
    os.rename("script", "d/moved")
    same(_output("d/hard", "y"), "ran d/hard y\n")
    with opened("d/moved") as fd:
        done = subprocess.run([f"/proc/self/fd/{fd}", "z"], pass_fds=[fd], check=True, capture_output=True, text=True)
    same(done.stdout, f"ran /proc/self/fd/{fd} z\n")
