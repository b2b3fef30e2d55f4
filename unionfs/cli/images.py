"""`unionfs images`: list the images of the store."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from layers import digest as digests
from layers import lookup, reference
from layers.cli import showing
from layers.errors import LayerError, Malformed
from layers.store import Store, StoredImage
from unionfs.cli import filter_flags, image_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.units import human_duration
from unionfs.containers import images
from unionfs.printable import printable


class _Line(NamedTuple):
    repository: str
    tag: str
    id: str  # see Store.id_of
    digest: str
    created: str
    size: int  # of the unpacked layers if they exist, else of the blobs
    labels: Mapping[str, str]
    store: str  # the root directory of the store that has it

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}" if self.tag else self.repository


_Wanted = Callable[[_Line], bool]

_DESCRIPTION = """\
List the images of the store, or those of one name. IMAGE ID is the beginning of the image's id, which is the digest of
its configuration, as in Docker; every verb accepts it as a name.

--format takes json, table, or a line such as '{{.Repository}}:{{.Tag}} {{.ID}}'; the other fields are Digest,
CreatedSince, CreatedAt, Size and Store. With --image-store a column says in which store an image is.

filters (--filter KEY=VALUE; an image must match all of them):
  dangling=true|false      images without a name, or with one
  reference=PATTERN        NAME:TAG or NAME matches PATTERN, with * and ?
  label=KEY[=VALUE]        with a label
  before=IMAGE, since=IMAGE   made before, or after, another image"""

_SORTS: Final[dict[str, Callable[[_Line], object]]] = {
    "name": lambda line: (line.repository, line.tag),
    "created": lambda line: _moment(line.created) or datetime.min.replace(tzinfo=UTC),
    "size": lambda line: line.size,
}


def main(argv: list[str]) -> int:
    """Run `unionfs images ARGV`."""
    parser = Parser("images", _DESCRIPTION, image_flags.EPILOG)
    parser.add_argument("name", metavar="NAME", nargs="?", help="NAME[:TAG]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    parser.add_argument("--digests", action="store_true", help="print the digests of manifests, too")
    parser.add_argument("--no-trunc", action="store_true", help="do not shorten ids")
    parser.add_argument("--format", metavar="FORMAT", help="see above")
    parser.add_argument("-f", "--filter", metavar="KEY=VALUE", action="append", default=[], help="see above")
    parser.add_argument(
        "--sort", choices=tuple(_SORTS), default="name", help="default: name; the others list the largest first"
    )
    parser.add_argument("-n", "--noheading", action="store_true", help="print no column headings")
    parser.add_argument("-a", "--all", action="store_true", help="no effect: all images are always listed")
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    with images.failures():
        store = image_flags.store_of(arguments)
        filters = [_filter(store, text) for text in arguments.filter]
        lines = [_line(store, named) for named in _all(store) if _is_wanted(named, arguments.name)]
    lines = [line for line in lines if all(wanted(line) for wanted in filters)]
    lines.sort(key=_SORTS["name"])  # type: ignore[arg-type]
    if arguments.sort != "name":
        lines.sort(key=_SORTS[arguments.sort], reverse=True)  # type: ignore[arg-type]
    if arguments.format and arguments.format not in ("table", "json"):
        for line in lines:
            print(filter_flags.formatted(arguments.format, _fields(line, whole=arguments.no_trunc)))
    elif arguments.json or arguments.format == "json":
        print(json.dumps([line._asdict() | {"labels": dict(line.labels)} for line in lines], indent=1))
    elif arguments.quiet:
        for shown in dict.fromkeys(_id(line, whole=arguments.no_trunc) for line in lines):
            print(shown)
    else:
        columns = {"REPOSITORY": "Repository", "TAG": "Tag", "DIGEST": "Digest", "IMAGE ID": "ID"}
        columns |= {"CREATED": "CreatedSince", "SIZE": "Size"}
        if not arguments.digests:
            del columns["DIGEST"]
        if store.further:
            columns["STORE"] = "Store"
        shown_lines = [_fields(line, whole=arguments.no_trunc) for line in lines]
        rows = [tuple(fields[column] for column in columns.values()) for fields in shown_lines]
        image_flags.print_table(tuple(columns), rows, heading=not arguments.noheading)
    return 0


def _all(store: Store) -> Iterator[StoredImage]:
    """The images of the store and of further ones. A further one that cannot be read is left out with a warning."""
    yield from store.list_images()
    for other in store.further:
        try:
            other.check_further()
            yield from other.list_images()
        except LayerError as error:
            image_flags.warn(f"{error}" + (f"\n  {error.hint}" if error.hint else ""))


def _fields(line: _Line, *, whole: bool) -> dict[str, str]:
    """The fields of docker's --format."""
    return {
        "ID": _id(line, whole=whole),
        "Repository": printable(line.repository) or "<none>",
        "Tag": printable(line.tag) or "<none>",
        "Digest": line.digest,
        "CreatedSince": _ago(line.created),
        "CreatedAt": printable(line.created),
        "Size": showing.human(line.size),
        "Store": printable(line.store),
    }


def _id(line: _Line, *, whole: bool) -> str:
    return line.id if whole else digests.short(digests.Digest(line.id))


def _filter(store: Store, text: str) -> _Wanted:
    """The predicate of a --filter. Raises: Malformed, NotFound."""
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
    raise Malformed("reading a filter", text, "it is not a known filter", hint=hint)


def _is_wanted(named: StoredImage, wanted: str | None) -> bool:
    if wanted is None:
        return True
    try:
        asked = reference.parse(wanted)
        known = reference.parse(named.name)
    except Malformed:
        return named.name.partition(":")[0] == wanted.partition(":")[0]
    return known.name == asked.name and (":" not in wanted.rpartition("/")[2] or known.tag == asked.tag)


def _line(store: Store, named: StoredImage) -> _Line:
    try:
        known = reference.parse(named.name)
        repository = known.familiar.removesuffix(f"@{known.digest}").removesuffix(f":{known.tag}")
        tag = known.tag or ""
    except Malformed:
        repository, _, tag = named.name.partition(":")
    try:
        _, item, config = lookup.read(store, named.descriptor)
        created, labels = config.created, config.settings.labels
        size = sum(layer.size for layer in item.layers)
        size = _unpacked_size(store, config.diff_ids) or size
    except LayerError:
        created, labels, size = (
            "",
            {},
            named.descriptor.size,
        )  # an artifact, or damaged: listed, so that it can be removed by its name
    digest = named.descriptor.digest
    return _Line(repository, tag, store.id_of(named.descriptor), digest, created, size, labels, named.root)


def _unpacked_size(store: Store, diff_ids: tuple[digests.Digest, ...]) -> int | None:
    total = 0
    chain = None
    for diff_id in diff_ids:
        chain = digests.chain(chain, diff_id)
        layer = lookup.find_layer(store, diff_id, chain)
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
    return "" if then is None else f"{human_duration((datetime.now(UTC) - then).total_seconds())} ago"
