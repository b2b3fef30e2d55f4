"""`unionfs -o lowerdir=A:B[,upperdir=U,workdir=W][,...] MOUNTPOINT`: the form that container tools call.

Accepts the options of fuse-overlayfs(1). Options that only tune another implementation are ignored silently, unknown
ones with a line on stderr; options that would show wrong owners if they were ignored are refused.
Marks are written as fuse-overlayfs writes them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from unionfs import version
from unionfs.cli.branch import WORDS, change_by_words
from unionfs.cli.errors import CommandError
from unionfs.cli.mount import branches, run
from unionfs.core.options import PARTIAL_FROM
from unionfs.core.owners import IdTranslation, OwnerTranslation, parse_ranges
from unionfs.daemon.options import DaemonOptions
from unionfs.fuse import mounting
from unionfs.fuse.mounting import MountError, MountOptions
from unionfs.fuse.options import BUSY_POLL_AUTO, BUSY_POLL_MODES, DEFAULT_TRANSPORT, FOREVER_S, ServeOptions
from unionfs.fuse.view_mount import mount_view
from unionfs.printable import printable

_USAGE: Final = """\
usage: unionfs [-f] [-d] -o lowerdir=A:B[,upperdir=U,workdir=W][,OPTION...] [SOURCE] MOUNTPOINT

