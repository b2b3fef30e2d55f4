"""Uppers as the core really writes them.

After random steps on a union its upper says exactly what happened, and applying that to a copy of the lowers gives the
tree that the union showed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from tests.changes.applying import Setting
from tests.changes.test_listing import with_parents
from tests.changes.views import compared, listed
from tests.core.differential import Pair
from tests.core.flatten import flatten
from tests.core.layers_at_random import layers
from tests.core.native import Native
from tests.core.snapshots import Snapshot, snapshot
from tests.core.stack import Whiteout
from tests.core.test_against_model import MODEL_SETTINGS, UnionMachine
from unionfs.core.attrs import ROOT


class ChangesMachine(UnionMachine):
    """The steps of the core's own machine; at the end the upper is read and applied."""

    @initialize(
        lowers=st.lists(layers(), min_size=1, max_size=3),
        upper=st.just(""),
        whiteout=st.sampled_from(("aufs", "overlay")),
        caching=st.booleans(),
    )
    def start(self, lowers: list[str], upper: str, whiteout: str, caching: bool) -> None:
        lowers = [with_parents(text) for text in lowers]
        self.old_root = flatten(self.base / "old", list(reversed(lowers)))
        # An upper begins with the attributes of what it covers, as ContainerStore makes it.
        self.pair = Pair(self.base, lowers, "./", cast(Whiteout, whiteout), caching=caching)
        self.started = True
        self.here = self.pair.check()

    def restack(self) -> None:
        """Not here: the upper must stay one."""

    def freeze(self) -> None:
        """Not here, for the same reason."""

    def teardown(self) -> None:
        try:
            if self.started and sys.exc_info()[0] is None:
                self.examine()
        finally:
            super().teardown()

    def examine(self) -> None:
        pair = self.pair
        pair.close_handles()
        pair.stack.union.fsync(ROOT, False)  # completes the upper
        pair.check()
        upper, new_root = pair.stack.upper, self.base / "plain"
        assert upper is not None
        lines = [line for line in listed(upper, *pair.stack.lowers) if line != "C /"]
        assert lines == compared(self.old_root, new_root), pair.story()
        target = self.base / "target"
        subprocess.run(["cp", "-a", self.old_root, target], check=True)
        Setting(upper, target).apply()
        assert plain(target) == plain(new_root), pair.story()


def plain(root: Path) -> Snapshot:
    """Everything but the root's own time and the links from outside."""
    found = snapshot(Native(root))
    return {path: snap._replace(nlink=0) for path, snap in found.items() if path}


def test_the_upper_of_random_steps() -> None:
    before = os.umask(0)
    try:
        run_state_machine_as_test(
            ChangesMachine,
            settings=settings(MODEL_SETTINGS, max_examples=int(os.environ.get("CHANGES_EXAMPLES", "40"))),
        )
    finally:
        os.umask(before)
