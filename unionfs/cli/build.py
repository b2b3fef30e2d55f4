"""`unionfs build`: build an image from a Containerfile."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Final

from layers import pack, reference
from layers.manifest import parse_platform
from layers.pack import Epoch
from layers.store import Store
from unionfs.build import builder, context, git_context
from unionfs.build.builder import Built
from unionfs.build.context import Context
from unionfs.build.options import BuildOptions
from unionfs.build.run_step import FailedStepError
from unionfs.cli import build_output, image_flags, mount_flags, network_flags, remote_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import OWN_FAILURE, CommandError, format_failure
from unionfs.containers import images
from unionfs.containers.config import Volume
from unionfs.containers.volumes import VolumeStore
from unionfs.launcher import resources
from unionfs.launcher.spec import PASTA, SLIRP
from unionfs.output_file import OutputFile

if TYPE_CHECKING:
    from layers.image import Remote
    from layers.progress import Progress

_DESCRIPTION: Final = """\
Build the image of a Containerfile (Dockerfile), and print its id. CONTEXT is a directory with the files for COPY and
ADD; - for a tar or a Containerfile on standard input; the URL of one; or URL.git[#REF[:DIRECTORY]]. Names in
.containerignore or .dockerignore are left out of it.

Each RUN is one container on a union of the layers so far; its changes are the new layer. Cached steps are not executed
again; copied files count by content, mode and owner. Independent stages are built at the same time, and stages that the
target does not need are not built.

The build needs no root. All of Docker's language is supported (heredocs, RUN --mount=type=bind|cache|secret|tmpfs, COPY
--link and --exclude, ONBUILD), except ADD of git repositories, RUN --mount=type=ssh and COPY --parents."""

_EPILOG: Final = """\
examples:
  unionfs build -t user/app:v0.1 .
  unionfs build -t app --target test --build-arg VERSION=2 -f docker/Containerfile .
  unionfs build --secret id=token,src=token.txt .          RUN --mount=type=secret,id=token cat /run/secrets/token
  tar c app | unionfs build -t app -
  unionfs build --cache-from registry.example/app:cache --cache-to registry.example/app:cache -t app .
  unionfs build --keep-failed look .            then: unionfs start look; unionfs exec -it look sh

`unionfs image prune` frees cached steps that no image has.

exit codes: 0 done, the command's own if a RUN failed, 125 if the Containerfile cannot be built or unionfs failed."""


def main(argv: list[str]) -> int:
    """Run `unionfs build ARGV`."""
    arguments = _parser().parse(argv)
    arguments.quiet |= arguments.json  # the report is the only output
    arguments.report |= arguments.json
    with images.failures():
        tags = tuple(_tag(text) for text in arguments.tag)
        options = _options(arguments)
        store = image_flags.store_of(arguments)
        fetch = images.Fetch(
            functools.partial(_shown, arguments),
            functools.partial(build_output.note, quiet=arguments.quiet),
            arguments.pull,
            options.platform,
            functools.partial(_remote, arguments),
        )
    try:
        with build_output.shown(arguments.progress, quiet=arguments.quiet) as receiver:
            built = builder.build(store, _opener(arguments), options, fetch, receiver, tags)
    except FailedStepError as error:
        print(format_failure(error), file=sys.stderr)
        return error.status
    return _print_result(arguments, built, tags, store)


def _print_result(arguments: Namespace, built: Built, tags: tuple[str, ...], store: Store) -> int:
    if arguments.iidfile:
        with OutputFile(arguments.iidfile) as output:
            output.file.write(built.id.encode("ascii"))
    if arguments.report:
        from unionfs.cli import build_report

        build_report.show(built, as_json=arguments.json)
    if arguments.html:
        from unionfs.cli import build_report

        with images.failures():
            build_report.write_page(built, store, arguments.html, tags[0] if tags else built.id)
    if not arguments.quiet and not arguments.json:
        for tag in tags:
            build_output.say(f"Successfully tagged {tag}")
    if not arguments.json:
        print(built.id, flush=True)
    return 0