options understood: lowerdir= upperdir= workdir= (a backslash protects ':' and ','), ro, rw, allow_other,
uidmapping= gidmapping= (ON-DISK:SHOWN:LENGTH[:...]), squash_to_root, squash_to_uid= squash_to_gid=,
xattr_permissions=0|1|2 (keep owners in extended attributes), volatile, fsync=0|1, timeout=SECONDS, writeback=0|1,
noxattrs=0|1 (no extended attributes), noacl (ACLs are kept, but only modes count), static_nlink (directories show one
link), busy_poll=auto|on|off, view=on|off (a read-only union is served by a writable one that has the same lowers),
remount,add:N:DIR and del:DIR, append:DIR, prepend:DIR (change the branches of a mounted union),
keeper=0|1 (another daemon continues when this one dies), watch, passthrough (root: the kernel reads and writes files
itself), metacopy=on|off (changes of attributes or names copy no data), partial (large files: only written blocks),
suid, nosuid, dev, nodev, exec, noexec, atime, noatime, diratime, nodiratime, fsname=NAME
-f  serve in the foreground     -d  the same, and log every request"""

_NO_MEANING_HERE: Final = frozenset(
    """
    allow_root auto_unmount async clone_fd context defaults default_permissions defcontext fast_ino
    fscontext ino32_t kernel_cache lazytime max_idle_threads max_write nolazytime
    norelatime plugins private relatime rootcontext rprivate rshared rslave shared slave splice_move
    splice_read splice_write strictatime subtype sync threaded unbindable user userxattr xino
    """.split()  # noqa: SIM905 - a table of words
)
"""Options of other mount programs, of the kernel and of mount(8) that can be ignored: users rely on nothing that they
change."""
_OVERRIDES: Final = {"0": "", "1": "privileged", "2": "user"}
"""xattr_permissions= -> core.options.Options.overrides."""


@dataclass(slots=True)
class _Request:
    """The parsed command line. Filled by `_parse` only."""

    positionals: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    foreground: bool = False
    debug: bool = False
    show: str | None = None  # "help" or "version"


def main(argv: list[str]) -> int:
    """Run `unionfs ARGV`."""
    request = _parse(argv)
    if request.show == "version":
        print(version.text())
        return 0
    if request.show == "help":
        print(_USAGE)
        return 0
    if not request.positionals:
        raise CommandError("mount failed: no mountpoint specified")
    if "remount" in request.options:
        return _remount(request)
    options = _daemon_options(request)
    if options.view and options.union.upper is None and not request.foreground:
        reason = mount_view(options.mountpoint, options.union, options.serve, options.mount)
        if not reason:
            return 0
        options = options._replace(no_view=reason)
    return run(options, foreground=request.foreground)


def _parse(argv: list[str]) -> _Request:
    request = _Request()
    words = iter(argv)
    for word in words:
        if word == "-o":
            request.options += split_options(next(words, ""))
        elif word.startswith("-o"):
            request.options += split_options(word[2:])
        elif word in ("-f", "--foreground"):
            request.foreground = True
        elif word in ("-d", "--debug"):
            request.foreground = request.debug = True
        elif word in ("-h", "--help"):
            request.show = "help"
        elif word in ("-V", "--version"):
            request.show = "version"
        elif word in ("-t", "-N"):
            next(words, "")  # mount(8) tells its helpers the type and the namespace
        elif word == "--":
            request.positionals += words
        elif word not in ("-s", "-n", "-v") and word.startswith("-"):
            _ignore(word)
        elif word not in ("-s", "-n", "-v"):
            request.positionals.append(word)
    return request


_QUOTED_VALUE: Final = re.compile(r'([^,="\\]*=)"([^"]*)"(?:,|$)')
"""An option whose whole value is quoted, as mount(8) writes context=; a quote anywhere else is part of a path."""


def split_options(text: str) -> Iterator[str]:
    """The options of one -o string: commas separate, but for quoted or escaped ones. Empty options are left out."""
    at = 0
    while at < len(text):
        if quoted := _QUOTED_VALUE.match(text, at):
            yield quoted[1] + quoted[2]
            at = quoted.end()
            continue
        option = ""
        while at < len(text) and text[at] != ",":
            pair = text[at : at + 2] if text[at] == "\\" else text[at]
            option += "," if pair == "\\," else pair
            at += len(pair)
        if option:
            yield option
        at += 1


def split_paths(text: str) -> list[str]:
    """The paths of lowerdir=: colons separate, a backslash protects the character after it."""
    paths = [""]
    characters = iter(text)
    for character in characters:
        if character == ":":
            paths.append("")
        else:
            paths[-1] += next(characters, character) if character == "\\" else character
    return [path for path in paths if path]


def _daemon_options(request: _Request) -> DaemonOptions:
    values: dict[str, str] = {}
    for option in request.options:
        name, sign, value = option.partition("=")
        if _is_understood(name, value, has_value=bool(sign)):
            values[name] = value
        else:
            _ignore(option)
    flags = _Flags(request.options)
    upper = _one_path(values, "upperdir")
    work = _one_path(values, "workdir")
    lowers = split_paths(values.get("lowerdir", ""))
    if not lowers:
        raise CommandError("mount failed: lowerdir not specified", hint=_USAGE.splitlines()[0])
    if upper is not None and work is None:
        hint = "an upperdir needs a workdir on the same filesystem"
        raise CommandError("mount failed: workdir not specified", hint=hint)
    read_only = upper is None or flags.last("ro", "rw")
    unsafe = _number(values, "fsync", 1) == 0 or "volatile" in values
    environment = os.environ
    return DaemonOptions(
        union=branches(
            lowers,
            upper,
            None if upper is None else work,
            whiteout="fuse-overlayfs",
            durability="volatile" if unsafe else environment.get("UNIONFS_DURABILITY", "normal"),
            owners=_owners(values),
            atime=_wants_atime(flags),
            overrides=_OVERRIDES[values.get("xattr_permissions", "0")] if upper is not None else "",
            static_nlink="static_nlink" in values,
            passthrough="passthrough" in values,
            metacopy=values.get("metacopy") == "on" or "partial" in values,
            partial_from=PARTIAL_FROM if "partial" in values else 0,
        ),
        mountpoint=request.positionals[-1],
        transport=environment.get("UNIONFS_TRANSPORT", DEFAULT_TRANSPORT),
        mount=_mount_options(flags, values, read_only),
        serve=ServeOptions(
            timeout_s=_seconds(values.get("timeout")),
            writeback=_number(values, "writeback", 0) != 0,
            passthrough="passthrough" in values,
            read_only=read_only,
            acls="noacl" not in values,
            xattrs=_number(values, "noxattrs", 0) == 0,
            busy_poll=values.get("busy_poll", BUSY_POLL_AUTO),
            debug=request.debug,
        ),
        may_cover_union=True,
        log=os.path.abspath(log) if (log := environment.get("UNIONFS_LOG")) else None,
        watch="watch" in values,
        keeper=_number(values, "keeper", 1) != 0,
        view=values.get("view", "on") == "on" and not {"watch", "passthrough"} & values.keys(),
        debug=request.debug,
    )


def _mount_options(flags: _Flags, values: dict[str, str], read_only: bool) -> MountOptions:
    return MountOptions(
        source=values.get("fsname") or "unionfs",
        read_only=read_only,
        allow_other=True if "allow_other" in values else None,
        suid=not flags.last("nosuid", "suid"),
        dev=flags.last("dev", "nodev"),
        exec=not flags.last("noexec", "exec"),
        atime=_wants_atime(flags),
        diratime=not flags.last("nodiratime", "diratime"),
    )


def _wants_atime(flags: _Flags) -> bool:
    return flags.last("atime", "noatime", "relatime", "strictatime")


def _remount(request: _Request) -> int:
    """Carry out `mount -o remount,ro MOUNTPOINT`, for which mount(8) calls this program with the present options and
    the new ones. With AUFS's options for branches, only the branches are changed."""
    flags = _Flags(request.options)
    path = request.positionals[-1]
    words = [option for option in request.options if option.partition(":")[0] in WORDS and ":" in option]
    if words:
        change_by_words(path, words)
        return 0
    try:
        mounting.remount(mounting.resolve_mountpoint(path), _mount_options(flags, {}, flags.last("ro", "rw")))
    except MountError as error:
        raise CommandError(f"mount failed: {path}: {error.strerror}", hint=error.hint) from error
    return 0


