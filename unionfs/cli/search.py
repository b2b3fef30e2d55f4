"""`unionfs search`: what a registry has: its repositories, or the tags of one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from layers import image, reference, registry
from layers.endpoints import Wishes
from layers.errors import printable
from unionfs.cli import image_store
from unionfs.cli.arguments import Parser

_DESCRIPTION = """\
List the repositories of REGISTRY whose names hold TERM, or with --tags the tags of NAME.

Many public registries, docker.io among them, do not tell their repositories; their tags they do."""


def main(argv: list[str]) -> int:
    """Run `unionfs search ARGV`."""
    parser = Parser("search", _DESCRIPTION, image_store.EPILOG)
    parser.add_argument("where", metavar="REGISTRY|NAME")
    parser.add_argument("term", metavar="TERM", nargs="?", default="")
    parser.add_argument("--tags", action="store_true", help="list the tags of the repository NAME")
    parser.add_argument("--limit", metavar="N", type=int, default=0, help="stop after N lines")
    parser.add_argument("--json", action="store_true", help="print JSON")
    image_store.add_remote(parser)
    image_store.add_debug(parser)
    arguments = parser.parse(argv)
    with image_store.failures():
        import trio

        remote = image_store.remote(arguments)
        if arguments.tags:
            asked = reference.parse(arguments.where)
        else:
            asked = reference.Reference(reference.check_registry(arguments.where), "catalog", None)
        found = trio.run(_search, asked, remote, arguments.tags, arguments.term, arguments.limit)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for line in found:
            print(printable(line))
    return 0


async def _search(asked: reference.Reference, remote: image.Remote, tags: bool, term: str, limit: int) -> list[str]:
    wishes = Wishes(remote.wishes.tls_verify, remote.wishes.cert_dir)
    async with image.opened(asked, image.Remote(wishes, remote.credentials)) as registries:
        last = registries[-1]
        lines: AsyncIterator[str] = last.tags() if tags else registry.catalog(last.session)
        found = []
        async for line in lines:
            if term in line:
                found.append(line if tags else f"{asked.registry}/{line}")
            if limit and len(found) >= limit:
                break
    return found
