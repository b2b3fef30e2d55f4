"""`unionfs stats`: print the statistics of a mounted union's daemon."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.fuse import mounting
from unionfs.printable import printable

_EPILOG: Final = """\
--json prints one object: mountpoint, is_view (whether MOUNTPOINT is a view of the lowers of the union there), pid,
started_by (the parent of mounts that forked the daemon, or "itself" and the reason), version (of the daemon),
transport, protocol, compiled (true or false), code (compiled or Python, and why), uptime_s, lowers, upper, messages
(requests by the kernel's opcode names without FUSE_), copy_ups (files, directories, others, reflinked, bytes, saved,
seconds), nodes, views (offered: whether read-only unions of the same lowers become views of this one; mounted: number
of views in the mount table of the caller; nodes: of the views; no_view: why this union is not a view), keeper (null
without one; pid, alive, replaced: how often a daemon died, last_reason, waited_s: the longest wait, waited_total_s,
replacements: the last 16 times that another daemon continued, each with time, reason and waited_s, upgrades: how many
succeeded, version_before, not_upgraded: why the last one failed), passthrough (null without it; open: open files,
plain: opens without it so far), memory_bytes (of the daemon: resident; own and shared parts of that; pss: own part and
its share of the shared part), cpu_s (processor seconds of the daemon) and descriptors (of the daemon: open, and the
most it may have).