class _Flags:
    """Options in opposite pairs; of each pair the last one is valid."""

    def __init__(self, options: list[str]) -> None:
        self._options = options  # immutable; in the order of the command line

    def last(self, wanted: str, opposite: str, *also: str) -> bool:
        """Whether `wanted`, or a synonym in `also`, is given, and not followed by `opposite`."""
        chosen = [option for option in self._options if option in (wanted, opposite, *also)]
        return bool(chosen) and chosen[-1] != opposite


_KNOWN: Final = frozenset(
    """
    allow_other atime busy_poll dev diratime exec fsname fsync gidmapping keeper lowerdir metacopy noacl noatime nodev
    nodiratime noexec nosuid noxattrs partial passthrough redirect_dir ro rw squash_to_gid squash_to_root squash_to_uid
    static_nlink suid timeout uidmapping upperdir view volatile watch workdir writeback xattr_permissions
    """.split()  # noqa: SIM905 - a table of words
)


_NUMBERS: Final = frozenset({"fast_ino", "fsync", "keeper", "noxattrs", "threaded", "writeback"})
"""Options whose value is a number, also ignored ones: fuse-overlayfs refuses a malformed number in them, too."""
_WITH_VALUES: Final = _NUMBERS | {
    *("busy_poll", "fsname", "gidmapping", "lowerdir", "metacopy", "redirect_dir", "squash_to_gid", "squash_to_uid"),
    *("timeout", "uidmapping", "upperdir", "view", "workdir", "xattr_permissions"),
}


def _is_understood(name: str, value: str, *, has_value: bool) -> bool:
    """Whether an option is known here or in another implementation. Raises: CommandError for an invalid value."""
    if name.startswith("x-") or (name in _NO_MEANING_HERE and name not in _NUMBERS):
        return name != "plugins" or not value
    if name not in _KNOWN | _NUMBERS or has_value != (name in _WITH_VALUES):
        return False
    if name == "redirect_dir" and value != "off":
        raise CommandError(f"mount failed: redirect_dir={value}: only redirect_dir=off is supported")
    if name == "xattr_permissions" and value not in _OVERRIDES:
        raise CommandError(f"mount failed: xattr_permissions={value}: not one of {', '.join(_OVERRIDES)}")
    if name == "busy_poll" and value not in BUSY_POLL_MODES:
        raise CommandError(f"mount failed: busy_poll={value}: not one of {', '.join(BUSY_POLL_MODES)}")
    if name == "view" and value not in ("on", "off"):
        raise CommandError(f"mount failed: view={value}: not one of on, off")
    if name == "metacopy" and value not in ("on", "off"):
        raise CommandError(f"mount failed: metacopy={value}: not one of on, off")
    if name in _NUMBERS and not value.lstrip("-").isdecimal():
        raise CommandError(f"mount failed: {name}={value}: not a number")
    if name == "upperdir" and not value:
        hint = "leave the option out for a read-only union without an upper directory"
        raise CommandError("mount failed: upperdir=: no directory is named", hint=hint)
    return True


def _number(values: dict[str, str], name: str, default: int) -> int:
    return int(values.get(name, default))


def _ignore(argument: str) -> None:
    print(f"unionfs: unknown argument ignored: {printable(argument)}", file=sys.stderr)


def _one_path(values: dict[str, str], name: str) -> str | None:
    """The path of upperdir= or workdir=: a colon is part of it, and may be escaped as in lowerdir=."""
    return re.sub(r"\\(.)", r"\1", values.get(name, ""), flags=re.DOTALL) or None


def _owners(values: dict[str, str]) -> OwnerTranslation | None:
    """squash_to_uid and squash_to_gid have priority over squash_to_root, and that over the mappings."""
    users, groups = (_id_map(values, kind) for kind in ("uid", "gid"))
    return OwnerTranslation(users, groups) if users != IdTranslation() or groups != IdTranslation() else None


def _id_map(values: dict[str, str], kind: str) -> IdTranslation:
    name = f"squash_to_{kind}" if f"squash_to_{kind}" in values else f"{kind}mapping"
    text = values.get(name, "")
    if name not in values or (name == f"{kind}mapping" and "squash_to_root" in values):
        return IdTranslation(all_as=0) if "squash_to_root" in values else IdTranslation()
    try:
        if name == f"{kind}mapping":
            return IdTranslation(parse_ranges(text)[::-1] if text.strip(":") else ())  # the last match is valid
        return IdTranslation(all_as=parse_ranges(f"{text}:0:1")[0].outside)
    except ValueError as why:
        raise CommandError(f"mount failed: {name}={text}: {why}") from None


def _seconds(text: str | None) -> float:
    """The timeout. An invalid value is ignored, as unknown options are."""
    if text is None:
        return FOREVER_S
    with suppress(ValueError):
        if (seconds := float(text)) >= 0:  # not so for nan
            return min(seconds, FOREVER_S)
    _ignore(f"timeout={text}")
    return FOREVER_S
