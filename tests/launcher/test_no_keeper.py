"""--no-keeper of the verbs that make containers: kept in the record, and no process stays for the next daemon."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launcher.conftest import containers, processes
from tests.support import machine
from tests.support.users import User
from unionfs.cli import try_

pytestmark = pytest.mark.transport("kernel")


def _keepers(user: User) -> list[str]:
    return [name for name in processes(user).values() if name.startswith("unionfs-k:")]


@pytest.mark.skipif(machine.lacks_keeper() != "", reason=machine.lacks_keeper())
@pytest.mark.parametrize("flags", [(), ("--no-keeper",)])
def test_a_container_has_a_keeper_unless_told(user: User, debian: Path, tidy: None, flags: tuple[str, ...]) -> None:
    user = replace(user, env={**user.env, "UNIONFS_LINGER": "0"})  # a parent of mounts would be the keeper
    user.unionfs("create", "--name", "c", *flags, debian, "sleep", "1000")
    try:
        (directory,) = containers(user)
        record = json.loads((directory / "container.json").read_text())
        assert record["config"]["rootfs"]["keeper"] is not bool(flags)
        user.unionfs("start", "c")
        assert len(_keepers(user)) == (0 if flags else 1)
    finally:
        user.unionfs("rm", "--force", "c")


def test_try_has_the_flag_too() -> None:
    made = [try_.config_of(try_._parser().parse([*flags, "true"])) for flags in ((), ("--no-keeper",))]
    assert [config.rootfs.keeper for config in made] == [True, False]
