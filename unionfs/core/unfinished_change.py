"""A change of the branches during which the daemon may die: the next one finishes or undoes it.

The keeper gets the intended change (`announce`), then the record of nodes says that it is under way
(NodeRecord.begin_changing), and at last the keeper gets the new branches.

Lowers are replaced in slices between requests, so programs may have seen both stacks. The next daemon makes all nodes
from the old stack, in which the recorded names are valid, and repeats the whole change. The kernel gets the same
invalidations again.

A freeze is one slice: no request is answered between its first step on disk and the moment in which the keeper knows
the new branches. So the next daemon undoes its steps, and continues with the old ones.
"""

from __future__ import annotations

import os
from contextlib import suppress

from unionfs.core.attrs import Invalidation
from unionfs.core.branch import Branch
from unionfs.core.branches import Restack
from unionfs.core.freeze import Freeze, take_back
from unionfs.core.handover import Change
from unionfs.core.staging import log_warning
from unionfs.core.union import Union


def announce(union: Union, change: list[Branch] | Freeze | None) -> None:
    """Set the change that takeover.opened describes and that is about to be made: new lowers, or a prepared freeze.
    None: no change is pending."""
    if isinstance(change, Freeze):
        union._tree.change = Change([], change.described())
    else:
        union._tree.change = None if change is None else Change(change)


def undo_freeze(union: Union) -> None:
    """Undo the steps of a freeze that a dead daemon had begun. Before takeover.take_over. Can be repeated. Raises
    OSError."""
    tree = union._tree
    record, change = tree.nodes.record, tree.change
    if change is None or change.freeze is None or record is None or not record.is_changing:
        return
    take_back(tree, change.freeze)
    tree.change = None
    record.outdate(False)


def finish(union: Union) -> list[Invalidation] | None:
    """Make the change of the lowers that a dead daemon had begun. After takeover.take_over. Returns the invalidations
    for the kernel, to be sent before the keeper is given the new branches; None: no change was begun."""
    tree = union._tree
    record, change = tree.nodes.record, tree.change
    assert record is not None
    stale: list[Invalidation] = []
    if not record.is_changing or change is None:
        tree.change = None
        record.outdate(record.is_outdated)  # the keeper has the new branches already
        return None
    job = Restack(union, change.lowers, stale.extend)
    try:
        while job.work():
            pass
    except OSError as error:  # a root cannot be read any more: nothing has been changed
        log_warning("the branches stay as they were: %s", error)
        tree.change = None
        record.outdate(False)
        return None
    return stale


def close(union: Union) -> None:
    """Close the descriptors of a union that a keeper no longer keeps, and leave its work directory as it is."""
    tree = union._tree
    staging = tree._staging
    branches = [*tree.opened, *tree.lowers.branches, *(tree.change.lowers if tree.change is not None else ())]
    if staging is not None and tree.upper is not None:
        branches += [tree.upper, staging.branch]
        with suppress(OSError):
            os.close(staging.let_go())
    tree.fds.clear()
    for branch in branches:
        branch.root.held = branch.private = None  # branch and root refer to each other
