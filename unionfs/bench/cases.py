"""Define the questions about copy-up, as series of points, and the size of a run. Values only; nothing runs here.

A series is one picture: one trigger or several, one variable (x), one filesystem, warm or cold. It consists of groups:
the points of a group are measured in one mount with the same lowers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

KB: Final = 1 << 10
MB: Final = 1 << 20
GB: Final = 1 << 30

SIZES: Final = (4 * KB, 64 * KB, 1 * MB, 16 * MB, 256 * MB, 1 * GB, 4 * GB)
BIG: Final = 256 * MB
"""From this size on a file has a mount of its own, fewer rounds, and is removed at once."""

APPEND: Final = "append"
MIDDLE: Final = "middle"
SYNCED: Final = "synced"
TRUNCATE: Final = "truncate"
CHMOD: Final = "chmod"
CHOWN: Final = "chown"
SETXATTR: Final = "setxattr"
RENAME: Final = "rename"
LINK: Final = "link"
CHMOD_TREE: Final = "chmod -R"
APPEND_TREE: Final = "append to each"
CHOWN_TREE: Final = "chown -R"
RANDOM: Final = "random"
SEQUENTIAL: Final = "sequential"
READ_AFTER: Final = "read after"
SHARED: Final = "shared"

TRIGGERS: Final = {
    APPEND: "append 1 byte",
    MIDDLE: "write 4 kB in the middle",
    TRUNCATE: "truncate to half",
    CHMOD: "chmod",
    CHOWN: "chown",
    SETXATTR: "setxattr",
    RENAME: "rename",
    LINK: "link",
    CHMOD_TREE: "chmod -R",
    APPEND_TREE: "append 1 byte to each",
    CHOWN_TREE: "chown -R",
    RANDOM: "write 4 kB at random places",
    SEQUENTIAL: "write 64 kB after 64 kB",
    READ_AFTER: "read the whole file after writes of 4 kB at random places",
    SHARED: "read through two mounts",
    SYNCED: "write 4 kB in the middle, fsync",
}
"""The changes of a lower file, in words."""

WARM: Final = "warm"
COLD: Final = "cold"

THIN: Final = "thin"  # filesystems.THIN
MAIN: Final = "main"
"""Replaced by the first filesystem of a run."""

_TRIGGERS_SIZE: Final = 16 * MB
_SPARSE_DATA: Final = 1 * MB
_LINKED_SIZE: Final = 64 * KB
_SMALL: Final = 1 * KB  # of each file of a storm
_SHARED_SIZE: Final = 64 * MB
_LAYERS_FILE: Final = 4 * KB
_LARGE: Final = 16 * MB  # of each file of a tree of large ones


@dataclass(frozen=True, slots=True)
class Point:
    """One first write. `path` is the file in the lower, or the tree that is changed as a whole."""

    x: float
    path: str
    trigger: str
    size: int  # of the file, or of all files of the tree
    files: int = 1
    label: str = ""  # of x, where it is not a number


@dataclass(frozen=True, slots=True)
class Group:
    """Points that share a mount."""

    lowers: Sequence[str]  # paths below the lowers' directory of the ground, top first
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Series:
    """The points of one picture."""

    name: str  # its name for --only
    title: str
    axis: str  # title of the x axis, with its unit
    groups: Sequence[Group]
    unit: str = ""  # of x: "B" for bytes, else a plain number; "name" for labels
    ground: str = MAIN
    cache: str = WARM
    per_file: bool = False  # whether the figure is the time over the number of files
    layered: bool = False  # whether x is about layers, of which a copy or a snapshot has none
    rounds: int = 0  # maximum number of rounds; 0: that of the run

    @property
    def points(self) -> Iterator[Point]:
        """Yield all points of all groups."""
        for group in self.groups:
            yield from group.points


@dataclass(frozen=True, slots=True)
class RunSize:
    """The sizes and numbers of a run. The defaults are those of the full one."""

    sizes: Sequence[int] = SIZES
    cold_to: int = 256 * MB
    triggers_size: int = _TRIGGERS_SIZE
    depths: Sequence[int] = (1, 4, 16, 64)
    layers: Sequence[int] = (1, 8, 64, 256)
    storm: Sequence[int] = (100, 1000, 10_000)
    sparse: Sequence[int] = (1 * MB, 16 * MB, 256 * MB, 1 * GB)
    links: Sequence[int] = (1, 10, 100, 1000)
    shared_size: int = _SHARED_SIZE
    part_size: int = 256 * MB
    parts: Sequence[float] = (0.1, 1, 10, 50, 100)  # percent of a file that is written
    large_files: Sequence[int] = (1, 8, 32)
    large_size: int = _LARGE
    rounds: int = 5
    minutes: float = 9.0
    filesystems: Sequence[str] = field(default=("ext4", "xfs", "btrfs", "tmpfs"))


FULL: Final = RunSize()
QUICK: Final = RunSize(
    sizes=SIZES[:4],
    cold_to=16 * MB,
    triggers_size=4 * MB,
    depths=(1, 16),
    layers=(1, 32),
    storm=(100, 1000),
    sparse=(1 * MB, 64 * MB),
    links=(1, 100),
    shared_size=16 * MB,
    part_size=16 * MB,
    parts=(1, 10, 100),
    large_files=(1, 4),
    rounds=2,
    minutes=0.9,
)


def all_series(run_size: RunSize) -> list[Series]:
    """Return the series of a run, the most important first: if the time is used up, the last ones are left out."""
    found = []
    for ground in run_size.filesystems:
        groups = list(_by_size(run_size.sizes, MIDDLE))
        title = "4 kB written in the middle of a file, by its size"
        found.append(Series(f"size-{ground}", title, "file size", groups, unit="B", ground=ground))
        if THIN in run_size.filesystems:  # a block device copies when data are written to it, not to the page cache
            groups = list(_by_size(run_size.sizes, SYNCED))
            found.append(Series(f"sync-{ground}", f"{title}, and fsync", "file size", groups, unit="B", ground=ground))
    found.append(_storm("storm", CHMOD_TREE, run_size.storm))
    found.append(
        Series(
            "trigger",
            f"what triggers it, a file of {words(run_size.triggers_size)}",
            "",
            [
                Group(
                    ["trigger"],
                    [
                        Point(number, f"t{number}", trigger, run_size.triggers_size, label=TRIGGERS[trigger])
                        for number, trigger in enumerate(list(TRIGGERS)[:8])
                    ],
                )
            ],
            unit="name",
        )
    )
    cold = [size for size in run_size.sizes if size <= run_size.cold_to]
    title = "4 kB written in the middle of a file that is not in the page cache, by its size"
    found.append(Series("size-cold", title, "file size", list(_by_size(cold, MIDDLE)), unit="B", cache=COLD))
    found += [_parts(run_size, name, trigger) for name, trigger in _PARTS]
    found.append(_chown(run_size.large_files, run_size.large_size))
    points = [Point(depth, "/".join(["d"] * depth) + f"/f{depth}", APPEND, 4 * KB) for depth in run_size.depths]
    found.append(
        Series(
            "depth",
            "1 byte appended to a file of 4 kB, by its depth",
            "directories above the file",
            [Group([f"depth-{point.x}"], [point]) for point in points],
        )
    )
    found.append(_storm("storm-append", APPEND_TREE, run_size.storm[:2]))
    found.append(_layers(run_size))
    found.append(_layer(run_size))
    found.append(
        Series(
            "sparse",
            "4 kB written in a file of 1 MB of data and a hole, by its size",
            "file size, the hole included",
            [Group(["sparse"], [Point(size, f"s{size}", MIDDLE, size) for size in run_size.sparse])],
            unit="B",
            rounds=3,
        )
    )
    found.append(
        Series(
            "links",
            f"1 byte appended to a file of {words(_LINKED_SIZE)}, by the number of its names",
            "hard links",
            [Group(["links"], [Point(count, f"l{count}/n0", APPEND, _LINKED_SIZE) for count in run_size.links])],
        )
    )
    found.append(_sharing("sharing", MAIN, run_size))
    if "btrfs" in run_size.filesystems[1:]:
        found.append(_sharing("sharing-btrfs", "btrfs", run_size))
    return found


def _by_size(sizes: Sequence[int], trigger: str) -> Iterator[Group]:
    small = [Point(size, f"f{size}", trigger, size) for size in sizes if size < BIG]
    if small:
        yield Group(["sizes"], small)
    for size in sizes:
        if size >= BIG:
            yield Group(["sizes"], [Point(size, f"f{size}", trigger, size)])


def _storm(name: str, trigger: str, counts: Sequence[int]) -> Series:
    groups = [Group([f"storm-{count}"], [Point(count, "tree", trigger, count * _SMALL, count)]) for count in counts]
    return Series(
        name,
        f"{TRIGGERS[trigger]} of many files of {words(_SMALL)}, by their number: time for each file",
        "files",
        groups,
        per_file=True,
        rounds=3,
    )


_PARTS: Final = (("random", RANDOM), ("sequential", SEQUENTIAL), ("read-after", READ_AFTER))


def _parts(run_size: RunSize, name: str, trigger: str) -> Series:
    points = [Point(percent, "f", trigger, run_size.part_size) for percent in run_size.parts]
    return Series(
        name,
        f"{TRIGGERS[trigger]} of a file of {words(run_size.part_size)}, by the share that is written",
        "percent of the file",
        [Group(["part"], [point]) for point in points],
        rounds=3,
    )


def _chown(counts: Sequence[int], size: int) -> Series:
    groups = [Group([f"large-{count}"], [Point(count, "tree", CHOWN_TREE, count * size, count)]) for count in counts]
    title = f"{TRIGGERS[CHOWN_TREE]} of files of {words(size)}, by their number: time for each file"
    return Series("chown", title, "files", groups, per_file=True, rounds=3)


def _layers(run_size: RunSize) -> Series:
    groups = [
        Group(
            [f"layers-{count}/{number}" for number in range(count)],
            [Point(count, f"d/f{count - 1}", APPEND, _LAYERS_FILE)],
        )
        for count in run_size.layers
    ]
    return Series(
        "layers",
        "1 byte appended to a file of 4 kB in the lowest layer, by the number of layers",
        "layers",
        groups,
        layered=True,
    )


def _layer(run_size: RunSize) -> Series:
    count = run_size.layers[-1]
    places = sorted({1, max(1, count // 16), max(1, count // 4), count})
    points = [Point(place, f"d/f{place - 1}", APPEND, _LAYERS_FILE) for place in places]
    lowers = [f"layers-{count}/{number}" for number in range(count)]
    return Series(
        "layer",
        f"1 byte appended to a file of 4 kB, by which of {count} layers has it",
        "layer that has the file, 1 is the top",
        [Group(lowers, points)],
        layered=True,
    )


def _sharing(name: str, ground: str, run_size: RunSize) -> Series:
    title = f"a file of {words(run_size.shared_size)} read through one mount: how much of it a second mount has"
    point = Point(0, "shared", SHARED, run_size.shared_size, label="in the page cache")
    return Series(name, title, "", [Group(["sharing"], [point])], unit="name", ground=ground, rounds=1)


def words(size: float) -> str:
    """Return a size in words: "4 kB", "1.5 GB"; kB and so on are powers of 1024, as file sizes here are."""
    for unit, factor in (("GB", GB), ("MB", MB), ("kB", KB)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
