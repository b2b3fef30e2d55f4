"""`unionfs fork`, `tree`, `merge`, `drop`, and sessions of `unionfs try`: with real containers that run meanwhile."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.cli.conftest import Box
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit, wait_until
from tests.support.users import User


@as_ordinary_user
def test_a_container_that_runs_is_forked_and_gets_the_changes(box: Box) -> None:
    box(
        "run",
        "-d",
        "--name",
        "main",
        "debian:1",
        "sh",
        "-c",
        "mkdir /srv/d; echo 1 > /srv/d/f; chown 7 /srv/d; sleep 1000",
    )
    wait_until(lambda: box("exec", "main", "stat", "-c", "%u", "/srv/d").stdout == "7\n", "the directory")
    notes = []
    for name in ("one", "two"):
        script = f"echo {name} > /srv/d/f; echo {name} > /srv/{name}; chown 8 /srv/{name}"
        notes.append(box("fork", "main", name, "--", "sh", "-c", script).stderr)
    assert notes == ["", ""]
    refused = box("fork", "main", "one", check=False)
    assert "name taken: one" in refused.stderr
    box("exec", "main", "sh", "-c", "echo later > /srv/later; echo 2 > /srv/d/other")
    box("start", "-a", "one")
    box("start", "-a", "two")
    rows = json.loads(box("tree", "--json").stdout)
    assert [(row["name"], row["depth"], row["added"], row["changed"]) for row in rows] == [
        ("main", 0, 4, 0),
        ("one", 1, 1, 1),
        ("two", 1, 1, 1),
    ]
    refused = box("merge", "main", "--into", "two", check=False)
    assert "merge failed: main: it is running" in refused.stderr
    assert box("merge", "one").stdout == "C /srv/d/f\nA /srv/one\n"
    show = ("exec", "main", "sh", "-c", "cd /srv; cat d/f d/other later one; stat -c %u d one; ls")
    assert box(*show).stdout == "one\n2\nlater\none\n7\n8\nd\nlater\none\n"
    refused = box("merge", "--json", "two", check=False)
    conflict = {"path": "/srv/d/f", "fork": "changed (content, mtime)", "parent_path": "/srv/d/f"}
    assert json.loads(refused.stdout)["conflicts"] == [conflict | {"parent": "changed (content, mtime)"}]
    assert "two: 1 of its changes conflict with those of main (nothing was changed)" in refused.stderr
    assert json.loads(box("merge", "--json", "--ours", "two").stdout)["copied"] is True
    assert box("exec", "main", "cat", "/srv/two", "/srv/d/f").stdout == "two\none\n"
    assert box("exec", "main", "stat", "-c", "%u", "/srv/two").stdout == "8\n"
    box("stop", "-t", "0", "main")
    assert box("diff", "main").stdout == "".join(
        f"{line}\n"
        for line in ("C /srv", "A /srv/d", "A /srv/d/f", "A /srv/d/other", "A /srv/later", "A /srv/one", "A /srv/two")
    )
    box("fork", "main", "three", "--", "sleep", "1000")
    unnamed = box("fork", "three", "--", "true").stdout.strip()
    assert box("start", "-a", unnamed).stdout == ""
    box("drop", unnamed)
    box("drop", "main")
    box("start", "three")
    refused = box("merge", "three", check=False)
    assert "the container that it was forked from is gone" in refused.stderr
    assert box("exec", "three", "cat", "/srv/two").stdout == "two\n"
    refused = box("drop", "three", check=False)
    assert "still running: three" in refused.stderr
    box("rm", "-f", "three")


@as_ordinary_user
def test_sessions(box: Box, user: User) -> None:
    place = Path(tempfile.mkdtemp(prefix="sessions-", dir=user.home))
    (place / "in").mkdir(parents=True)
    (place / "kept").write_text("old\n")
    user.own(place)
    told = box("try", "--name", "s", "--json", "--", "sh", "-c", f"echo 1 > {place}/a; rm {place}/kept")
    changes = {Path(each["path"]).name: each for each in json.loads(told.stdout)["changes"]}
    digest = "sha256:4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865"
    assert (changes["a"]["kind"], changes["a"]["mode"], changes["a"]["digest"]) == ("A", "0644", digest)
    assert json.loads(told.stdout)["apply"][-1] == "s"
    waiting = user.popen(
        [
            *user.unionfs_cmd,
            "try",
            "-q",
            "--name",
            "s",
            "--",
            "sh",
            "-c",
            f"while [ ! -e {place}/end ]; do sleep 0.1; done",
        ],
        env=_environment(user),
    )
    wait_until(lambda: json.loads(box("status", "--json", "s").stdout)["status"] == "running", "the session")
    joined = box("try", "-q", "--name", "s", "--", "sh", "-c", f"cat {place}/a; echo 2 > {place}/b; touch {place}/end")
    assert joined.stdout == "1\n"
    waiting.communicate(timeout=limit(60))
    assert waiting.returncode == 0
    box("try", "-q", "--fork", "s", "--name", "t", "--", "sh", "-c", f"echo 3 > {place}/b")
    box("merge", "t")
    assert box("try", "--dry-run", "--name", "s", "--", "touch", place / "dry").stdout == "run it in the session s\n"
    box("fork", "s", "u")
    refused = box("try", "-q", "--name", "u", "--", "no-such-command", check=False)
    assert refused.returncode == 127
    box("drop", "u")
    (place / "a").write_text("of the machine\n")
    user.own(place / "a")
    status = json.loads(box("status", "--json", "s").stdout)
    assert [Path(each["path"]).name for each in status["beneath"]] == ["a"]
    refused = box("apply", "s", check=False)
    assert f"{place}/a: was changed on this machine since" in refused.stderr
    (place / "a").unlink()
    box("apply", "s")
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "end", "in"]
    assert (place / "b").read_text() == "3\n"
    script = f"echo x > {place}/in/x; echo x > {place}/y"
    refused = box("try", "--only", place / "in", "--", "sh", "-c", script, check=False)
    assert "Read-only file system" in refused.stderr
    assert refused.stdout.splitlines()[-1].endswith(f"{place}/in/x")
    box("try", "-q", "--write", place / "in", "--", "sh", "-c", f"echo x > {place}/in/x")
    assert (place / "in" / "x").read_text() == "x\n"


@as_ordinary_user
def test_the_directory_of_only_is_found_in_the_session(box: Box, user: User) -> None:
    """If a session has a symlink there, it leads to the session's files, and never to the machine's."""
    place = user.home / "found"
    for name in ("in", "out"):
        (place / name).mkdir(parents=True)
    user.own(place)
    box("try", "-q", "--name", "o", "--only", place / "in", "--", "true")
    box("try", "-q", "--name", "p", "--", "sh", "-c", f"rmdir {place}/in; ln -s {place}/out {place}/in")
    box("merge", "p", "--into", "o")
    box("try", "-q", "--name", "o", "--", "sh", "-c", f"echo x > {place}/in/x")
    assert list((place / "out").iterdir()) == []
    assert f"A {place}/out/x" in box("diff", "o").stdout


def _environment(user: User) -> dict[str, str]:
    return {"UNIONFS_ROOT": str(user.home / "images")}
