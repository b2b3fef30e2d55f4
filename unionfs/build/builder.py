"""A whole build: its bases found or fetched, its stages built side by side, its image put together and named.

Cached steps are found in this process; if all are cached, it forks nothing. A stage with steps to execute is built in a
process of its own, since starting containers and handling signals need a whole process; this one gets its result.

All unfinished files of a build are in one directory in aside/, which is removed at the end. If a build was killed, the
next build, or the next process that adds to the store, removes its directory.
"""

from __future__ import annotations

import functools
import os
import pickle
import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

from layers import lookup, make_image, pack
from layers.config import ImageConfig
from layers.digest import Digest
from layers.make_image import ImageOptions
from layers.manifest import Platform, own_platform, parse_platform
from layers.store import Store
from unionfs.build import context as contexts
from unionfs.build import registry_cache, stages
from unionfs.build.cache import Cache
from unionfs.build.context import Context
from unionfs.build.copy_layer import own_options
from unionfs.build.jobs import Job, call, failures
from unionfs.build.options import NOTE, BuildOptions, Event, EventReceiver
from unionfs.build.run_step import FailedStep, FailedStepError
from unionfs.build.source import Place
from unionfs.build.stage_run import build_stage
from unionfs.build.stages import Plan, Stage
from unionfs.build.state import PROXIES
from unionfs.build.work import Base, Build, NotCachedError, StageResult
from unionfs.containers import images
from unionfs.containers.errors import ContainerError
from unionfs.containers.images import Fetch

_ENDING_S: Final = 30  # for killed containers to be unmounted, and their directories removed


class Built(NamedTuple):
    """An image that was built."""

    digest: Digest  # of its manifest
    id: Digest  # of its configuration
    results: Mapping[int, StageResult]  # of the stages that were built, by number
    stages: tuple[int, ...]  # of the image: each is built on the one before


OpenContext = Callable[[Store, Callable[[], str], ExitStack], Context]
"""Opens the context. The second argument makes the build's directory in the store, on demand."""


def build(
    store: Store,
    open_context: OpenContext,
    options: BuildOptions,
    fetch: Fetch,
    receiver: EventReceiver,
    names: tuple[str, ...],
) -> Built:
    """Build an image, and give it its names (in full; empty: none).

    Raises: ContainerfileError, ContainerError, LaunchError.
    """
    with failures(), _swept(store), ExitStack() as stack:
        stack.enter_context(store.using())
        directory = stack.enter_context(_directory(store))
        context = open_context(store, directory, stack)
        platform = options.platform or own_platform()
        plan = stages.read(context.text, context.containerfile, options.arguments, _platform_arguments(platform))
        for warning in plan.warnings:
            receiver.event(Event(NOTE, f"warning: {warning}"))
        _warn_of_unused(plan, options, receiver)
        target = plan.target(options.target)
        needed = plan.needed(target)
        bases = {
            (name, for_platform): _base(store, name, for_platform, fetch, place)
            for name, for_platform, place in stages.images(needed, plan)
        }
        numbers = {stage.number: position for position, stage in enumerate(needed, 1)}
        caches = registry_cache.opened(
            store, () if options.no_cache else options.cache_from, fetch, lambda text: receiver.event(Event(NOTE, text))
        )
        cache = Cache(store, is_read=not options.no_cache, elsewhere=caches)
        made = Build(store, plan, options, context, bases, {}, cache, receiver, directory, numbers)
        results = _build_stages(made, needed)
        contexts.remember(store, context)
        built = _image(made, results, target, names)
        for name in options.cache_to:
            registry_cache.push(store, name, cache.used, fetch)
        return built


# -- preparation -------------------------------------------------------------------------------------------------------


@contextmanager
def _swept(store: Store) -> Iterator[None]:
    """Sweep before the block, and after it if that fails."""
    _sweep(store)
    try:
        yield
    except BaseException:
        _sweep(store)
        raise


def _sweep(store: Store) -> None:
    """Remove the remains of killed processes, if there are any and no other process adds to the store."""
    store.prepare()
    if not os.listdir(store.aside):
        return

    def sweep() -> bytes:
        with store.adding():
            return b""

    call(sweep)


@contextmanager
def _directory(store: Store) -> Iterator[Callable[[], str]]:
    """The function that makes the build's directory on demand; the directory is removed at the end of the block."""
    path = store.new_aside()

    def make() -> str:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        return path

    def remove() -> bytes:
        store.discard(path)
        return b""

    try:
        yield make
    finally:
        if os.path.exists(path):
            call(remove)


def _platform_arguments(target: Platform) -> dict[str, str]:
    """Arguments that are set without ARG before the first FROM (Dockerfile reference, "Automatic platform ARGs")."""
    found: dict[str, str] = {}
    for name, platform in (("TARGET", target), ("BUILD", own_platform())):
        variant = f"/{platform.variant}" if platform.variant else ""
        found[f"{name}PLATFORM"] = f"{platform.os}/{platform.architecture}{variant}"
        found[f"{name}OS"], found[f"{name}ARCH"] = platform.os, platform.architecture
        found[f"{name}VARIANT"] = platform.variant
    return found


def _warn_of_unused(plan: Plan, options: BuildOptions, receiver: EventReceiver) -> None:
    """Warn of arguments of --build-arg that no ARG declares, as docker does."""
    declared = plan.declared
    unused = [
        name for name in options.arguments if name not in declared and name not in (*PROXIES, pack.EPOCH_VARIABLE)
    ]
    if unused:
        receiver.event(Event(NOTE, f"warning: no ARG declares {', '.join(sorted(unused))}"))


