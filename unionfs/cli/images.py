"""`unionfs images`: list the images of the store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import NamedTuple

from layers import digest as digests
from layers import image, reference, unpacked
from layers.errors import LayerError, Malformed
from layers.store import Named, Store
from unionfs.cli import image_store
from unionfs.cli.arguments import Parser


class _Line(NamedTuple):
    repository: str
    tag: str
    digest: str
    created: str
    size: int  # of the unpacked layers where they are, else as they travel


def main(argv: list[str]) -> int:
    """Run `unionfs images ARGV`."""
    parser = Parser("images", "List the images of the store, or those of one name.", image_store.EPILOG)
    parser.add_argument("name", metavar="NAME", nargs="?", help="NAME[:TAG]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print digests only")
    parser.add_argument("--digests", action="store_true", help="print whole digests")
    image_store.add_root(parser)
    image_store.add_debug(parser)
    arguments = parser.parse(argv)
    with image_store.failures():
        store = image_store.store_of(arguments)
        lines = [_line(store, named) for named in store.named() if _is_wanted(named, arguments.name)]
    lines.sort(key=lambda line: (line.repository, line.tag))
    if arguments.json:
        print(json.dumps([line._asdict() for line in lines], indent=1))
    elif arguments.quiet:
        print("\n".join(dict.fromkeys(line.digest for line in lines)), end="\n" if lines else "")
    else:
        rows = [
            (
                line.repository or "<none>",
                line.tag or "<none>",
                line.digest if arguments.digests else digests.short(digests.Digest(line.digest)),
                _ago(line.created),
                image_store.human(line.size),
            )
            for line in lines
        ]
        image_store.print_table(("REPOSITORY", "TAG", "DIGEST", "CREATED", "SIZE"), rows)
    return 0


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
        created = config.created
        size = sum(layer.size for layer in item.layers)
        size = _unpacked_size(store, config.diff_ids) or size
    except LayerError:
        created, size = "", named.descriptor.size  # an artifact, or damaged: it still has a name to be removed by
    return _Line(repository, tag, named.descriptor.digest, created, size)


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


def _ago(created: str) -> str:
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return ""
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    seconds = (datetime.now(UTC) - then).total_seconds()
    for unit, length in (("year", 31557600), ("month", 2629800), ("week", 604800), ("day", 86400), ("hour", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}s ago"
    return f"{max(seconds, 0) / 60:.0f} minutes ago"
