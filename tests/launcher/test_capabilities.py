"""Names and numbers of capabilities, and the set that is chosen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unionfs.launcher.capabilities import NUMBERS, USUAL, chosen, mask

HEADER = Path("/usr/include/linux/capability.h")


def test_the_usual_set_is_the_one_docker_leaves() -> None:
    assert mask(USUAL) == 0xA80425FB


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers here (Debian package linux-libc-dev)")
def test_numbers_are_the_kernels() -> None:
    defined = dict(re.findall(r"^#define CAP_(\w+)\s+(\d+)$", HEADER.read_text(), re.MULTILINE))
    assert {name: int(number) for name, number in defined.items() if name in NUMBERS} == NUMBERS


@pytest.mark.parametrize(
    ("added", "dropped", "expected"),
    [
        ((), (), set(USUAL)),
        (("SYS_ADMIN",), (), {*USUAL, "SYS_ADMIN"}),
        (("cap_sys_admin",), ("CAP_MKNOD", "kill"), {*USUAL, "SYS_ADMIN"} - {"MKNOD", "KILL"}),
        ((), ("ALL",), set()),
        (("KILL",), ("all",), {"KILL"}),
        (("ALL",), (), set(NUMBERS)),
        (("ALL",), ("SYS_ADMIN",), set(NUMBERS) - {"SYS_ADMIN"}),
        (("ALL",), ("ALL",), set(NUMBERS)),
    ],
)
def test_added_and_dropped(added: tuple[str, ...], dropped: tuple[str, ...], expected: set[str]) -> None:
    assert set(chosen(added, dropped)) == expected


def test_a_capability_that_does_not_exist_is_named() -> None:
    with pytest.raises(KeyError, match="FLY"):
        chosen(("FLY",), ())