def _base(store: Store, name: str, platform: str, fetch: Fetch, place: Place) -> Base:
    """An image of which stages are made. Raises: ContainerError."""
    if platform:
        fetch = fetch._replace(platform=parse_platform(platform))
    try:
        found = images.unpacked(store, name, fetch)
    except ContainerError as error:
        raise ContainerError("", str(place), str(error), hint=error.hint) from None
    descriptor, item, config = lookup.read(store, found.descriptor)
    return Base(descriptor, config, item.layers, tuple(reversed(found.lowers)))


# -- stages ------------------------------------------------------------------------------------------------------------


def _build_stages(made: Build, needed: list[Stage]) -> dict[int, StageResult]:
    """Build stages, each when the stages that it needs are built, and as many at once as there are processors.

    Raises: the first failure; then all others were ended.
    """
    results: dict[int, StageResult] = {}
    running: dict[int, Job] = {}  # by the number of the stage
    limit = made.options.jobs or len(os.sched_getaffinity(0))
    alive_read, alive_write = os.pipe()  # at its end when all processes that the stages have forked have ended
    try:
        while len(results) < len(needed):
            for stage in needed:
                is_new = stage.number not in results and stage.number not in running
                if is_new and len(running) < limit and made.plan.needs(stage) <= results.keys():
                    ready = made._replace(results=dict(results))
                    cached = _from_cache(ready, stage)
                    if cached is not None:
                        results[stage.number] = cached
                        break  # more stages may be ready by it
                    running[stage.number] = Job(functools.partial(_in_own_process, ready, stage), None)
            else:
                for number in _ended(running):
                    result, digests, used = pickle.loads(running.pop(number).result())
                    if isinstance(result, FailedStep):
                        raise result.error()
                    results[number] = result
                    made.context.digests.learn(digests)
                    made.cache.used.update(used)
    finally:
        _end(running, alive_read, alive_write)
    return results


def _from_cache(made: Build, stage: Stage) -> StageResult | None:
    """The result of a stage of which all steps are cached; its events are sent only then."""
    events: list[Event] = []
    quiet = made.receiver._replace(event=events.append)
    try:
        result = build_stage(made._replace(receiver=quiet), stage, may_execute=False)
    except NotCachedError:
        return None
    for event in events:
        made.receiver.event(event)
    return result


def _in_own_process(made: Build, stage: Stage) -> bytes:
    """The result of a stage, or the step that failed, the digests that were computed, and the records of its steps."""
    result: StageResult | FailedStep
    try:
        result = build_stage(made, stage, may_execute=True)
    except FailedStepError as error:
        result = error.failed
    return pickle.dumps((result, made.context.digests.new, made.cache.used))


def _ended(running: Mapping[int, Job]) -> list[int]:
    """The stages that have ended; waits for one."""
    poll = select.poll()
    for job in running.values():
        poll.register(job.result_fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll()}
    return [number for number, job in running.items() if job.result_fd in ready]


def _end(running: Mapping[int, Job], alive_read: int, alive_write: int) -> None:
    """Kill the stages that run, and wait until their monitors have noticed and ended the containers."""
    os.close(alive_write)
    try:
        for job in running.values():
            job.end()
        if running:
            poll = select.poll()
            poll.register(alive_read, 0)
            poll.poll(_ENDING_S * 1000)
    finally:
        os.close(alive_read)


# -- the image ---------------------------------------------------------------------------------------------------------


def _image(made: Build, results: Mapping[int, StageResult], target: Stage, names: tuple[str, ...]) -> Built:
    """Put the image of the target together, and name it. Raises: LayerError, OSError."""
    store, options, result = made.store, made.options, results[target.number]
    state = result.state
    settings = state.settings._replace(labels={**state.settings.labels, **dict(options.labels)})
    config = ImageConfig(
        state.platform,
        tuple(Digest(layer.diff_id) for layer in result.layers),
        settings,
        state.history,
        state.created,
        state.author,
        state.others,
    )
    blobs = [layer.descriptor for layer in result.layers]
    if options.squash and sum(layer.is_new for layer in result.layers) > 1:
        return _squashed(made, results, target, names, config)
    digest = image_id = Digest("")
    for name in names or ("",):
        digest, image_id = make_image.put_image(store, config, blobs, name)
    return Built(digest, image_id, results, _chain(made.plan, target))


def _chain(plan: Plan, target: Stage) -> tuple[int, ...]:
    """The numbers of the stages that an image consists of, the first one first."""
    found: list[int] = []
    number: int | None = target.number
    while number is not None:
        found.insert(0, number)
        number = plan.stages[number].parent
    return tuple(found)


def _squashed(
    made: Build, results: Mapping[int, StageResult], target: Stage, names: tuple[str, ...], config: ImageConfig
) -> Built:
    """The image with all new layers merged into one; those of the base stay."""
    store, layers = made.store, results[target.number].layers
    whole, _ = make_image.put_image(store, config, [layer.descriptor for layer in layers], "")
    kept = sum(not layer.is_new for layer in layers)

    def squash() -> bytes:
        wanted = ImageOptions(names[0] if names else "", created_by="unionfs build --squash")
        squashed = make_image.squash(store, whole, wanted, keep=kept, options=own_options())
        return pickle.dumps((squashed.digest, squashed.id))

    digest, image_id = pickle.loads(call(squash))
    store.remove_digest(whole)
    found = store.find(digest)
    for name in names[1:]:
        store.tag(found.descriptor, name)
    return Built(digest, image_id, results, _chain(made.plan, target))
