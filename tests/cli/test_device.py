"""`unionfs run --device`: devices by the descriptions of the Container Device Interface, and by paths."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.users import User
from unionfs.containers import cdi
from unionfs.containers.errors import ContainerError

pytestmark = pytest.mark.usefixtures("fuse_device")

HOOK = """#!/usr/bin/python3
import json, os, sys
state = json.load(sys.stdin)
with open(os.path.join(state["bundle"], "config.json")) as file:
    root = json.load(file)["root"]["path"]
there = sorted(os.listdir(os.path.join(root, "lib/firm"))) if sys.argv[1] == "createContainer" else []
with open(sys.argv[2], "a") as file:
    print(sys.argv[1], state["status"], "pid" in state, there, os.environ.get("LEVEL"), file=file)
if sys.argv[1] == "createContainer":
    with open(os.path.join(root, "etc/ld.so.cache.new"), "w") as file:
        file.write("cache")
"""
YAML = """
cdiVersion: 0.5.0
kind: example.com/card
annotations: {by: hand}
containerEdits: {env: [CARDS=some]}
devices:
- name: "0"
  containerEdits:
    deviceNodes: [{path: /dev/card0, hostPath: /dev/full, permissions: rwm, fileMode: 0666}]
    additionalGIDs: null
- name: all
  containerEdits: {deviceNodes: [{path: /dev/full}, {path: /dev/other/card1, hostPath: /dev/zero}]}
