"""A daemon of an ordinary user is killed while it has widened a mode: the next one, or the next mount, restores it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.core.children import KILLED, as_user, expect, in_child
from tests.core.conftest import needs_root
from tests.core.faults import Faults
from tests.core.stack import Stack
from tests.core.union_driver import UnionDriver
from unionfs.core import takeover

pytestmark = needs_root

_NOBODY = 65534
_LOWER = "d/:0555 d/f=1 d/e/:0555 d/e/h=2 m/:0555 m/x=3"
_UPPER = "free/ own/:0555 own/y=4 shut/:0000 secret=5:0000"

_VERBS: dict[str, Callable[[UnionDriver], object]] = {
    "copy-up": lambda u: u.write("d/e/h", 0, b"new"),
    "move": lambda u: u.rename("m", "moved"),
    "move to another directory": lambda u: u.rename("own", "free/own"),
    "remove": lambda u: u.rmdir("shut"),
    "read": lambda u: u.read("secret"),
}
_MODES = {"d": 0o555, "e": 0o555, "m": 0o555, "moved": 0o555, "own": 0o555, "shut": 0, "secret": 0}


@pytest.mark.parametrize("verb", _VERBS)
@pytest.mark.parametrize("way", ["takeover", "next mount"])
def test_a_mode_is_what_it_was(verb: str, way: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, _NOBODY, _NOBODY)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    os.umask(0)
    as_user(_NOBODY, _NOBODY, partial(_die_at_every_step, home, _VERBS[verb], way))


def _die_at_every_step(home: Path, verb: Callable[[UnionDriver], object], way: str) -> None:
    widened = 0
    for at in range(1, 199):
        os.umask(0)
        stack = Stack(home / str(at), _LOWER, upper=_UPPER, keeps=way == "takeover")
        if way == "takeover":
            assert stack.union.node_count
        child = in_child(partial(_die, stack, verb, at))
        assert child.error is None, child.error
        assert stack.upper is not None
        widened += _modes(stack.upper) != _modes_wanted(stack.upper)
        if way == "takeover":
            expect(in_child(partial(_take_over, stack)))
        else:
            stack.u.exists("d")
        assert _modes(stack.upper) == _modes_wanted(stack.upper), at
        if child.status != KILLED:
            assert at > 2
            assert widened
            return
    raise AssertionError("it does not end")


def _die(stack: Stack, verb: Callable[[UnionDriver], object], at: int) -> None:
    driver = stack.u
    faults = Faults()
    faults.install()
    faults.arm("kill", at)
    verb(driver)
    faults.disarm()


def _take_over(stack: Stack) -> None:
    takeover.take_over(stack.union)


def _modes(upper: Path) -> dict[str, int]:
    found = {}
    for name in ("d", "d/e", "m", "moved", "own", "shut", "secret", "free/own"):
        try:
            found[name] = stat.S_IMODE(os.lstat(upper / name).st_mode)
        except OSError:
            continue
    return found


def _modes_wanted(upper: Path) -> dict[str, int]:
    return {name: _MODES[os.path.basename(name)] for name in _modes(upper)}
