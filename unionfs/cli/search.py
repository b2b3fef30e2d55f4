"""`unionfs search`: list repositories of a registry, tags of a repository, or referrers of an image."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import AsyncIterator
from dataclasses import replace

from layers import image, reference, registry
from layers.endpoints import Wishes
from layers.manifest import Descriptor
from unionfs.cli import image_flags, remote_flags
from unionfs.cli.arguments import Parser
from unionfs.containers import images
from unionfs.printable import printable

_DESCRIPTION = """\
List the repositories of REGISTRY whose names contain TERM, with --tags the tags of NAME, or with --referrers the
digest and type of artifacts that refer to the image NAME[:TAG|@DIGEST], such as signatures.

Many public registries, such as docker.io, do not list their repositories, but list tags."""


def main(argv: list[str]) -> int:
    """Run `unionfs search ARGV`."""
    parser = Parser("search", _DESCRIPTION, image_flags.EPILOG)
    parser.add_argument("where", metavar="REGISTRY|NAME")
    parser.add_argument("term", metavar="TERM", nargs="?", default="")
    parser.add_argument("--tags", action="store_true", help="list the tags of the repository NAME")
    parser.add_argument("--referrers", action="store_true", help="list the referrers of the image NAME")
    parser.add_argument("--limit", metavar="N", type=int, default=0, help="stop after N lines")
    parser.add_argument("--json", action="store_true", help="print JSON")
    remote_flags.add(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    with images.failures():
        import trio

        remote = image_flags.remote(arguments)
        if arguments.tags or arguments.referrers:
            asked = reference.parse(arguments.where)
        else:
            asked = reference.Reference(reference.check_registry(arguments.where), "catalog", None)
        if arguments.tags and arguments.referrers:
            parser.error("--tags and --referrers exclude each other")
        if arguments.referrers:
            return _print_referrers(trio.run(_referrers, asked, remote), arguments)
        found = trio.run(_search, asked, remote, arguments.tags, arguments.term, arguments.limit)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for line in found:
            print(printable(line))
    return 0


def _print_referrers(found: tuple[Descriptor, ...], arguments: Namespace) -> int:
    wanted = [one for one in found if arguments.term in one.artifact_type][: arguments.limit or None]
    if arguments.json:
        rows = [
            {"digest": one.digest, "artifact_type": one.artifact_type, "size": one.size,
             "annotations": dict(one.annotations)}
            for one in wanted
        ]  # fmt: skip
        print(json.dumps(rows, indent=1))
    else:
        for one in wanted:
            print(f"{one.digest} {printable(one.artifact_type)}")
    return 0


async def _referrers(asked: reference.Reference, remote: image.Remote) -> tuple[Descriptor, ...]:
    async with image.open_registries(asked, remote) as registries:
        last = registries[-1]
        subject = asked.digest or (await last.manifest(asked.target))[0].digest
        return await last.referrers(subject)


async def _search(asked: reference.Reference, remote: image.Remote, tags: bool, term: str, limit: int) -> list[str]:
    wishes = Wishes(remote.wishes.tls_verify, remote.wishes.cert_dir)
    async with image.open_registries(asked, replace(remote, wishes=wishes)) as registries:
        last = registries[-1]
        lines: AsyncIterator[str] = last.tags() if tags else registry.catalog(last.session)
        found = []
        async for line in lines:
            if term in line:
                found.append(line if tags else f"{asked.registry}/{line}")
            if limit and len(found) >= limit:
                break
    return found
