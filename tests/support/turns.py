"""`pytest --in-turns`: run only half of the combinations of users and transports of each test.

The number of the run (tests.support.share) selects the half, so that the next commits run the other ones. Used for
whole runs: `make test`. Tests that are chosen by name are run in all combinations.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict

import pytest

from tests.support import share

_KINDS = re.compile(r"(?<![a-z])(root|ordinary|one-id|user|userns|pyfuse3|kernel|passthrough|plain|scattered)(?![a-z])")
"""Words of a test's parameters: the users, transports and layouts of this suite."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--in-turns", action="store_true", help="half of the users and transports of each test, in turns")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "no_turns: runs in all combinations of users and transports each time")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the other half of the combinations."""
    if not config.getoption("in_turns") or share.EVERYTHING:
        return
    alike: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("no_turns"):
            continue
        name, _, parameters = item.nodeid.partition("[")
        alike[f"{name}[{_KINDS.sub('*', parameters)}"].append(item)
    dropped = {item for name, group in alike.items() for item in _dropped(name, group)}
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]


def _dropped(name: str, group: list[pytest.Item]) -> list[pytest.Item]:
    """Half of the group, rounded up, but not all of it; which half turns with the number of the run."""
    kept = max(1, len(group) // 2)
    first = zlib.crc32(name.encode()) + share.NUMBER
    return [item for number, item in enumerate(group) if (number + first) % len(group) >= kept]