with --pool: where, data, data_max, metadata, metadata_max and disk (bytes; disk: of the files, null for a DEVICE), mode
(of the kernel: rw, ro, out_of_data_space, Fail), devices (number by kind) and problem (why no container can begin)."""

_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


def main(argv: list[str]) -> int:
    """Run `unionfs stats ARGV`."""
    from unionfs.control.client import add_mounts

    parser = Parser("stats", "Print statistics of a mounted union: messages by kind, copy-ups, memory.", _EPILOG)
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    parser.add_argument("--pool", action="store_true", help="of the thin pool of --driver devicemapper instead")
    parser.add_argument("--root", metavar="DIR", help="the store of that pool (default: $XDG_DATA_HOME/unionfs)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse(argv)
    if arguments.pool == (arguments.mountpoint is not None):
        parser.error("either MOUNTPOINT or --pool")
    if arguments.pool:
        from unionfs.cli import stats_of_pool

        return stats_of_pool.show(arguments.root, as_json=arguments.json)
    found = next(ask_daemon(arguments.mountpoint, "stats"), None)
    if found is None:
        raise CommandError(f"stats failed: {arguments.mountpoint}: its daemon ended without an answer")
    there = mounting.union_at(mounting.resolve_mountpoint(arguments.mountpoint))
    if there is None:
        raise CommandError(f"stats failed: {arguments.mountpoint}: it has been unmounted")
    add_mounts(found, there)
    print(json.dumps(found) if arguments.json else _for_people(found))
    return 0


def ask_daemon(path: str, question: str) -> Iterator[dict[str, Any]]:
    """Ask the daemon of the union at `path`, and yield its answer line by line (unionfs.control.server).

    Raises: CommandError.
    """
    from unionfs.control.client import NoAnswerError, ask

    mountpoint = mounting.resolve_mountpoint(path)
    mounted = mounting.union_at(mountpoint)
    if mounted is None:
        raise CommandError(f"{question} failed: {path}: no union is mounted there", hint="`findmnt -t fuse.unionfs`")
    try:
        yield from ask(mounted.minor, question, mounted.user_id)
    except NoAnswerError as why:
        raise CommandError(f"{question} failed: {path}: {why}") from why


def _for_people(found: dict[str, Any]) -> str:
    copied = found["copy_ups"]
    upper = found["upper"]
    rows = [("view", "of the lowers of this union, served by its daemon")] if found["is_view"] else []
    rows += [
        ("union", f"{_shown(found['mountpoint'])} (process {found['pid']}, up {_duration(found['uptime_s'])})"),
        ("started by", printable(found["started_by"])),
        ("transport", f"{found['transport']}, FUSE {found['protocol']}"),
        ("version", printable(found["version"]) or "unknown: not installed as a package"),
        ("code", found["code"]),
        ("lowers", ", ".join(map(_shown, found["lowers"]))),
        ("upper", "none: read-only" if upper is None else _shown(upper)),
        (
            "copy-ups",
            f"{copied['files']} files ({_size(copied['bytes'])} copied, {_size(copied.get('saved', 0))} left in the "
            f"lowers, {copied['reflinked']} reflinked), "
            f"{copied['directories']} directories, {copied['others']} others in {copied['seconds'] * 1000:.1f} ms",
        ),
        ("nodes", f"{found['nodes']}"),
        ("views", _views(found["views"])),
        ("watch", _watch(found["watch"])),
        ("keeper", _keeper(found.get("keeper"))),
        ("passthrough", _passthrough(found.get("passthrough"))),
        ("memory", _memory(found["memory_bytes"])),
        ("processor", f"{found['cpu_s']:.2f} s"),
        ("descriptors", _descriptors(found.get("descriptors"))),
    ]
    messages = sorted(found["messages"].items(), key=lambda item: -item[1])
    rows += [("messages", f"{sum(count for _, count in messages)}")]
    rows += [(f"  {opcode}", f"{count:>10}") for opcode, count in messages]
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:<{width}}  {text}" for title, text in rows)


def _passthrough(passed: dict[str, int] | None) -> str:
    if passed is None:
        return "no"
    plain = f", {passed['plain']} opens so far were without passthrough" if passed["plain"] else ""
    return f"{passed['open']} files are open{plain}"


def _views(views: dict[str, Any]) -> str:
    if not views["offered"]:
        return f"this union is not a view: {printable(views['no_view'])}" if views["no_view"] else "none offered"
    return f"{views['mounted']} mounted in this mount namespace, {views['nodes']} nodes"


def _keeper(keeper: dict[str, Any] | None) -> str:
    if keeper is None:
        return "none: if the daemon dies, the mount ends"
    alive = f"process {keeper['pid']}" if keeper["alive"] else "killed: if the daemon dies, the mount ends"
    if keeper.get("outdated"):
        return f"{alive}; it does not know the present branches: if the daemon dies, the mount ends"
    said = [alive]
    if keeper["replaced"]:
        said.append(f"replaced the daemon {_times(keeper['replaced'])}{_why(keeper)}")
    if keeper["upgrades"]:
        before = f", last from version {printable(keeper['version_before'])}" if keeper["version_before"] else ""
        said.append(f"upgraded {_times(keeper['upgrades'])}{before}")
    if len(said) > 1:
        total = f", {keeper['waited_total_s'] * 1000:.0f} ms in all" if "waited_total_s" in keeper else ""
        said.append(f"longest wait {keeper['waited_s'] * 1000:.0f} ms{total}")
    if keeper["not_upgraded"]:
        said.append(f"the last upgrade failed: {printable(keeper['not_upgraded'])}")
    return "; ".join(said)


def _why(keeper: dict[str, Any]) -> str:
    """List why daemons were replaced: each reason with its count. Daemons of earlier versions report the last reason
    only."""
    reasons = Counter(str(each["reason"]) for each in keeper.get("replacements", ()))
    if not reasons:
        return f", the last one was {printable(keeper['last_reason'])}"
    return ", of late: " + ", ".join(f"{printable(reason)} {_times(count)}" for reason, count in reasons.items())


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _watch(watch: dict[str, int] | None) -> str:
    if watch is None:
        return "no: if other programs change the branches, the result is undefined"
    unwatched = f", {watch['unwatched']} cannot be watched" if watch["unwatched"] else ""
    return f"{watch['directories']} directories are watched{unwatched}"


def _memory(memory: dict[str, int] | None) -> str:
    if memory is None:
        return "unknown: this kernel has no /proc/PID/smaps_rollup"
    own, shared, pss = (_size(memory[kind]) for kind in ("own", "shared", "pss"))
    return f"{pss} (PSS): {own} own, and a share of {shared} shared with other processes"


def _descriptors(descriptors: dict[str, int] | None) -> str:
    if descriptors is None:
        return "unknown: the daemon is of an older version"
    return f"{descriptors['open']} of {descriptors['most']}"


def _shown(path: str) -> str:
    return printable(path)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _size(count: float) -> str:
    """A number of bytes in decimal units."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
