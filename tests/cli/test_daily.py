"""What people use daily: create, restart, filters and formats of ps, times of logs."""

from __future__ import annotations

import json
import time

import pytest

from tests.cli.conftest import Box
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from unionfs.cli.errors import CommandError
from unionfs.cli.filter_flags import all_of, formatted
from unionfs.cli.logs import _moment
from unionfs.containers.config import ContainerConfig, Image, RootFilesystem
from unionfs.containers.record import Container, State
from unionfs.launcher.spec import Process


@as_ordinary_user
def test_create_then_start(box: Box) -> None:
    identity = box("create", "--name", "made", "-v", "/vol", "debian:1", "cat", "/in").stdout.strip()
    assert box("ps", "-a", "--filter", "name=made", "--format", "{{.Names}} {{.State}}").stdout == "made created\n"
    box("cp", "-", "made:/", stdin=_tar("in", b"put in\n"))
    assert box("ps", "-q").stdout == ""
    assert box("start", "-a", "made").stdout == "put in\n"
    assert json.loads(box("ps", "-l", "--format", "json").stdout)[0]["id"] == identity
    box("rm", "-v", "made")


@as_ordinary_user
def test_prune_removes_containers_that_do_not_run(box: Box) -> None:
    box("container", "run", "-d", "--name", "on", "debian:1", "sleep", "1000")
    made = [box("create", "--name", name, "--label", f"is={name}", "debian:1", "true").stdout for name in ("a", "b")]
    assert box("container", "prune", "--force", "--filter", "label=is=b").stdout == made[1]
    assert json.loads(box("container", "prune", "--json").stdout) == [made[0].strip()]
    assert box("container", "prune", "-f").stdout == ""
    assert box("container", "ls", "-a", "--format", "{{.Names}}").stdout == "on\n"
    assert box("container", "exec", "on", "no such", check=False).returncode == 127
    assert box("container", "prune", "--filter", "label", check=False).returncode == 2
    assert box("container", "sing", check=False).returncode == 2
    assert "ls       unionfs ps" in box("container", "--help").stdout
    box("rm", "-f", "on")


@as_ordinary_user
def test_restart(box: Box) -> None:
    box(
        "run",
        "-d",
        "--name",
        "again",
        "debian:1",
        "sh",
        "-c",
        "echo begun; trap 'exit 0' TERM; while :; do sleep 0.05; done",
    )
    box("restart", "again")
    deadline = time.monotonic() + limit(60)
    while box("logs", "again").stdout != "begun\nbegun\n":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert box("ps", "--format", "{{.Names}}").stdout == "again\n"
    box("stop", "-t", "5", "again")
    assert box("logs", "--since", "1h", "again").stdout == "begun\nbegun\n"
    assert box("logs", "--until", "1h", "again").stdout == ""
    assert box("logs", "--since", "yesterday", "again", check=False).returncode == 2
    box("restart", "again")
    box("rm", "-f", "again")


@as_ordinary_user
def test_top_and_the_end_of_a_container_with_rm(box: Box) -> None:
    script = "sleep 1000 & test -e /go || while ! test -e /go; do sleep 0.05; done; exit 5"
    box("run", "-d", "--rm", "--name", "gone", "-u", "games", "--tmpfs", "/t", "debian:1", "sh", "-c", script)
    shown = json.loads(box("top", "--json", "gone").stdout)
    assert (shown[0]["pid"], shown[0]["command"]) == (1, "unionfs-init")
    assert any(one["uid"] == 5 and "sleep 1000" in one["command"] for one in shown)
    assert "sleep 1000" in box("top", "gone").stdout
    box("exec", "-u", "0", "-d", "gone", "sh", "-c", "sleep 1; touch /go")
    assert box("wait", "gone").stdout == "5\n"
    assert box("top", "gone", check=False).returncode == 1


_CONTAINER = Container(
    root="/d",
    id="abc",
    name="web",
    created=0.0,
    config=ContainerConfig(
        Process(("true",)),
        RootFilesystem(("/lower",)),
        image=Image("user/web:1", "sha256:0", ""),
        labels=(("a", "1"), ("b", "")),
    ),
    state=State("exited", exit_code=3),
)


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        (["name=we"], True), (["name=x"], False), (["name=x", "name=web"], True), (["id=ab"], True),
        (["label=a"], True), (["label=a=1", "label=b"], True), (["label=a", "label=c"], False),
        (["status=exited"], True),
        (["exited=3", "status=running"], False), (["ancestor=user/web"], True), (["driver=fuse"], True),
    ],
)  # fmt: skip
def test_filters(filters: list[str], fits: bool) -> None:
    assert all_of(filters)(_CONTAINER) is fits


@pytest.mark.parametrize("wrong", ["name", "colour=red", "name=["])
def test_filters_that_are_none(wrong: str) -> None:
    with pytest.raises(CommandError, match="bad filter"):
        all_of([wrong])


def test_formats() -> None:
    fields = {"Names": "web", "State": "exited"}
    assert formatted("{{.Names}}\\t{{ .State }}", fields) == "web\texited"
    assert json.loads(formatted("{{json .}}", fields)) == fields
    for wrong in ("{{.Nothing}}", "{{if .Names}}x{{end}}"):
        with pytest.raises(CommandError, match="bad format"):
            formatted(wrong, fields)


def test_moments() -> None:
    assert _moment("1700000000") == "2023-11-14T22:13:20.000000Z"
    assert _moment("2023-11-14T22:13:20+00:00") == _moment("1700000000")
    assert _moment("1h30m") < _moment("10m")


def _tar(name: str, data: bytes) -> str:
    import io
    import tarfile

    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return made.getvalue().decode("latin-1")
