"""Containers from images: the image's configuration is run, also after changes of the container."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Box
from tests.launcher.terminals import terminal
from tests.layers.http_server import Handler, HttpServer
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from tests.support.users import User

_FOREVER = "trap 'exit 3' TERM; while :; do sleep 0.05; done"


def inspected(box: Box, name: str) -> dict[str, Any]:
    (found,) = json.loads(box("inspect", name).stdout)
    return dict(found)


def wait_for(box: Box, name: str, path: str) -> None:
    deadline = time.monotonic() + limit(60)
    while box("exec", name, "test", "-e", path, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- what an image says --------------------------------------------------------------------------------------------


def test_settings_of_the_image(box: Box) -> None:
    assert box("run", "--rm", "set:1").stdout == "red 1\n/srv/app\n"
    assert box("run", "--rm", "set:1", "echo given").stdout == "given\n"
    told = box("run", "--rm", "-e", "COLOUR=blue", "-w", "/", "set:1").stdout
    assert told == "blue 1\n/\n"
    assert box("run", "--rm", "--entrypoint", "echo", "set:1", "a", "b").stdout == "a b\n"
    assert box("run", "--rm", "--entrypoint", "", "set:1", "pwd").stdout == "/srv/app\n"
    nothing = box("run", "--rm", "--entrypoint", "", "set:1", check=False)
    assert (nothing.returncode, "no command given" in nothing.stderr) == (125, True)


@as_ordinary_user
def test_user_and_names(box: Box) -> None:
    script = "id -u; hostname; getent hosts localhost >/dev/null && test -s /etc/hosts && echo found; cat /etc/hostname"
    told = box("run", "--rm", "-u", "games", "--hostname", "here", "debian:1", "sh", "-c", script)
    assert told.stdout == "5\nhere\nfound\nhere\n"


@as_ordinary_user
def test_a_volume_of_the_image_begins_with_its_files_and_is_not_committed(box: Box) -> None:
    script = "ls -d /etc/apt/sources.list; touch /etc/apt/new /etc/other"
    assert box("run", "--name", "vol", "set:1", script).stdout == "/etc/apt/sources.list\n"
    box("start", "-a", "vol")
    report = box("commit", "vol", "vol:1", "--report").stdout
    assert "A /etc/other" in report
    assert "/etc/apt" not in report
    box("rmi", "-f", "vol:1")


@as_ordinary_user
def test_what_is_made_to_mount_on_is_no_change(box: Box, user: User, scratch: Path) -> None:
    """A layer hides /etc/hosts, and another file of /etc is a symlink to where nothing is."""
    (scratch / "top/etc").mkdir(parents=True)
    (scratch / "top/etc/.wh.hosts").touch()
    (scratch / "top/etc/resolv.conf").symlink_to("../run/nowhere/resolv.conf")
    user.own(scratch)
    box("run", "--name", "base", "debian:1", "true")
    (lower,) = inspected(box, "base")["GraphDriver"]["Data"]["LowerDir"]
    words = ("--lower", scratch / "top", "--lower", lower)
    box("run", "--name", "bare", *words, "sh", "-c", "test -s /etc/hosts && echo x > /run/kept")
    box("start", "-a", "bare")
    assert box("diff", "bare").stdout == "C /run\nA /run/kept\n"
    report = box("commit", "bare", "bare:1", "--report").stdout
    assert "/run/kept" in report
    assert "hosts" not in report + box("diff", "bare").stdout
    box("rm", "bare")
    box("rmi", "bare:1")


@as_ordinary_user
@pytest.mark.parametrize(("command", "code"), [("nosuch", 127), ("/etc", 126), ("/etc/passwd", 126)])
def test_commands_that_cannot_be_executed(box: Box, command: str, code: int) -> None:
    done = box("run", "debian:1", command, check=False)
    assert done.returncode == code
    assert done.stderr.startswith("unionfs: executing failed")
    assert box("ps", "-a", "-q").stdout == ""


class Empty(Handler):
    """A registry without images."""

    def do_GET(self) -> None:
        self.send_error(404)


@as_ordinary_user
def test_images_that_are_not_there(box: Box) -> None:
    done = box("run", "--pull", "never", "nosuch:1", "true", check=False)
    assert (done.returncode, "no such image: nosuch:1" in done.stderr) == (125, True)
    with HttpServer(Empty) as registry:
        done = box("run", f"{registry.host}/nosuch", "true", check=False)
    assert done.returncode == 125
    assert "is not in the store: pulling it" in done.stderr
    assert box("run", "NoSuch:::", "true", check=False).returncode == 125


# -- a life --------------------------------------------------------------------------------------------------------


def test_a_life_in_the_background(box: Box) -> None:
    told = box("run", "-d", "--name", "one", "debian:1", "sh", "-c", f"echo out; echo err >&2; {_FOREVER}")
    identity = told.stdout.strip()
    assert len(identity) == 32
    shown = json.loads(box("ps", "--json").stdout)
    assert [(one["name"], one["image"], one["status"]) for one in shown] == [("one", "debian:1", "running")]
    assert box("run", "--name", "one", "debian:1", "true", check=False).returncode == 125
    refused = box("rm", "one", check=False)
    assert (refused.returncode, "still running: one" in refused.stderr) == (1, True)
    box("rename", "one", "two")
    box("exec", "two", "touch", "/made")
    box("stop", "two")
    assert box("wait", "two").stdout == "3\n"
    logs = box("logs", "two")
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")
    state = inspected(box, "two")["State"]
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("exited", 3, 0)
    box("start", "two")
    assert box("exec", "two", "ls", "/made").stdout == "/made\n"
    assert box("logs", "--tail", "1", "two").stdout + box("logs", "--tail", "1", "two").stderr in ("out\n", "err\n")
    box("kill", "two")
    assert inspected(box, "two")["State"]["ExitCode"] == 137
    box("start", "two")
    box("rm", "-f", "two")
    assert box("ps", "-a", "-q").stdout == ""


@as_ordinary_user
def test_stop_falls_back_on_kill(box: Box) -> None:
    box("run", "-d", "--name", "deaf", "debian:1", "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
    box("stop", "-t", "0.3", "deaf")
    assert box("wait", "deaf").stdout == "137\n"
    box("stop", "deaf")


@as_ordinary_user
def test_other_signals(box: Box) -> None:
    script = "trap 'echo usr; exit 9' USR1; touch /ready; while :; do sleep 0.05; done"
    box("run", "-d", "--stop-signal", "USR1", "--name", "sig", "debian:1", "sh", "-c", script)
    wait_for(box, "sig", "/ready")
    box("stop", "sig")
    assert box("wait", "sig").stdout == "9\n"
    assert box("kill", "-s", "NOSUCH", "sig", check=False).returncode == 2
    assert box("kill", "sig", check=False).returncode == 1
    box("start", "sig")
    box("rm", "sig", check=False)
    box("kill", "-s", "SIGKILL", "sig")


def test_exec(box: Box) -> None:
    box("run", "-d", "--name", "in", "-e", "A=1", "-w", "/srv", "debian:1", "sh", "-c", _FOREVER)
    script = "echo $A $B; pwd; id -u; cat; exit 7"
    done = box("exec", "-i", "-e", "B=2", "in", "sh", "-c", script, stdin="typed\n", check=False)
    assert (done.returncode, done.stdout) == (7, "1 2\n/srv\n0\ntyped\n")
    assert box("exec", "-u", "games", "-w", "/tmp", "in", "sh", "-c", "id -u; pwd").stdout == "5\n/tmp\n"
    own = box(
        "exec", "in", "sh", "-c", "readlink /proc/self/ns/pid; readlink /proc/1/cwd || readlink /proc/self/ns/mnt"
    )
    assert own.stdout.startswith("pid:")
    codes = [box("exec", "in", word, check=False).returncode for word in ("nosuch", "/etc", "true", "false")]
    assert codes == [127, 126, 0, 1]
    assert box("exec", "in", "sh", "-c", "kill -9 $$", check=False).returncode == 137
    box("exec", "-d", "in", "sh", "-c", "sleep 0.2; touch /later")
    wait_for(box, "in", "/later")
    box("kill", "in")
    ended = box("exec", "in", "true", check=False)
    assert (ended.returncode, "it is not running" in ended.stderr) == (125, True)


@as_ordinary_user
def test_exec_at_a_terminal(box: Box, user: User) -> None:
    box("run", "-d", "-t", "--name", "tty", "debian:1", "sh", "-c", f"tty; {_FOREVER}")
    root = Path(inspected(box, "tty")["GraphDriver"]["Data"]["UpperDir"]).parents[2]
    line = [*user.unionfs_cmd, "exec", "--root", os.fspath(root), "-it", "tty", "bash", "--norc"]
    with terminal(user, line, rows=33, columns=99) as screen:
        before = screen.settings()
        screen.expect("# ")
        screen.type("stty size; tty; sh -c 'echo go$((1)); exec sleep 100'\n")
        screen.expect(r"33 99\s+/dev/pts/1\s+go1")
        screen.type("\x03")
        screen.expect("# ")
        screen.type("exit 9\n")
        assert screen.end() == 9
        assert screen.settings() == before
    assert box("logs", "tty").stdout == "/dev/pts/0\n"


@as_ordinary_user
def test_attached_output_is_stored_by_default(box: Box) -> None:
    script = "echo out; echo err >&2; printf 'a\\377b'"
    done = box("run", "--name", "kept", "debian:1", "sh", "-c", script)
    logs = box("logs", "kept")
    assert (logs.stdout, logs.stderr) == (done.stdout, done.stderr) == ("out\na\udcffb", "err\n")
    assert box("logs", "-t", "--tail", "1", "kept").stdout.endswith("Z a\udcffb")
    box("run", "--name", "quiet", "--log-driver", "none", "debian:1", "true")
    assert "not stored" in box("logs", "quiet", check=False).stderr


@as_ordinary_user
def test_logs_are_followed_to_the_end(box: Box) -> None:
    box("run", "-d", "--name", "talk", "debian:1", "sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 0.2; done")
    assert box("logs", "-f", "talk").stdout == "1\n2\n3\n4\n"


@as_ordinary_user
@pytest.mark.parametrize(
    "verb", ["exec", "start", "stop", "kill", "wait", "logs", "rename", "inspect", "commit", "export"]
)
def test_unknown_containers(box: Box, verb: str) -> None:
    more = ["true"] if verb in ("exec", "rename", "commit") else []
    done = box(verb, "nobody", *more, check=False)
    assert done.returncode == (125 if verb == "exec" else 1)
    assert "no such container" in done.stderr
    assert "Traceback" not in done.stderr


# -- images of containers ------------------------------------------------------------------------------------------


def test_commit_of_a_running_container(box: Box) -> None:
    script = "echo a > /a; rm /etc/issue; i=0; while :; do i=$((i+1)); echo $i; done > /n"
    box("run", "-d", "--name", "busy", "-e", "MINE=yes", "debian:1", "sh", "-c", script)
    wait_for(box, "busy", "/n")
    change = ("-c", 'CMD ["cat", "/a"]', "-c", "ENV EXTRA=1", "-a", "me", "-m", "words")
    report = json.loads(box("commit", "-p", *change, "--json", "busy", "user/new:v1").stdout)
    kinds = {(one["kind"], one["path"]) for one in report["changes"]}
    assert {("A", "/a"), ("A", "/n"), ("D", "/etc/issue")} <= kinds
    before = box("exec", "busy", "wc", "-c", "/n").stdout
    time.sleep(0.2)
    assert box("exec", "busy", "wc", "-c", "/n").stdout != before  # it goes on
    assert box("run", "--rm", "user/new:v1").stdout == "a\n"
    told = box(
        "run", "--rm", "user/new:v1", "sh", "-c", "echo $MINE $EXTRA; ls /etc/issue; tail -c 1 /n | wc -l", check=False
    )
    assert told.stdout == "yes 1\n1\n"
    box("commit", "--no-pause", "busy")
    shown = inspected(box, "user/new:v1")
    assert (shown["Author"], shown["Config"]["Cmd"]) == ("me", ["cat", "/a"])
    box("kill", "busy")
    box("rmi", "-f", "user/new:v1")


@as_ordinary_user
def test_what_the_base_is_called_meanwhile_does_not_matter(box: Box, user: User) -> None:
    box("run", "--name", "first", "debian:1", "touch", "/first")
    made = box("commit", "-q", "--iidfile", user.home / "iid", "first", "moving:1")
    assert made.stdout.strip() == (user.home / "iid").read_text() == inspected(box, "moving:1")["Id"]
    box("run", "--name", "second", "moving:1", "touch", "/second")
    box("tag", "debian:1", "moving:1")
    box("rmi", "-f", "nothing:1")
    box("commit", "second", "third:1")
    assert box("run", "--rm", "third:1", "ls", "/first", "/second").stdout == "/first\n/second\n"
    box("rm", "first", "second")
    box("rmi", "-f", "moving:1", "third:1")


@as_ordinary_user
def test_commit_on_directories_and_refusals(box: Box, user: User, scratch: Path) -> None:
    top = scratch / "top"
    top.mkdir()
    (top / "note").write_text("noted\n")
    user.own(top)
    box("run", "--name", "plain", "debian:1", "true")
    (lower,) = inspected(box, "plain")["GraphDriver"]["Data"]["LowerDir"]
    box("run", "--name", "layered", "--lower", top, "--lower", lower, "sh", "-c", "cat /note; echo x > /x")
    box("commit", "layered", "layered:1")
    assert box("run", "--rm", "layered:1", "cat", "/note", "/x").stdout == "noted\nx\n"
    box("rm", "layered")
    box("rmi", "layered:1")
    box("run", "--name", "twin", "debian:1", "true")
    assert "digest cannot be given" in box("commit", "twin", "a@sha256:" + "0" * 64, check=False).stderr
    assert box("commit", "-c", "NONSENSE x", "twin", "a:1", check=False).returncode != 0
    assert box("commit", "twin", "Bad Name", check=False).returncode != 0
    box("run", "--name", "view", "/", "true")
    assert "this machine itself" in box("commit", "view", "a:1", check=False).stderr


def test_export(box: Box, user: User) -> None:
    box("run", "--name", "ex", "debian:1", "sh", "-c", "echo x > /x; rm /etc/issue")
    out = user.home / "out.tar"
    box("export", "-o", out, "ex")
    with tarfile.open(out) as tar:
        names = {name.lstrip("./") for name in tar.getnames()}
    assert {"x", "etc/passwd", "bin"} <= names
    assert "etc/issue" not in names
    out.unlink()


# -- whatever is killed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["process 1", "monitor", "both"])
def test_killed_from_outside(box: Box, part: str) -> None:
    box("run", "-d", "--name", "hit", "debian:1", "sh", "-c", f"echo kept > /kept; {_FOREVER}")
    wait_for(box, "hit", "/kept")
    where = Path(inspected(box, "hit")["GraphDriver"]["Data"]["UpperDir"]).parent
    record = json.loads((where / "container.json").read_text())
    for name in {"process 1": ["pid"], "monitor": ["monitor"], "both": ["monitor", "pid"]}[part]:
        try:
            os.kill(record["state"][name], signal.SIGKILL)
        except ProcessLookupError:
            continue  # it has ended with the other
    box("wait", "hit")
    assert box("ps", "-q").stdout == ""
    box("start", "hit")
    assert box("exec", "hit", "cat", "/kept").stdout == "kept\n"
