"""One COPY, ADD or WORKDIR: its key, and its layer if the cache has none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack

from layers.build_records import Step, StepLayer
from unionfs.build import accounts, cache, copy_arguments, copy_layer, copy_sources, fetched, settings
from unionfs.build.copy_arguments import Arguments
from unionfs.build.copy_layer import LayerInputs, Made
from unionfs.build.copy_sources import Source, TreeSource
from unionfs.build.instructions import Instruction
from unionfs.build.jobs import call
from unionfs.build.trees import Layers
from unionfs.build.work import Work
from unionfs.containers.errors import ContainerError


def workdir(work: Work, made: Instruction) -> None:
    """Raises: ContainerfileError, ContainerError."""
    parent, store = work.state, work.build.store
    state = settings.with_workdir(parent, made, work.build.plan.escape)
    path, user, lowers = state.workdir, parent.settings.user, work.lowers
    key = cache.key(parent.id, "WORKDIR", path, user, work.common)
    text = f"/bin/sh -c #(nop) {made.line.text}"
    step = work.build.cache.find(key)
    work.state = state
    if step is not None:
        if step.layer is not None:
            work.add_known(step.layer)
        work.with_history(step.id, step.created, text, is_empty=step.layer is None)
        return work.ended(is_cached=True)
    work.need_execution()
    kit = _kit(work, lowers)

    def make() -> bytes:
        with store.adding():
            owner = accounts.of_user(lowers, user) if user else None
            return json.dumps(copy_layer.make_directory(kit, path, owner)).encode("ascii")

    layer = json.loads(_call(made, make))
    created = work.now()
    if layer is None:
        work.build.cache.put(key, Step(key, created))
    else:
        work.add_copied(Made(*layer), work.recorder((key,), key, created, {}))
    work.with_history(key, created, text, is_empty=layer is None)
    return work.ended(is_cached=False)


def copy(work: Work, made: Instruction) -> None:
    """Raises: ContainerfileError, ContainerError."""
    arguments = copy_arguments.read(made, work.state.variables, work.build.plan.escape, work.state.workdir)
    if arguments.from_:
        return _copy_from(work, made, arguments)
    by_checksum = _key(work, made, arguments, arguments.urls, arguments.checksum) if arguments.checksum else ""
    if by_checksum and (known := work.build.cache.find_layer(by_checksum)) is not None:
        return _found(work, made, *known)  # the content of the URL is known, so it is not fetched
    with ExitStack() as stack:
        sources = _sources(work, made, arguments, stack)
        archives = [arguments.unpacks and fetched.holds_archive(source) for source in sources]
        content = copy_sources.digest(sources, arguments.mode)
        key = _key(work, made, arguments, content, archives)
        known = work.build.cache.find_layer(key)
        if known is not None:
            return _found(work, made, *known)
        work.need_execution()
        store = work.build.store

        def make() -> bytes:
            with store.adding(), ExitStack() as inner:
                opened = [
                    fetched.unpacked(store, source, inner) if packed and isinstance(source, TreeSource) else source
                    for source, packed in zip(sources, archives, strict=True)
                ]
                return json.dumps(_layer(work, arguments, opened)).encode("ascii")

        layer = Made(*json.loads(_call(made, make)))
        keys = tuple(filter(None, (key, by_checksum)))
        if arguments.names and not work.is_unchanged(content, lambda: copy_sources.digest(sources, arguments.mode)):
            keys = ()
    return _made(work, made, layer, content, keys)


def _copy_from(work: Work, made: Instruction, arguments: Arguments) -> None:
    """COPY from a stage or an image. Its files are read in a process with all ids; if the stage or image is the same as
    at the earlier build, they are not read at all."""
    origin = work.origin(made, arguments.from_)
    quick = _key(work, made, arguments, origin.id, [arguments.names, arguments.excluded, arguments.texts])
    known = work.build.cache.find_layer(quick)
    if known is not None:
        return _found(work, made, *known)
    work.need_execution()
    store = work.build.store

    def make() -> bytes:
        with store.adding(), Layers(origin.directories) as tree:
            excluded = copy_arguments.patterns(made, arguments.excluded)
            chosen = copy_sources.choose(tree, arguments.names, excluded, made.place, origin.shown)
            sources: list[Source] = [*chosen, *arguments.texts]
            content = copy_sources.digest(sources, arguments.mode)
            is_known = work.build.cache.find_layer(_key(work, made, arguments, content, [])) is not None
            return json.dumps([content, None if is_known else _layer(work, arguments, sources)]).encode("ascii")

    content, layer = json.loads(_call(made, make))
    key = _key(work, made, arguments, content, [])
    if layer is None and (known := work.build.cache.find_layer(key)) is not None:
        work.build.cache.put(quick, known[0])
        return _found(work, made, *known)
    return _made(work, made, Made(*layer), content, (key, quick))


def _sources(work: Work, made: Instruction, arguments: Arguments, stack: ExitStack) -> list[Source]:
    """The sources in the context, of heredocs and of web servers. Raises: ContainerError, LayerError, OSError."""
    excluded = copy_arguments.patterns(made, arguments.excluded)
    found: list[Source] = []
    if arguments.names:
        tree = work.build.context.tree
        found += copy_sources.choose(tree, arguments.names, excluded, made.place, "the context")
    found += arguments.texts
    for url in arguments.urls:
        work.need_execution()
        into = os.path.join(work.build.directory(), f"url-{os.urandom(6).hex()}")
        to_directory = arguments.path.endswith("/")
        found.append(fetched.fetch(url, arguments.checksum, into, made.place, stack, to_directory=to_directory))
    return found


def _layer(work: Work, arguments: Arguments, sources: list[Source]) -> Made:
    """Preconditions: as for `copy_layer.copy`. With --link nothing is looked up in the layers beneath, so that the
    layer is the same upon every parent."""
    owner = accounts.of_chown(work.lowers, arguments.chown) if arguments.chown else None
    lowers = () if arguments.link else work.lowers
    return copy_layer.copy(_kit(work, lowers), sources, arguments.destination(owner, len(sources)))


def _kit(work: Work, lowers: tuple[str, ...]) -> LayerInputs:
    return LayerInputs(work.build.store, work.build.directory(), lowers, work.build.options.epoch)


def _key(work: Work, made: Instruction, arguments: Arguments, *content: object) -> str:
    parent = "" if arguments.link and not arguments.chown else work.state.id
    return cache.key(parent, made.keyword, arguments.path, arguments.chown, arguments.mode, content, work.common)


def _call(made: Instruction, make: Callable[[], bytes]) -> bytes:
    """The result of `make`; a failure names the line."""
    try:
        return call(make)
    except ContainerError as error:
        if str(error).startswith(str(made.place)):
            raise
        raise ContainerError("", str(made.place), str(error), hint=error.hint) from None


def _found(work: Work, made: Instruction, step: Step, layer: StepLayer) -> None:
    work.add_known(layer)
    work.with_history(_id(work, made, step.id), step.created, _history(made, step.notes.get("content")), is_empty=False)
    work.ended(is_cached=True, layer=layer, notes=step.notes)


def _made(work: Work, made: Instruction, layer: Made, content: str, keys: tuple[str, ...]) -> None:
    """Add the layer, and record it under `keys`."""
    created, identifier = work.now(), keys[0] if keys else cache.new_id()
    notes = {"content": content, "entries": layer.entries}
    work.add_copied(layer, work.recorder(keys, identifier, created, notes))
    work.with_history(_id(work, made, identifier), created, _history(made, content), is_empty=False)
    work.ended(is_cached=False)


def _id(work: Work, made: Instruction, step_id: str) -> str:
    """With --link a layer is the same on every parent, but the steps after it are not."""
    return cache.key(work.state.id, step_id) if made.flags.switch("link") else step_id


def _history(made: Instruction, content: object) -> str:
    """In the form of podman and docker's classic builder."""
    destination = made.words[-1] if made.words else made.rest.split()[-1]
    return f"/bin/sh -c #(nop) {made.keyword} multi:{content} in {destination} "
