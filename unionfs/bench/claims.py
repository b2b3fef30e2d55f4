"""List claims about copy-up by file and by block, with the figure of a run beside each.

Each claim is paraphrased and names its source. Every figure comes from the run; if the run has none, the text says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from unionfs.bench import systems
from unionfs.bench.cases import TRIGGERS, words
from unionfs.bench.summary import Found, duration, series_of

_DOCKER: Final = "https://github.com/docker/docs/blob/main/content/manuals/engine/storage/drivers/"
_DOCKER_OLD: Final = _DOCKER.replace("/main/", "/9e16ee6e9de35a21c48541792e40a225907b6990/")
_NOT_MEASURED: Final = "not measured in this run"


class Claim(NamedTuple):
    """One claim, and the function that finds its figure in a run."""

    says: str
    source: str
    url: str
    figure: Callable[[Found], str]


class Answer(NamedTuple):
    """A claim with the figure of a run."""

    claim: Claim
    figure: str


def answers(found: Found) -> list[Answer]:
    """Return every claim with its figure."""
    return [Answer(claim, claim.figure(found) or _NOT_MEASURED) for claim in CLAIMS]


def _whole_file(found: Found) -> str:
    parts = []
    for ground in ("ext4", "xfs", "btrfs"):
        point = _largest(found, f"size-{ground}")
        by_system = [_figure_of(point, system) for system in (systems.OURS, systems.OVERLAYFS)]
        if point is not None and any(by_system):
            parts.append(f"{words(point['x'])} on {ground}: {'; '.join(filter(None, by_system))}")
    return _sentence(parts)


def _grows(found: Found) -> str:
    parts = []
    for name in _SIZES:
        series = series_of(found, name)
        if series is None:
            continue
        first, last = series["points"][0], series["points"][-1]
        for system in (systems.OURS, systems.OVERLAYFS):
            if system in first["systems"] and system in last["systems"]:
                small, large = (point["systems"][system]["median"] for point in (first, last))
                sizes = f"{words(first['x'])} {duration(small)}, {words(last['x'])} {duration(large)}"
                parts.append(f"{system} on {series['ground']}: {sizes}")
    return _sentence(parts)


def _second_write(found: Found) -> str:
    parts = []
    for system in (systems.OURS, systems.FUSE_OVERLAYFS, systems.OVERLAYFS):
        point = _largest(found, _first_there(found))
        if point is not None and "again" in point["systems"].get(system, {}):
            figures = point["systems"][system]
            parts.append(f"{system}: {duration(figures['median'])}, then {duration(figures['again'])}")
    point = _largest(found, _first_there(found))
    return _sentence([words(point["x"]), *parts]) if point is not None and parts else ""


def _layers(found: Found) -> str:
    series = series_of(found, "layers")
    if series is None:
        return ""
    first, last = series["points"][0], series["points"][-1]
    parts = []
    for system in (systems.OURS, systems.FUSE_OVERLAYFS, systems.UNIONFS_FUSE, systems.OVERLAYFS):
        if system in first["systems"] and system in last["systems"]:
            one, many = (point["systems"][system]["median"] for point in (first, last))
            parts.append(f"{system}: {duration(one)} with {first['x']:g}, {duration(many)} with {last['x']:g} layers")
    return _sentence(parts)


def _block_level(found: Found) -> str:
    parts = []
    for ground, chosen in (
        ("btrfs", (systems.SNAPSHOT, systems.OURS, systems.OVERLAYFS, systems.FUSE_OVERLAYFS)),
        ("ext4", (systems.OURS, systems.OVERLAYFS)),
    ):
        point = _largest(found, f"size-{ground}")
        by_system = [_figure_of(point, system) for system in chosen]
        if point is not None and any(by_system):
            parts.append(f"{words(point['x'])} on {ground}: {'; '.join(filter(None, by_system))}")
    return _sentence(parts)


def _small_writes(found: Found) -> str:
    point = _largest(found, "size-btrfs")
    return "" if point is None else _sentence([f"{words(point['x'])}", _figure_of(point, systems.SNAPSHOT)])


def _sharing(found: Found) -> str:
    by_system = []
    for name in ("sharing", "sharing-btrfs"):
        series = series_of(found, name)
        if series is not None:
            point = series["points"][0]
            parts = [f"{system} {figures['resident'] * 100:.0f} %" for system, figures in point["systems"].items()]
            by_system.append(f"on {series['ground']} {', '.join(parts)}")
    return f"share of a file that a second mount finds in memory: {'; '.join(by_system)}" if by_system else ""


def _attributes(found: Found) -> str:
    series = series_of(found, "trigger")
    if series is None:
        return ""
    parts = []
    for trigger in ("chmod", "chown"):
        point = next((one for one in series["points"] if one["trigger"] == trigger), None)
        by_system = [_figure_of(point, system) for system in (systems.OURS, systems.FUSE_OVERLAYFS, systems.OVERLAYFS)]
        if point is not None and any(by_system):
            parts.append(f"{TRIGGERS[trigger]} of {words(point['size'])}: {'; '.join(filter(None, by_system))}")
    return _sentence(parts)


def _deep_copy(found: Found) -> str:
    point = _largest(found, _first_there(found))
    if point is None:
        return ""
    return _sentence([words(point["x"]), _figure_of(point, systems.COPY), _figure_of(point, systems.OURS)])


def _storm(found: Found) -> str:
    series = series_of(found, "storm")
    if series is None:
        return ""
    point = series["points"][-1]
    parts = [
        f"{system} {duration(figures['median'] * point['files'])}"
        for system, figures in point["systems"].items()
        if "median" in figures
    ]
    return f"chmod -R of {point['files']} files of 1 kB: {', '.join(parts)}"


def _cannot(_: Found) -> str:
    return "device mapper is not available here: the thin-provisioning target needs kernel support and its own pool"


_SIZES: Final = ("size-ext4", "size-here", "size-xfs", "size-btrfs", "size-tmpfs")

CLAIMS: Final[Sequence[Claim]] = (
    Claim(
        "AUFS and overlay work on files, not on blocks: copy-up copies the entire file, however small the change",
        "Docker: OverlayFS storage driver, AUFS storage driver",
        _DOCKER + "overlayfs-driver.md",
        _whole_file,
    ),
    Claim(
        "the first write to a file is slow, above all to a large one",
        "Docker: OverlayFS storage driver, Copyup",
        _DOCKER + "overlayfs-driver.md",
        _grows,
    ),
    Claim(
        "only the first write pays; later ones go to the copy",
        "Docker: OverlayFS storage driver",
        _DOCKER + "overlayfs-driver.md",
        _second_write,
    ),
    Claim(
        "with AUFS and overlay the latency grows when the file lies below many layers",
        "Docker: AUFS storage driver",
        _DOCKER_OLD + "aufs-driver.md",
        _layers,
    ),
    Claim(
        "block-level drivers (btrfs, zfs, device mapper) do better when much is written, overlay uses memory better",
        "Docker: Select a storage driver",
        _DOCKER + "select-storage-driver.md",
        _block_level,
    ),
    Claim(
        "btrfs writes only the changed blocks to the container's snapshot, at minor overhead",
        "Docker: Btrfs storage driver",
        _DOCKER + "btrfs-driver.md",
        _small_writes,
    ),
    Claim(
        "device mapper copies blocks of 64 kB, so a small write to a large file costs little",
        "Docker: Device Mapper storage driver",
        _DOCKER + "device-mapper-driver.md",
        _cannot,
    ),
    Claim(
        "overlay shares the page cache between containers, btrfs does not",
        "Docker: OverlayFS and Btrfs storage drivers, Page caching",
        _DOCKER + "overlayfs-driver.md",
        _sharing,
    ),
    Claim(
        "chmod and chown copy the whole file, so images double",
        "docker/for-linux 964, containerd 6310, stackabletech/docker-images 961",
        "https://github.com/docker/for-linux/issues/964",
        _attributes,
    ),
    Claim(
        "without copy-on-write (vfs) every container is a deep copy: slow, and more space",
        "Docker: VFS storage driver",
        _DOCKER + "vfs-driver.md",
        _deep_copy,
    ),
    Claim(
        "fuse-overlayfs is slow with very many small files",
        "containers/fuse-overlayfs 401",
        "https://github.com/containers/fuse-overlayfs/issues/401",
        _storm,
    ),
)


def _first_there(found: Found) -> str:
    return next((name for name in _SIZES if series_of(found, name) is not None), "")


def _largest(found: Found, name: str) -> Found | None:
    """The point of the largest file of a series at which ours and another system were measured."""
    series = series_of(found, name)
    points = [] if series is None else [point for point in series["points"] if len(point["systems"]) > 1]
    return points[-1] if points else None


def _figure_of(point: Found | None, system: str) -> str:
    """A system's time at a point, and the bytes that it wrote."""
    if point is None or system not in point["systems"]:
        return ""
    figures = point["systems"][system]
    written = f", {words(figures['bytes'])} written" if "bytes" in figures else ""
    return f"{system} {duration(figures['median'])}{written}"


def _sentence(parts: Sequence[str]) -> str:
    return "; ".join(part for part in parts if part)