"""


def description(**members: Any) -> dict[str, Any]:
    return {"cdiVersion": "1.0.0", "kind": "example.com/gpu", "devices": [], **members}


def test_devices_mounts_variables_and_hooks(user: User, debian: Callable[[User], Path], run_dir: Path) -> None:
    here = run_dir / f"cdi-{user.name}"
    (here / "firm").mkdir(parents=True)
    (here / "firm/ware").touch()
    (here / "hook").write_text(HOOK)
    (here / "hook").chmod(0o755)
    told = user.home / "hooks-told"
    points = ("createRuntime", "createContainer", "poststart", "poststop")
    hooks = [
        {"hookName": name, "path": str(here / "hook"), "args": ["hook", name, str(told)], "env": ["LEVEL=3"]}
        for name in points
    ]
    hooks.append({"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", "cat > /etc/started"]})
    edits = {
        "env": ["GPU=void", "PATH_TO=/x=y"],
        "mounts": [{"hostPath": str(here / "firm"), "containerPath": "/usr/lib/firm", "options": ["ro", "nosuid"]}],
        "hooks": hooks,
    }
    (here / "gpu.json").write_text(json.dumps(description(devices=[{"name": "0", "containerEdits": edits}])))
    (here / "card.yaml").write_text(YAML)
    words = ["--device", "example.com/gpu=0", "--device", "example.com/card=0", "--device", "example.com/card=all"]
    look = (
        "echo $CARDS $GPU $PATH_TO; ls /lib/firm; touch /lib/firm/x 2>&1 | grep -c Read-only; cat /etc/ld.so.cache.new;"
        " grep -c '\"created\"' /etc/started; stat -c '%t:%T %n' /dev/card0 /dev/full /dev/other/card1 /dev/mine;"
        " head -c 2 /dev/other/card1 | od -An -tx1; echo x > /dev/card0 || echo full"
    )
    flags = ("-e", "GPU=1", "--cdi-spec-dir", str(here), *words, "--device", "/dev/zero:/dev/mine")
    ran = user.unionfs("run", "--rm", *flags, debian(user), "sh", "-c", look, check=False)
    assert ran.stdout.splitlines() == [
        *("some void /x=y", "ware", "1", "cache1"),
        *("1:7 /dev/card0", "1:7 /dev/full", "1:5 /dev/other/card1", "1:5 /dev/mine", " 00 00", "full"),
    ], ran.stderr
    assert told.read_text().splitlines() == [
        "createRuntime creating True [] 3",
        "createContainer creating True ['ware'] 3",
        "poststart running True [] 3",
        "poststop stopped False [] 3",
    ]
    told.unlink()
    assert not (debian(user) / "etc/started").exists()


def test_a_hook_that_fails_and_one_that_mounts(
    ordinary_user: User, debian: Callable[[User], Path], run_dir: Path
) -> None:
    here = run_dir / "cdi-mounts"
    here.mkdir()
    script = 'cd "$(python3 -c "import json,sys; print(json.load(sys.stdin)[\'bundle\'])")"/../merged && {}'
    devices = [
        {
            "name": name,
            "containerEdits": {
                "hooks": [
                    {
                        "hookName": "createContainer",
                        "path": "/bin/sh",
                        "args": ["sh", "-c", script.format(command)],
                        "env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
                    }
                ]
            },
        }
        for name, command in (("good", "mount -t tmpfs made mnt && echo in > mnt/side"), ("bad", "echo why; exit 3"))
    ]
    (here / "gpu.json").write_text(json.dumps(description(devices=devices)))

    def run(name: str) -> tuple[int, str, str]:
        words = ("run", "--rm", "--cdi-spec-dir", here, "--device", f"example.com/gpu={name}", debian(ordinary_user))
        ran = ordinary_user.unionfs(*words, "cat", "/mnt/side", check=False)
        return ran.returncode, ran.stdout, ran.stderr

    assert run("good") == (0, "in\n", "")
    status, _, said = run("bad")
    assert status == 125
    assert re.search(r"the createContainer hook /bin/sh failed: exit status 3, stdout and stderr: why", said)
    assert json.loads(ordinary_user.unionfs("ps", "-a", "--json").stdout) == []


def test_the_later_directory_wins_and_two_files_of_one_do_not(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for directory, value in ((first, "A=1"), (second, "A=2")):
        directory.mkdir()
        device = {"name": "0", "containerEdits": {"env": [value]}}
        (directory / "x.json").write_text(json.dumps(description(devices=[device])))
    directories = (str(first), str(second))
    assert cdi.resolve(["example.com/gpu=0"], directories).env == ("A=2",)
    (second / "y.json").write_bytes((second / "x.json").read_bytes())
    with pytest.raises(ContainerError, match=rf"described twice, by {second}/x\.json and {second}/y\.json"):
        cdi.resolve(["example.com/gpu=0"], directories)


def test_an_unknown_device_name(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "newer.yaml").write_text("cdiVersion: 9.0.0\n")
    (tmp_path / "ok.json").write_text(json.dumps(description(devices=[{"name": "1", "containerEdits": {}}])))
    with pytest.raises(ContainerError) as failed:
        cdi.resolve(["example.com/gpu=0"], ("/nowhere", os.fspath(tmp_path)))
    said = str(failed.value)
    assert f"{tmp_path} has 4 files" in said
    assert "/nowhere does not exist" in said
    for name in ("broken.json", "broken.yaml", "newer.yaml"):
        assert f"{tmp_path}/{name} cannot be used" in said
    assert "cdiVersion is '9.0.0', and versions 0.3.0 to 1.1.0 are read" in said
    assert failed.value.hint == "devices of example.com/gpu: example.com/gpu=1"


@pytest.mark.parametrize(
    ("edits", "why"),
    [
        ({"intelRdt": {}}, "'containerEdits.intelRdt' is unknown"),
        ({"deviceNodes": [{"path": "dev/x"}]}, "'dev/x' is not an absolute path"),
        ({"deviceNodes": [{"path": "/dev/x", "permissions": "r"}]}, "only rw and rwm are possible"),
        ({"deviceNodes": [{}]}, "'containerEdits.deviceNodes.path' is missing"),
        ({"mounts": [{"hostPath": "/x", "containerPath": "/"}]}, "'/' is not an absolute path below /"),
        ({"mounts": [{"hostPath": "/x", "containerPath": "/y", "type": "tmpfs"}]}, "type 'tmpfs' is not possible"),
        ({"hooks": [{"hookName": "later", "path": "/x"}]}, "hookName 'later' is not one of"),
        ({"env": ["=x"]}, "'=x' is not NAME=VALUE"),
    ],
)
def test_what_a_container_cannot_be_given(edits: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        cdi.parse(description(containerEdits=edits))


def test_paths_that_are_no_devices(ordinary_user: User) -> None:
    for words, why in (
        (["--device", "/etc/passwd"], "it is no device node"),
        (["--device", "/dev/null:/dev/x:r"], "only rw and rwm are possible"),
        (["--device", "nvidia"], "it is not VENDOR/CLASS=NAME, nor a path"),
        (["--device", "/dev/null", "--runtime", "true"], "exclude each other"),
    ):
        refused = ordinary_user.unionfs("run", *words, "/", "true", check=False)
        assert refused.returncode == 125
        assert why in refused.stderr