def _parser() -> Parser:
    parser = Parser("build", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("context", metavar="CONTEXT", help="a directory, - for a tar on standard input, or http(s)://...")
    add("-t", "--tag", metavar="NAME[:TAG]", action="append", default=[], help="the name of the image; may be repeated")
    add(
        "-f",
        "--file",
        metavar="FILE",
        default="",
        help="the Containerfile, - for standard input (default: CONTEXT/Containerfile, or CONTEXT/Dockerfile)",
    )
    add("--target", metavar="STAGE", default="", help="the stage to build, a name or a number (default: the last one)")
    add(
        "--build-arg",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="set an ARG; without =, to the variable's value here",
    )
    add(
        "--secret",
        metavar="id=NAME[,src=FILE|,env=VAR]",
        action="append",
        default=[],
        help="show a file or variable of this machine to RUN --mount=type=secret; it is in no layer, history or key",
    )
    add(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="which images of several platforms (default: this machine's platform)",
    )
    add(
        "--pull",
        nargs="?",
        const="always",
        default="missing",
        choices=("always", "missing", "never", "true", "false"),
        help="when to fetch the images of FROM (default: missing)",
    )
    add("--no-cache", action="store_true", help="execute all steps, ignoring the cache")
    for flag, what in (("from", "use the steps of a cache in a registry"), ("to", "send all steps to a registry")):
        add(
            f"--cache-{flag}",
            metavar="NAME[:TAG]",
            action="append",
            default=[],
            help=f"{what}; also type=registry,ref=NAME; may be repeated",
        )
    add(
        "--layers",
        nargs="?",
        const="true",
        default="true",
        choices=("true", "false"),
        help="false: one layer for all steps, as --squash (default: true, a layer for each step that changes files)",
    )
    add("--squash", action="store_true", help="merge the layers of all steps into one layer on top of the base")
    add("--compression", choices=("gzip", "zstd", "none"), default="gzip", help="compression of layers (default: gzip)")
    add("--iidfile", metavar="FILE", default="", help="write the image's id to FILE")
    add("--label", metavar="NAME=VALUE", action="append", default=[], help="store a label with the image")
    add(
        "--network",
        choices=("host", "none", "private", "default", PASTA, SLIRP),
        default="host",
        help="the network of RUN: this machine's, none, or a private one connected to it (default: host)",
    )
    add("--add-host", metavar="NAME:ADDRESS", action="append", default=[], help="add a line to /etc/hosts in RUN")
    add("--ulimit", metavar="NAME=SOFT[:HARD]", action="append", default=[], help="limit a resource of RUN")
    add("-v", "--volume", metavar="SRC:DST[:ro|:O]", action="append", default=[], help="show SRC at DST in RUN")
    add("--ignorefile", metavar="FILE", default="", help="read this file instead of .containerignore or .dockerignore")
    add(
        "--timestamp",
        metavar="SECONDS",
        type=_seconds,
        help="the time, since 1970, of all files and of the image; SOURCE_DATE_EPOCH in the environment: of later ones",
    )
    add(
        "--keep-failed",
        metavar="NAME",
        nargs="?",
        const="failed-build",
        default="",
        help="keep a container of a RUN that fails, for inspection (default name: failed-build)",
    )
    add(
        "--jobs",
        metavar="COUNT",
        type=_count,
        default=0,
        help="maximum number of stages built at once (default: the number of processors)",
    )
    add(
        "--progress",
        choices=("auto", "plain", "tty"),
        default="auto",
        help="plain: a line for each step, and what commands print; tty: what is being done, and the rest if it fails "
        "(default: tty on a terminal)",
    )
    add("-q", "--quiet", action="store_true", help="print the id only")
    add("--report", action="store_true", help="list the files of each step's layer, and what makes the image large")
    add("--json", action="store_true", help="print the report as JSON, and nothing else")
    add(
        "--html",
        metavar="FILE",
        default="",
        help="write the page of `layers explore --html`: sizes, waste and its causes",
    )
    for ignored, metavar in (("--rm", None), ("--force-rm", None), ("--format", "FORMAT"), ("--isolation", "KIND")):
        if metavar is None:
            add(ignored, nargs="?", const="true", help=argparse.SUPPRESS)
        else:
            add(ignored, metavar=metavar, help=argparse.SUPPRESS)
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    remote_flags.add(parser)
    return parser


def _options(arguments: Namespace) -> BuildOptions:
    """Raises: CommandError, LayerError."""
    arguments.pull = {"true": "always", "false": "missing"}.get(arguments.pull, arguments.pull)
    if arguments.network == "default":
        arguments.network = "host"
    arguments.publish, arguments.dns = (), ()
    given = dict(found for text in arguments.build_arg if (found := _argument(text)) is not None)
    if arguments.timestamp is None:
        epoch = pack.source_date_epoch(given.get(pack.EPOCH_VARIABLE))  # an argument of BuildKit, too
    else:
        epoch = Epoch(arguments.timestamp, of_all=True)
    return BuildOptions(
        arguments=given,
        secrets=dict(_secret(text) for text in arguments.secret),
        target=arguments.target,
        platform=parse_platform(arguments.platform) if arguments.platform else None,
        no_cache=arguments.no_cache,
        network=network_flags.network_of(arguments),
        limits=tuple(_limit(text) for text in arguments.ulimit),
        volumes=tuple(_volume(text, arguments.root) for text in arguments.volume),
        labels=tuple((text.partition("=")[0], text.partition("=")[2]) for text in arguments.label),
        compression=arguments.compression,
        epoch=epoch,
        squash=arguments.squash or arguments.layers == "false",
        keep_failed=arguments.keep_failed,
        cache_from=tuple(_cache(text) for text in arguments.cache_from),
        cache_to=tuple(_cache(text) for text in arguments.cache_to),
        jobs=arguments.jobs,
    )


def _opener(arguments: Namespace) -> builder.OpenContext:
    """The function that opens the context that the command line names."""

    def opened(store: Store, directory: Callable[[], str], stack: ExitStack) -> Context:
        text, file, ignorefile = arguments.context, arguments.file, arguments.ignorefile
        if not context.is_stream(text):
            return context.of_directory(store, text, file, ignorefile, stack)
        if text == "-" and file == "-":
            raise CommandError(
                "build: standard input cannot be both the context and the Containerfile", status=OWN_FAILURE
            )
        repository = git_context.parse(text)
        if repository is not None:
            return context.of_repository(repository, directory, file, ignorefile, stack)
        with context.stream_of(text) as source:
            return context.of_stream(source, directory, file, ignorefile, stack)

    return opened


def _tag(text: str) -> str:
    name = str(reference.parse(text))
    if "@" in name:
        raise CommandError(f"build: bad tag: {text}: a digest cannot be given", status=OWN_FAILURE)
    return name


def _cache(text: str) -> str:
    """The reference of a cache: as it is, or with docker's attributes, of which the mode is max."""
    if "=" not in text:
        return str(reference.parse(text))
    values = dict(part.partition("=")[::2] for part in text.split(","))
    expected = {"type": "registry", "mode": "max", "image-manifest": "true", "oci-mediatypes": "true"}
    name = values.pop("ref", "")
    if not name or any(expected.get(key) != value for key, value in values.items()):
        hint = "expected NAME[:TAG], or type=registry,ref=NAME[:TAG][,mode=max]: the cache has all steps"
        raise CommandError(f"build: bad cache: {text}", hint=hint, status=OWN_FAILURE)
    return str(reference.parse(name))


def _argument(text: str) -> tuple[str, str] | None:
    name, equals, value = text.partition("=")
    if not name:
        raise CommandError(f"build: bad argument: {text}: it has no name", status=OWN_FAILURE)
    if equals:
        return name, value
    return (name, os.environ[name]) if name in os.environ else None


def _secret(text: str) -> tuple[str, bytes]:
    values = dict(part.partition("=")[::2] for part in text.split(","))
    name, source = values.get("id", ""), values.get("src", values.get("source", ""))
    variable = values.get("env", "")
    if values.get("type") == "env" and not variable:
        variable = name
    unknown = values.keys() - {"id", "src", "source", "env", "type"}
    if not name or unknown or (source and variable):
        hint = "expected id=NAME,src=FILE or id=NAME,env=VARIABLE"
        raise CommandError(f"build: bad secret: {text}", hint=hint, status=OWN_FAILURE)
    if not source and not variable:
        variable = name if name in os.environ else ""
        source = "" if variable else name
    if variable:
        if variable not in os.environ:
            raise CommandError(f"build: bad secret: {name}: the variable {variable} is not set", status=OWN_FAILURE)
        return name, os.fsencode(os.environ[variable])
    try:
        with open(os.path.expanduser(source), "rb") as file:
            return name, file.read()
    except OSError as error:
        raise CommandError.of("reading a secret", error, status=OWN_FAILURE) from error


def _limit(text: str) -> resources.Limit:
    try:
        return resources.parse(text)
    except ValueError as error:
        raise CommandError(f"build: bad limit: {text}: {error}", status=OWN_FAILURE) from None


def _volume(text: str, root: str) -> Volume:
    found = mount_flags.volume_from(text, VolumeStore(root))
    if found.name:
        why = "only a directory of this machine can be shown in a build"
        raise CommandError(
            f"build: bad volume: {text}: {why}", hint=f"a directory here is ./{found.name}", status=OWN_FAILURE
        )
    return found


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of stages")
    return int(text)


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return int(text)


def _shown(arguments: Namespace) -> AbstractContextManager[Progress]:
    from unionfs.cli.progress import shown

    return shown(quiet=arguments.quiet)


def _remote(arguments: Namespace) -> Remote:
    return image_flags.remote(arguments)
