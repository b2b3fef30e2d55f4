"""`unionfs images`: list the images of the store."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from layers import digest as digests
from layers import image, reference, unpacked
from layers.cli import showing
from layers.errors import LayerError, Malformed, printable
from layers.store import Named, Store
from unionfs.cli import image_store
from unionfs.cli.arguments import Parser


class _Line(NamedTuple):
    repository: str
    tag: str
    digest: str
    created: str
    size: int  # of the unpacked layers where they are, else as they travel
    labels: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}" if self.tag else self.repository


_Wanted = Callable[[_Line], bool]

_DESCRIPTION = """\
List the images of the store, or those of one name.

filters (--filter KEY=VALUE; all of several must hold):
  dangling=true|false      images without a name, or with one
  reference=PATTERN        whose NAME:TAG or NAME fits, with * and ?
  label=KEY[=VALUE]        with a label
  before=IMAGE, since=IMAGE   made before, or after, another image"""

_SORTS: Final[dict[str, Callable[[_Line], object]]] = {
    "name": lambda line: (line.repository, line.tag),
    "created": lambda line: _moment(line.created) or datetime.min.replace(tzinfo=UTC),
    "size": lambda line: line.size,
}


def main(argv: list[str]) -> int:
    """Run `unionfs images ARGV`."""
    parser = Parser("images", _DESCRIPTION, image_store.EPILOG)
    parser.add_argument("name", metavar="NAME", nargs="?", help="NAME[:TAG]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print digests only")
    parser.add_argument("--digests", "--no-trunc", action="store_true", help="print whole digests")
    parser.add_argument("-f", "--filter", metavar="KEY=VALUE", action="append", default=[], help="see above")
    parser.add_argument("--sort", choices=tuple(_SORTS), default="name", help="default: name; others largest first")
    parser.add_argument("-n", "--noheading", action="store_true", help="leave out the heads of the columns")
    parser.add_argument("-a", "--all", action="store_true", help="as always: no image is hidden")
    image_store.add_root(parser)
    image_store.add_debug(parser)
    arguments = parser.parse(argv)
    with image_store.failures():
        store = image_store.store_of(arguments)
        filters = [_filter(store, text) for text in arguments.filter]
        lines = [_line(store, named) for named in store.named() if _is_wanted(named, arguments.name)]
    lines = [line for line in lines if all(wanted(line) for wanted in filters)]
    lines.sort(key=_SORTS["name"])  # type: ignore[arg-type]
    if arguments.sort != "name":
        lines.sort(key=_SORTS[arguments.sort], reverse=True)  # type: ignore[arg-type]
    if arguments.json:
        print(json.dumps([line._asdict() | {"labels": dict(line.labels)} for line in lines], indent=1))
    elif arguments.quiet:
        print("\n".join(dict.fromkeys(line.digest for line in lines)), end="\n" if lines else "")
    else:
        rows = [
            (
                printable(line.repository) or "<none>",
                printable(line.tag) or "<none>",
                line.digest if arguments.digests else digests.short(digests.Digest(line.digest)),
                _ago(line.created),
                showing.human(line.size),
            )
            for line in lines
        ]
        head = ("REPOSITORY", "TAG", "DIGEST", "CREATED", "SIZE")
        image_store.print_table(head, rows, heading=not arguments.noheading)
    return 0


def _filter(store: Store, text: str) -> _Wanted:
    """What --filter says, as a question. Raises: Malformed, NotFound."""
    key, _, value = text.partition("=")
    match key:
        case "dangling" if value in ("true", "false", ""):
            return lambda line: (not line.repository) is (value != "false")
        case "reference" if value:
            return lambda line: fnmatch.fnmatchcase(line.name, value) or fnmatch.fnmatchcase(line.repository, value)
        case "label" if value:
            name, with_text, wanted = value.partition("=")
            return lambda line: name in line.labels and (not with_text or line.labels[name] == wanted)
        case "before" | "since" if value:
            other = _moment(_line(store, store.find(value)).created)
            is_before = key == "before"

            def wanted_by_time(line: _Line) -> bool:
                made = _moment(line.created)
                return made is not None and other is not None and (made < other if is_before else made > other)

            return wanted_by_time
    hint = "dangling=true, reference=PATTERN, label=KEY[=VALUE], before=IMAGE, since=IMAGE"
    raise Malformed("reading a filter", text, "not a filter that is known here", hint=hint)


def _is_wanted(named: Named, wanted: str | None) -> bool:
    if wanted is None:
        return True
    try:
        asked = reference.parse(wanted)
        known = reference.parse(named.name)
    except Malformed:
        return named.name.partition(":")[0] == wanted.partition(":")[0]
    return known.name == asked.name and (":" not in wanted.rpartition("/")[2] or known.tag == asked.tag)


def _line(store: Store, named: Named) -> _Line:
    try:
        known = reference.parse(named.name)
        repository = known.familiar.removesuffix(f"@{known.digest}").removesuffix(f":{known.tag}")
        tag = known.tag or ""
    except Malformed:
        repository, _, tag = named.name.partition(":")
    try:
        _, item, config = image.read(store, named.descriptor)
        created, labels = config.created, config.settings.labels
        size = sum(layer.size for layer in item.layers)
        size = _unpacked_size(store, config.diff_ids) or size
    except LayerError:
        created, labels, size = (
            "",
            {},
            named.descriptor.size,
        )  # an artifact, or damaged: it still has a name to be removed by
    return _Line(repository, tag, named.descriptor.digest, created, size, labels)


def _unpacked_size(store: Store, diff_ids: tuple[digests.Digest, ...]) -> int | None:
    total = 0
    chain = None
    for diff_id in diff_ids:
        chain = digests.chain(chain, diff_id)
        layer = unpacked.find(store, diff_id, chain)
        if layer is None:
            return None
        total += int(layer.record.get("size", 0))
    return total


def _moment(created: str) -> datetime | None:
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return None
    return then.replace(tzinfo=UTC) if then.tzinfo is None else then


def _ago(created: str) -> str:
    then = _moment(created)
    if then is None:
        return ""
    seconds = (datetime.now(UTC) - then).total_seconds()
    for unit, length in (("year", 31557600), ("month", 2629800), ("week", 604800), ("day", 86400), ("hour", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}s ago"
    return f"{max(seconds, 0) / 60:.0f} minutes ago"
