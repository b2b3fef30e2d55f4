"""Merge the indexes of the layers of a stack into one tree of all paths, with the entries of all layers at each path.

An entry shows from the layer `since` on, until the layer `by` hides it. So the tree of every level of the stack is in
one file: the entries with `since` <= level < `by`. The rules are those of `size_report`; a test compares the results.

The file has nodes and entries as columns (see `tree_index`). Nodes are numbered from the root down, level by level, and
those of one directory are neighbours, sorted by name. All this is kept in arrays and one dictionary for each directory:
a tree of objects would take 1 KB for each entry.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

from layers.entry import DIRECTORY, LINK, OPAQUE, WHITEOUT
from layers.errors import Refused
from layers.explore.columns import write
from layers.explore.layer_index import LACKING, LayerIndex

SHOWS: Final = 0
REPLACED: Final = 1  # by other data, or by a directory or file of another type
REMOVED: Final = 2  # by a whiteout or an opaque mark
SAME: Final = 3  # replaced by a file with the same data
MOVED: Final = 4  # the layer shows it at another path (redirect): nothing is wasted
KEPT: Final = 5  # its name is gone, its data shows: under another name, or below a metacopy file
WASTED: Final = (REPLACED, REMOVED, SAME)

NEVER: Final = 0xFFFF  # `by` of an entry that shows in the topmost layer
IMPLIED: Final = 0xFFFFFFFF  # `record` of a directory for which no layer has an entry, though one has entries below it
LAYERS_MAX: Final = 0xFFFE
NODES_MAX: Final = 10_000_000
"""Paths of a tree, of up to 400 bytes of memory each. One entry of a tar can have 2,000 directories in its path."""

_DIRECTORY: Final = DIRECTORY >> 12
_MARKS: Final = (WHITEOUT, OPAQUE)


def write_tree(layers: Sequence[LayerIndex], file: IO[bytes], about: dict[str, Any]) -> None:
    """Merge `layers`, bottom first, and write the columns to an empty file. Raises: ValueError for too many layers;
    Refused beyond NODES_MAX."""
    if len(layers) > LAYERS_MAX:
        raise ValueError(f"{len(layers)} layers")
    builder = _Builder(layers)
    for number in range(len(layers)):
        builder.add(number)
    builder.settle_links()
    builder.write(file, about)


class _Builder:
    """The tree so far. Nodes and entries are identified by their numbers."""

    def __init__(self, layers: Sequence[LayerIndex]) -> None:
        self._layers = layers
        self._names: list[bytes] = [b""]
        self._parents = array("i", [-1])
        self._below: list[dict[bytes, int] | None] = [None]  # of a directory: name -> node
        self._last = array("i", [-1])  # the newest entry of a node, -1: none
        self._top = array("i", [-1])  # the newest entry of a node that shows and is no mark, -1: none
        self._before = array("i")  # the entry of the same node that came before, -1: none
        self._layer, self._since, self._by = array("H"), array("H"), array("H")
        self._record, self._how, self._kind = array("I"), array("B"), array("b")
        self._stored = array("q")  # bytes that count where the entry stands
        self._node = array("i")
        self._links: dict[int, int] = {}  # entries of further names -> the entry of the file
        self._data_of: dict[int, int] = {}  # entries of further names that have the data of this entry
        self._directories: dict[bytes, int] = {}  # of the layer at hand: paths known to be directories

    # -- nodes --

    def _child(self, node: int, name: bytes) -> int:
        below = self._below[node]
        if below is None:
            below = self._below[node] = {}
        found = below.get(name)
        if found is None:
            found = below[name] = len(self._names)
            if found >= NODES_MAX:
                raise Refused("merging layers", "", f"they have more than {NODES_MAX} paths")
            self._names.append(name)
            self._parents.append(node)
            self._below.append(None)
            self._last.append(-1)
            self._top.append(-1)
        return found

    def _find(self, path: bytes) -> int:
        node = 0
        for name in path.split(b"/") if path else ():
            below = self._below[node]
            node = below.get(name, -1) if below is not None else -1
            if node < 0:
                return -1
        return node

    def _directory(self, path: bytes, number: int) -> int:
        """Return the node of a directory, visible from now on; files on its path are replaced by directories."""
        known = self._directories.get(path)
        if known is not None:
            return known
        node = 0
        self._show_directory(node, number)
        for name in path.split(b"/") if path else ():
            node = self._child(node, name)
            self._show_directory(node, number)
        self._directories[path] = node
        return node

    def _show_directory(self, node: int, number: int) -> None:
        top = self._top[node]
        if top >= 0 and self._kind[top] != _DIRECTORY:
            self._hide_entries(node, number, REPLACED)
            top = -1
        if top < 0:
            self._enter(node, number, IMPLIED, _DIRECTORY, 0)

    def _subtree(self, node: int) -> Iterator[int]:
        todo = [node]
        while todo:
            node = todo.pop()
            yield node
            below = self._below[node]
            if below:
                todo += below.values()

    # -- entries --

    def _enter(self, node: int, number: int, record: int, kind: int, stored: int, *, layer: int | None = None) -> int:
        entry = len(self._node)
        self._node.append(node)
        self._layer.append(number if layer is None else layer)
        self._since.append(number)
        self._by.append(NEVER)
        self._how.append(SHOWS)
        self._record.append(record)
        self._kind.append(kind)
        self._stored.append(stored)
        self._before.append(self._last[node])
        self._last[node] = entry
        if kind not in _MARKS:
            self._top[node] = entry
        return entry

    def _hide_entries(self, node: int, number: int, how: int) -> None:
        """Hide the visible entries of a node: of one file, or of a directory in several layers."""
        if self._top[node] < 0:
            return
        self._top[node] = -1
        entry = self._last[node]
        while entry >= 0:
            if self._by[entry] == NEVER and self._kind[entry] not in _MARKS:
                self._by[entry] = number
                self._how[entry] = how
            entry = self._before[entry]

    def _hide_below(self, node: int, number: int, how: int) -> None:
        for below in self._subtree(node):
            if below != node:
                self._hide_entries(below, number, how)

    # -- one layer --

    def add(self, number: int) -> None:
        """Add a layer on top. Its marks hide entries of lower layers only, wherever they stand in it."""
        layer = self._layers[number]
        self._directories = {}
        moved = self._moved(layer)
        for record, kind in enumerate(layer.kind):
            if kind in _MARKS:
                self._mark(layer, number, record)
        for path, tree in moved:
            self._place(path, tree, number)
        self._bring(layer, number)

    def _mark(self, layer: LayerIndex, number: int, record: int) -> None:
        path, kind = layer.path(record), layer.kind[record]
        node = self._find(path)
        if node < 0:
            node = 0
            for name in path.split(b"/"):
                node = self._child(node, name)
        elif kind == OPAQUE:
            self._hide_below(node, number, REMOVED)
        elif path:
            for below in self._subtree(node):
                self._hide_entries(below, number, REMOVED)
        self._enter(node, number, record, kind, 0)

    def _moved(self, layer: LayerIndex) -> list[tuple[bytes, list[tuple[bytes, int]]]]:
        """List redirected directories: the new path, and the visible entries below the old one, with their paths."""
        found = []
        for record in range(len(layer)) if layer.about["counts"]["redirects"] else ():
            redirect = layer.extra(record).get("redirect")
            if redirect is None:
                continue
            source = self._find(bytes.fromhex(redirect))
            if source >= 0:
                below = [(self._path(node, source), self._top[node]) for node in self._subtree(source)]
                found.append((layer.path(record), [(path, entry) for path, entry in below if entry >= 0]))
        return found

    def _path(self, node: int, top: int = 0) -> bytes:
        """The path of a node below `top`."""
        names = []
        while node != top:
            names.append(self._names[node])
            node = self._parents[node]
        return b"/".join(reversed(names))

    def _place(self, path: bytes, tree: Sequence[tuple[bytes, int]], number: int) -> None:
        """Show entries that were visible elsewhere at `path`, from this layer on."""
        old = self._find(path)
        for node in self._subtree(old) if old >= 0 else ():
            self._hide_entries(node, number, REPLACED)
        for below, entry in tree:
            whole = b"/".join(part for part in (path, below) if part)
            parent, _, name = whole.rpartition(b"/")
            node = self._child(self._directory(parent, number), name)
            if self._how[entry] == REMOVED and self._by[entry] == number:
                self._how[entry] = MOVED
            kind, stored = self._kind[entry], self._stored[entry]
            self._enter(node, number, self._record[entry], kind, stored, layer=self._layer[entry])

    def _bring(self, layer: LayerIndex, number: int) -> None:
        kinds, storeds, path_of = layer.kind, layer.stored, layer.path
        directories, top = self._directories, self._top
        for record in range(len(kinds)):
            kind = kinds[record]
            if kind in _MARKS:
                continue
            path = path_of(record)
            if kind == _DIRECTORY:
                self._bring_directory(path, number, record)
                continue
            if not path:
                continue
            parent, _, name = path.rpartition(b"/")
            directory = directories.get(parent)
            if directory is None:
                directory = self._directory(parent, number)
            node = self._child(directory, name)
            if self._below[node] or path in directories:
                self._hide_below(node, number, REPLACED)
                for gone in [known for known in directories if known == path or known.startswith(path + b"/")]:
                    del directories[gone]
            old = top[node]
            if old >= 0:
                self._hide_entries(node, number, self._cause(layer, record, old))
            entry = self._enter(node, number, record, kind, storeds[record])
            if kind == LINK:
                self._link(layer, number, record, entry)

    def _bring_directory(self, path: bytes, number: int, record: int) -> None:
        node = self._directory(path, number)
        last = self._top[node]
        if self._record[last] == IMPLIED and self._since[last] == number:  # that was entered just before
            self._record[last] = record
        else:
            self._enter(node, number, record, _DIRECTORY, 0)

    def _cause(self, layer: LayerIndex, record: int, old: int) -> int:
        """Return why a file of `layer` hides the entry `old`, which is visible at its path."""
        if self._kind[old] == _DIRECTORY:
            return REPLACED
        if layer.kind[record] != LINK and layer.stored[record] < layer.size[record]:
            extra = layer.extra(record)
            if any(name in extra for name in LACKING):
                return KEPT
        content = layer.content(record)
        return SAME if content and content == self._layers[self._layer[old]].content(self._record[old]) else REPLACED

    def _link(self, layer: LayerIndex, number: int, record: int, entry: int) -> None:
        target = self._find(bytes.fromhex(layer.extra(record)["link"]))
        file = self._top[target] if target >= 0 else -1
        if file >= 0 and self._layer[file] == number and self._kind[file] != _DIRECTORY:
            self._links[entry] = self._links.get(file, file)

    def settle_links(self) -> None:
        """Account the data of a file whose first name is hidden to a hard link that is still visible."""
        settled: set[int] = set()
        for link, file in self._links.items():
            if self._by[link] != NEVER or self._by[file] == NEVER or file in settled:
                continue
            settled.add(file)
            self._how[file] = KEPT
            hidden = self._by[file]
            self._data_of[link] = file
            if hidden == self._since[link]:  # two entries of one tar have the first name
                self._stored[link], self._stored[file] = self._stored[file], 0
                continue
            self._by[link], self._how[link] = hidden, KEPT
            node, layer = self._node[link], self._layer[link]
            carrying = self._enter(node, hidden, self._record[link], LINK, self._stored[file], layer=layer)
            self._data_of[carrying] = file

    # -- the file --

    def write(self, file: IO[bytes], about: dict[str, Any]) -> None:
        """Renumber the nodes, level by level, and write everything."""
        order, first, count = self._numbered()
        names, name_at = bytearray(), array("I", [0])
        parents = array("i")
        new = array("I", bytes(4 * len(order)))
        for number, node in enumerate(order):
            new[node] = number
            names += self._names[node]
            name_at.append(len(names))
            parents.append(new[self._parents[node]] if node else -1)
        self._names, self._below = [], []
        entries, entry_at = array("I"), array("I", [0])
        for node in order:
            here = []
            entry = self._last[node]
            while entry >= 0:
                here.append(entry)
                entry = self._before[entry]
            entries.extend(reversed(here))
            entry_at.append(len(entries))
        columns: dict[str, Any] = {
            "names": names, "name": name_at, "parent": parents, "first": first, "count": count, "entry": entry_at,
            "layer": array("H", [self._layer[e] for e in entries]),
            "record": array("I", [self._record[e] for e in entries]),
            "since": array("H", [self._since[e] for e in entries]),
            "by": array("H", [self._by[e] for e in entries]),
            "how": array("B", [self._how[e] for e in entries]),
            "stored": array("q", [self._stored[e] for e in entries]),
            "kind": array("b", [self._kind[e] for e in entries]),
            "node": array("I", [new[self._node[e]] for e in entries]),
        }  # fmt: skip
        columns |= _totals(columns)
        columns["effect"] = _effects(columns, len(self._layers))
        columns["wasted"] = _wasted(columns)
        columns |= self._duplicates(columns, entries)
        write(file, {**about, "nodes": len(order), "entries": len(entries)}, columns)

    def _numbered(self) -> tuple[array[int], array[int], array[int]]:
        """The nodes in their new order, and for each in that order its first child and their number."""
        order, first, count = array("I", [0]), array("I"), array("I")
        for node in order:  # grows meanwhile
            below = self._below[node]
            first.append(len(order))
            count.append(len(below) if below else 0)
            if below:
                order.extend([below[name] for name in sorted(below)])
        return order, first, count

    def _duplicates(self, columns: dict[str, Any], old_numbers: array[int]) -> dict[str, array[int]]:
        """Return groups of visible files with the same data, those that waste most first."""
        buckets = [array("I") for _ in range(256)]  # by the first byte of the digest: entry, record of its data
        layers, data_of = self._layers, self._data_of
        by, layer_of, record_of, stored = columns["by"], columns["layer"], columns["record"], columns["stored"]
        for entry, old in enumerate(old_numbers):
            if by[entry] != NEVER or not stored[entry]:
                continue
            data = data_of.get(old) if data_of else None
            record = record_of[entry] if data is None else self._record[data]
            content = layers[layer_of[entry]].content(record)
            if content:
                buckets[content[0]].extend((entry, record))
        found: list[array[int]] = []
        for bucket in buckets:  # one after the other: a dictionary of all would take 150 bytes for each
            groups: dict[tuple[bytes, int], array[int]] = {}
            for entry, record in zip(bucket[::2], bucket[1::2], strict=True):
                key = layers[layer_of[entry]].content(record), stored[entry]
                group = groups.get(key)
                if group is None:
                    groups[key] = array("I", [entry])
                else:
                    group.append(entry)
            found += [group for group in groups.values() if len(group) > 1]
        found.sort(key=lambda group: (-(len(group) - 1) * stored[group[0]], group[0]))
        members, at = array("I"), array("I", [0])
        for group in found:
            members.extend(group)
            at.append(len(members))
        return {"duplicate": members, "duplicates": at}


def _wasted(columns: dict[str, Any]) -> array[int]:
    """Return the hidden entries with bytes, the largest first."""
    how, stored = columns["how"], columns["stored"]
    found = [entry for entry in range(len(how)) if how[entry] in WASTED and stored[entry]]
    found.sort(key=lambda entry: (-stored[entry], entry))
    return array("I", found)


def _effects(columns: dict[str, Any], layers: int) -> array[int]:
    """For each layer the number of files (all entries except directories) that it adds, changes and removes."""
    kind, node, since, by = columns["kind"], columns["node"], columns["since"], columns["by"]
    added, changed, gone = [0] * layers, [0] * layers, [0] * (NEVER + 1)
    hidden = (-1, NEVER)  # the node and the hiding layer of the last entry that was hidden
    for entry in range(len(node)):
        if kind[entry] in _MARKS or kind[entry] == _DIRECTORY:
            continue
        layer = since[entry]
        if by[entry] == layer:  # one of two entries of one tar
            continue
        if hidden == (node[entry], layer):
            changed[layer] += 1
            gone[layer] -= 1
        else:
            added[layer] += 1
        gone[by[entry]] += 1
        hidden = (node[entry], by[entry])
    return array("I", [number for layer in range(layers) for number in (added[layer], changed[layer], gone[layer])])


def _totals(columns: dict[str, Any]) -> dict[str, array[int]]:
    """For each directory and each layer that changes something below it: the bytes and files (all entries except
    directories) that the layer brings, and the change of the visible ones."""
    parent, node_of, kind = columns["parent"], columns["node"], columns["kind"]
    layer_of, since, by, stored = columns["layer"], columns["since"], columns["by"], columns["stored"]
    sums: dict[int, dict[int, list[int]]] = {}
    for entry in range(len(node_of)):
        if kind[entry] in _MARKS:
            continue
        node, size = node_of[entry], stored[entry]
        one = kind[entry] != _DIRECTORY
        here = sums.setdefault(parent[node] if one or node == 0 else node, {}) if node else sums.setdefault(0, {})
        row = here.setdefault(since[entry], [0, 0, 0, 0])
        if since[entry] == layer_of[entry]:
            row[0] += size
            row[1] += one
        row[2] += size
        row[3] += one
        if by[entry] != NEVER:
            row = here.setdefault(by[entry], [0, 0, 0, 0])
            row[2] -= size
            row[3] -= one
    for node in sorted(sums, reverse=True):  # children have higher numbers
        if node == 0:
            break
        above = sums.setdefault(parent[node], {})
        for layer, row in sums[node].items():
            total = above.setdefault(layer, [0, 0, 0, 0])
            for at in range(4):
                total[at] += row[at]
    starts, layers, rows = array("I", [0]), array("H"), array("q")
    for node in range(len(parent)):
        for layer, row in sorted(sums.get(node, {}).items()):
            layers.append(layer)
            rows.extend(row)
        starts.append(len(layers))
    return {"total": starts, "total_layer": layers, "total_row": rows}
