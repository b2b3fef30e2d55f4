"""Letters and words for the change of a path and for the marks on it."""

from __future__ import annotations

from typing import Final

from layers.entry import OPAQUE
from layers.explore.tree_index import ADDED, BELOW, CHANGED, METADATA, REMOVED_HERE, SAME_HERE, TreeIndex

LETTERS: Final = {ADDED: "+", CHANGED: "~", METADATA: "m", REMOVED_HERE: "-", BELOW: ".", SAME_HERE: " "}
WORDS: Final = {
    ADDED: "added",
    CHANGED: "changed",
    METADATA: "only owner, mode, time or attributes changed",
    REMOVED_HERE: "removed",
    BELOW: "something below it changed",
    SAME_HERE: "unchanged",
}
OPAQUE_MARK: Final = "o"
REDIRECT_MARK: Final = "r"
METACOPY_MARK: Final = "a"
PARTIAL_MARK: Final = "p"
MARK_WORDS: Final = {
    OPAQUE_MARK: "opaque: hides all that lower layers have in the directory",
    REDIRECT_MARK: "redirect: shows the content of another path of the lower layers",
    METACOPY_MARK: "attributes only: the data is in a lower layer",
    PARTIAL_MARK: "partly copied: some of the data is in a lower layer",
}


def marks_of(tree: TreeIndex, node: int, level: int) -> str:
    """Return the letters of MARK_WORDS that apply to a path at a level."""
    found = set()
    for entry in tree.entries(node):
        if tree.since[entry] > level or tree.is_implied(entry):
            continue
        layer, record = tree.layers[tree.layer_of[entry]], tree.record_of[entry]
        if layer.kind_of(record) == OPAQUE:
            found.add(OPAQUE_MARK)
        elif tree.by[entry] > level:
            extra = layer.extra(record)
            found |= {mark for mark, name in _EXTRA.items() if name in extra}
    return "".join(sorted(found))


_EXTRA: Final = {REDIRECT_MARK: "redirect", METACOPY_MARK: "metacopy", PARTIAL_MARK: "partial"}
