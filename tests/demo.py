"""`make demo`: the main job on real input, as a transcript.

An ordinary user runs a program in a container whose root filesystem is a union of a small layer of its own over a
minimal Debian, sees what the program changed, and gets proof that the layers did not change. Then the same user tries
a command on a copy-on-write view of this machine. Every claim in the transcript is checked; a false one ends the demo.

As root, the ordinary user is made for the occasion and removed again; otherwise it is whoever runs the demo.
"""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.support import machine, rootfs, scratch, users
from tests.support.process import ChildError

_PROGRAM = '''\
"""Administers a system a little: adds a user, edits, removes and renames files. Prints what it saw."""
import os, pathlib, subprocess

outside = pathlib.Path("/proc/self/uid_map").read_text().split()[1]
print("hello from", pathlib.Path("/etc/os-release").read_text().split('"')[1])
print(f"uid {os.getuid()} here, uid {outside} outside; process number {os.getpid()}")
print("the layer on top says:", pathlib.Path("/etc/motd").read_text().strip())
print("/etc/issue of the Debian below is hidden by a whiteout:", not os.path.exists("/etc/issue"))
subprocess.run(["useradd", "--create-home", "alice"], check=True)
with open("/etc/motd", "a") as motd:
    motd.write("changed in the container\\n")
os.remove("/etc/debian_version")
os.rename("/usr/share/base-files", "/usr/share/old-base-files")
'''

_FINGERPRINT = r"""
cd "$1" && {
    find . -printf '%P %y %m %U %G %s %n %T@ %C@ %i %l\0' | sort -z
    find . -type f -print0 | sort -z | xargs -0 sha256sum
} | sha256sum | cut -c1-16
"""
"""Names, kinds, modes, owners, sizes, links, times of change (which nobody can set), inode numbers and all content."""


class BrokenPromiseError(Exception):
    """The demo claimed something that is not so."""


def main() -> int:
    """Run the demo. 0 when every claim held."""
    try:
        with ExitStack() as stack:
            machine.open_fuse_device()
            scratch.sweep_dead_runs()
            run_dir = stack.enter_context(scratch.run_dir())
            user = _somebody(stack, run_dir)
            stage = run_dir / "demo"
            stage.mkdir()
            user.own(stage)
            _show_layers(user, stage)
            _show_host(user, stage)
    except (machine.NoFuseError, rootfs.NoRootfsError, users.CannotMakeUserError) as why:
        print(f"demo: cannot run here: {why}", file=sys.stderr)
        return 1
    except (ChildError, BrokenPromiseError) as why:
        print(f"demo: failed: {why}", file=sys.stderr)
        return 1
    return 0


def _somebody(stack: ExitStack, run_dir: Path) -> users.User:
    if os.geteuid() == 0:
        user = stack.enter_context(users.new_ordinary_user(run_dir))
    else:
        home = run_dir / "home"
        home.mkdir()
        user = users.current_user(home)
    _say(f"Everything below is done by the ordinary user {user.name} (uid {user.uid}).")
    return user


def _show_layers(user: users.User, stage: Path) -> None:
    _say("Two layers: a small one of our own over a minimal Debian (made by mmdebstrap, kept for the next time).")
    debian = rootfs.unpack(rootfs.debian_tar(), stage / "debian", user)
    app = _own_layer(user, stage / "app")
    _step(user, stage, ["find", "app", "-type", "f"])
    before = {layer: _fingerprint(user, layer) for layer in (app, debian)}

    _say("A program in a container on their union changes files:")
    command = ["python3", "/srv/administer.py"]
    _step(user, stage, ["unionfs", "run", "--name", "demo", "--lower", "app", "--lower", "debian", *command])

    _say("What it changed (A added, C changed, D deleted):")
    changes = _step(user, stage, ["unionfs", "diff", "demo"]).splitlines()
    expected = {"A /home/alice", "C /etc/motd", "C /etc/passwd", "D /etc/debian_version"}
    expected |= {"A /usr/share/old-base-files", "D /usr/share/base-files"}
    _promise(expected <= set(changes), f"the changes should include {sorted(expected - set(changes))}")

    _say("The layers themselves, every name, byte, owner, time and inode number, before and after:")
    for layer, fingerprint in before.items():
        after = _fingerprint(user, layer)
        print(f"    {layer.name:<8}{fingerprint}  {after}  {'unchanged' if after == fingerprint else 'CHANGED'}")
        _promise(after == fingerprint, f"{layer} should be unchanged")
    _step(user, stage, ["unionfs", "rm", "demo"])


def _show_host(user: users.User, stage: Path) -> None:
    _say("This machine itself as the lower layer: try a command, see what it would change, and drop it.")
    script = "echo somebody:x:9999:9999::/:/bin/sh >> /etc/passwd; rm /etc/os-release; touch /usr/local/bin/new"
    told = _step(user, stage, ["unionfs", "try", "--discard", "sh", "-c", script])
    changes = {(kind, path) for kind, _, path in map(str.split, told.splitlines()[1:])}
    for change in (("C", "/etc/passwd"), ("D", "/etc/os-release"), ("A", "/usr/local/bin/new")):
        _promise(change in changes, f"the list should have {change}")
    _step(user, stage, ["ls", "/etc/os-release"])
    untouched = "somebody:" not in Path("/etc/passwd").read_text() and not Path("/usr/local/bin/new").exists()
    _promise(untouched, "the machine should be untouched")
    _say("The machine is untouched. That was all of it.")


def _own_layer(user: users.User, layer: Path) -> Path:
    """A layer as an image would have it: two files, and a whiteout that hides one of the layer below."""
    files = {"srv/administer.py": _PROGRAM, "etc/motd": "welcome to the union\n", "etc/.wh.issue": ""}
    for name, content in files.items():
        path = layer / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    user.own(layer)
    return layer


def _fingerprint(user: users.User, layer: Path) -> str:
    return user.run([*rootfs.as_container_root(user), "sh", "-c", _FINGERPRINT, "sh", layer]).stdout.strip()


def _step(user: users.User, cwd: Path, argv: Sequence[str]) -> str:
    """Show a command as the user would type it, run it, show what it says, and return that."""
    print(f"\n  $ {shlex.join(argv)}", flush=True)
    real = [*user.unionfs_cmd, *argv[1:]] if argv[0] == "unionfs" else list(argv)
    done = user.run(real, cwd=cwd, timeout_s=120)
    print(textwrap.indent(done.stdout + done.stderr, "    "), end="", flush=True)
    return done.stdout


def _say(sentence: str) -> None:
    print(f"\n{sentence}", flush=True)


def _promise(holds: bool, claim: str) -> None:
    if not holds:
        raise BrokenPromiseError(claim)


if __name__ == "__main__":
    sys.exit(main())
