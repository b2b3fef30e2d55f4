"""The record of a container: what is written is read, field by field, and anything else is refused with its reason."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from unionfs.containers import record
from unionfs.containers.config import ContainerConfig, Image, Mounts, Network, RootFilesystem, Volume
from unionfs.containers.record import Container, Facts, State
from unionfs.id_ranges import IdRange
from unionfs.launcher.resources import Limit
from unionfs.launcher.spec import Port, Process, Tmpfs

ID = "0123456789abcdef" * 2
CONTAINER = Container(
    "/store",
    ID,
    "web",
    1.5,
    ContainerConfig(
        Process(("sh", "\udcfe\n"), (("A", "1"),), "www-data", "/srv", limits=(Limit("nofile", 5, -1),)),
        RootFilesystem(("/a\udcff", "/b"), driver="overlay", read_only=True),
        Mounts(
            (Volume("/x", "/y", overlay=True), Volume("/s", "/d", name="v")), ("/anonymous",), (Tmpfs("/t", "size=1"),)
        ),
        Network(True, "pasta", (Port("", 80, 8080, "tcp"),), (("name", "1.2.3.4"),), ("9.9.9.9",)),
        Image("debian:12", "sha256:0", "application/x", ("80/tcp",)),
        labels=(("a", "1"),),
        remove=True,
    ),
    Facts((IdRange(0, 5, 1), IdRange(1, 9, 3)), (IdRange(0, 7, 1),), hidden=("/x\udcff",), mountpoint_lower=True),
    State("exited", 3, began_ns=5, ended=2.5),
)


def test_a_record_is_read_as_it_was_written() -> None:
    assert record.from_json("/store", ID, record.to_json(CONTAINER)) == CONTAINER
    plain = record.new("/store", ContainerConfig(Process(("true",)), RootFilesystem(("/",))))
    assert record.from_json("/store", plain.id, record.to_json(plain._replace(name="x"))).config == plain.config


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("version",), 2, "it has version 2, and this unionfs reads version 1"),
        (("colour",), "green", "'colour' is unknown"),
        (("config", "rootfs", "lowers"), "/", "'config.rootfs.lowers' is not a list"),
        (("config", "rootfs", "lowers"), [], "it has no lower directory"),
        (("config", "rootfs", "lowers"), [1], "'config.rootfs.lowers' is not of type str"),
        (("config", "rootfs", "driver"), "zfs", "'config.rootfs.driver' is not one of fuse, overlay, vfs, btrfs"),
        (("config", "process"), None, "config.process is not an object"),
        (("config", "process", "terminal"), 1, "'config.process.terminal' is not of type bool"),
        (("config", "labels"), [["a"]], "'config.labels' has 1 items instead of 2"),
        (("config", "kind"), "jail", "'config.kind' is not one of run, try"),
        (("facts", "uid_map"), [[0, 1, 2]], "facts.uid_map is not an object"),
        (("state", "pid"), True, "'state.pid' is not of type int"),
        (("state", "status"), "paused", "'state.status' is not one of created, starting, running, exited"),
        (("name",), "\x1b[2J", "'name' is not allowed as a name"),
        (("id",), "0" * 32, "it is the record of another container"),
    ],
)
def test_anything_else_is_refused(path: tuple[str, ...], value: Any, why: str) -> None:
    values = json.loads(record.to_json(CONTAINER))
    where = values
    for name in path[:-1]:
        where = where[name]
    where[path[-1]] = value
    with pytest.raises(ValueError, match="^" + why.replace("[", r"\[")):
        record.from_json("/store", ID, json.dumps(values))


def test_a_field_that_is_newer_than_the_record_has_its_default() -> None:
    values = json.loads(record.to_json(CONTAINER))
    assert values["config"]["rootfs"].pop("passthrough") is False
    assert values["config"]["rootfs"].pop("keeper") is True
    assert record.from_json(CONTAINER.root, CONTAINER.id, json.dumps(values)) == CONTAINER


def test_a_field_that_is_missing_is_named() -> None:
    values = json.loads(record.to_json(CONTAINER))
    del values["config"]["network"]["uplink"]
    with pytest.raises(ValueError, match=r"^'config\.network\.uplink' is missing$"):
        record.from_json("/store", ID, json.dumps(values))


def test_abandoned_containers_ran_on_this_machine_and_should_have_been_removed() -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found = {}
    for where, here, removes in (("here", boot, True), ("kept", boot, False), ("elsewhere", "another-boot", True)):
        config = ContainerConfig(Process(("true",)), RootFilesystem(("/",)), remove=removes)
        dead = State("running", pid=2**22 + 1, pid_started=f"{here}:1", monitor=2**22 + 2, monitor_started=f"{here}:1")
        found[where] = record.new("/store", config)._replace(state=dead).is_abandoned()
    assert found == {"here": True, "kept": False, "elsewhere": False}
    alive = State("running", pid=os.getpid(), pid_started=record.process_started(os.getpid()))
    config = ContainerConfig(Process(("true",)), RootFilesystem(("/",)), remove=True)
    assert not record.new("/store", config)._replace(state=alive).is_abandoned()
