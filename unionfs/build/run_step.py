"""One RUN: its command, its mounts, its key, and its container if the cache has no layer."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

from layers import build_records
from layers.store import Store
from unionfs import store_files
from unionfs.build import cache, copy_sources, stages
from unionfs.build.instructions import Instruction
from unionfs.build.lines import announces
from unionfs.build.mount_flags import BIND, CACHE, SECRET, MountFlag
from unionfs.build.patterns import Patterns
from unionfs.build.run_container import Run, RunMount, RunOptions, run, script_path
from unionfs.build.source import ContainerfileError, Place
from unionfs.build.state import PROXIES
from unionfs.build.words import WordError, replace
from unionfs.build.work import Work
from unionfs.containers.config import Network
from unionfs.containers.errors import ContainerError
from unionfs.launcher.errors import LaunchError

_SIGNALLED: Final = 128
_OWN_CACHES_MAX: Final = 1000  # maximum number of caches with sharing=private that are in use at once


class FailedStep(NamedTuple):
    """A command of RUN that has failed."""

    place: Place
    text: str  # of the instruction
    code: int  # its exit code
    kept: str  # the name of the kept container; empty: none

    def error(self) -> FailedStepError:
        return FailedStepError(self)


class FailedStepError(ContainerError):
    """A command of RUN has failed; `status` is its exit code."""

    def __init__(self, failed: FailedStep) -> None:
        code, kept = failed.code, failed.kept
        how = f"it was killed by signal {code - _SIGNALLED}" if code > _SIGNALLED else f"it returned {code}"
        hint = f"its files are in a container: unionfs diff {kept}; unionfs start {kept}; unionfs exec -it {kept} sh"
        super().__init__("", str(failed.place), f"{failed.text}: {how}", hint=hint if kept else "", status=code)
        self.failed = failed


def execute(work: Work, made: Instruction) -> None:
    """Raises: ContainerfileError, FailedStepError, ContainerError, LaunchError."""
    command, script = _command(work, made)
    mounts = _mounts(work, made)
    network = _network(work, made)
    arguments = {name: value for name, value in sorted(work.state.arguments.items()) if name not in work.state.env}
    options = work.build.options
    shown_by_mounts = [_key_of(work, made, mount) for mount in mounts]
    key = cache.key(
        *(work.state.id, "RUN", command, script, arguments, work.state.workdir, work.state.settings.user),
        *(shown_by_mounts, network, options.volumes, work.common),
    )
    shown = [f"{name}={value}" for name, value in arguments.items()]
    prefix = f"|{len(shown)} {' '.join(shown)} " if shown else ""
    history = f"{prefix}{' '.join(command)}"
    step = work.build.cache.find(key)
    if step is not None and step.layer is not None:
        work.add_known(step.layer)
        work.with_history(step.id, step.created, history, is_empty=False)
        return work.ended(is_cached=True, layer=step.layer, notes=step.notes)
    work.need_execution()
    work.collect()
    given = {name: options.arguments[name] for name in PROXIES if name in options.arguments}
    secrets = {
        mount.env: options.secrets[mount.id].decode(errors="surrogateescape")
        for mount in mounts
        if mount.type == SECRET and mount.env and mount.id in options.secrets
    }
    environment = {**given, **arguments, **work.state.env}
    directory = os.path.join(work.build.directory(), f"run-{os.urandom(6).hex()}")
    os.mkdir(directory, 0o700)
    with ExitStack() as stack:
        wanted = Run(
            command,
            tuple(environment.items()),
            work.state.settings.user,
            work.state.workdir,
            work.lowers,
            network,
            tuple(_run_mount(work, made, mount, stack) for mount in mounts),
            script,
            options.limits,
            options.volumes,
            tuple(secrets.items()),
        )
        _run(work, made, wanted, directory)
    is_fit = work.is_unchanged(shown_by_mounts, lambda: [_key_of(work, made, mount) for mount in mounts])
    created, identifier = work.now(), cache.new_id()
    work.add_run(directory, work.recorder((key,) if is_fit else (), identifier, created, {}))
    work.with_history(identifier, created, history, is_empty=False)
    return work.ended(is_cached=False)


def _run(work: Work, made: Instruction, wanted: Run, directory: str) -> None:
    receiver, numbers = work.build.receiver, work.build.numbers
    number, is_direct = numbers[work.stage.number], receiver.is_direct and len(numbers) == 1
    around = RunOptions(
        directory,
        work.build.store.root,
        work.note,
        receiver.ready,
        None if is_direct else lambda stream, data: receiver.output(number, stream, data),
        work.build.options.epoch,
        bool(work.build.options.keep_failed),
    )
    try:
        code = run(wanted, around)
    except LaunchError as error:
        raise ContainerError("", str(made.place), str(error), hint=error.hint, status=error.status) from None
    if code:
        shell = work.state.shell[0] if made.words is None else ""
        kept = ""
        if work.build.options.keep_failed:
            try:
                kept = work.keep(directory, wanted, shell)
            except ContainerError as error:  # the name is in use, or the disk is full: the command's failure counts
                work.note(f"warning: no container is kept: {error}")
        raise FailedStep(made.place, made.line.text, code, kept).error()


def _command(work: Work, made: Instruction) -> tuple[tuple[str, ...], tuple[str, str] | None]:
    """The words to execute, and the name and text of a heredoc that is a program of its own."""
    if made.words is not None:
        if not made.words:
            raise ContainerfileError(made.place, "RUN has no command", hint='expected RUN ["PROGRAM", "ARGUMENT"...]')
        return made.words, None
    shell = work.state.shell
    heredocs = made.heredocs
    if not heredocs:
        return (*shell, made.rest), None
    first = heredocs[0]
    if announces(made.rest) is None:
        return (*shell, "\n".join([made.rest, *(one.text + one.name for one in heredocs)])), None
    if first.text.startswith("#!"):  # the shell replaces variables in a heredoc
        return (*shell, script_path(first.name)), (first.name, first.text)
    return (*shell, first.text), None


def _network(work: Work, made: Instruction) -> Network:
    name = made.flags.value("network")
    try:
        name = replace(name, work.state.variables, work.build.plan.escape)
    except WordError as error:
        raise ContainerfileError(made.place, str(error)) from None
    match name:
        case "" | "default":
            return work.build.options.network
        case "none":
            return Network(private=True)
        case "host":
            return Network()
    raise ContainerfileError(made.place, f"--network={name}", hint="expected default, none or host")


# -- mounts ------------------------------------------------------------------------------------------------------------


def _mounts(work: Work, made: Instruction) -> list[MountFlag]:
    try:
        found = stages.run_mounts(made, work.state.variables, work.build.plan.escape)
    except WordError as error:
        raise ContainerfileError(made.place, str(error)) from None
    for mount in found:
        if mount.type == SECRET and mount.required and mount.id not in work.build.options.secrets:
            hint = f"unionfs build --secret id={mount.id},src=FILE"
            raise ContainerfileError(made.place, f"the secret {mount.id} is required and was not given", hint=hint)
        if mount.target and _target(work, mount) == "/":
            raise ContainerfileError(made.place, "nothing can be mounted at /")
    return found


def _target(work: Work, mount: MountFlag) -> str:
    return "/" + posixpath.normpath(posixpath.join(work.state.workdir, mount.target)).strip("/")


def _key_of(work: Work, made: Instruction, mount: MountFlag) -> list[object]:
    """The part of a mount in the key of its step: its options, and the content of a bind's source. No secret's
    value."""
    content = ""
    if mount.type == BIND or mount.from_:
        content = work.origin(made, mount.from_).id if mount.from_ else _content_of_context(work, made, mount.source)
    return [*mount, content]


def _content_of_context(work: Work, made: Instruction, source: str) -> str:
    tree = work.build.context.tree
    return copy_sources.digest(copy_sources.choose(tree, [source or "."], Patterns(()), made.place, "the context"))


def _run_mount(work: Work, made: Instruction, mount: MountFlag, stack: ExitStack) -> RunMount:
    target = _target(work, mount) if mount.target else ""
    if mount.type == BIND and mount.from_:
        return RunMount(mount, target, work.origin(made, mount.from_).directories or (_empty(work),))
    if mount.type == BIND:
        context = work.build.context
        hidden = tuple(b"/".join(path) for path in context.tree.hidden(()))
        return RunMount(mount, target, (context.path,), hidden)
    if mount.type == CACHE:
        lowers = work.origin(made, mount.from_).directories if mount.from_ else ()
        return RunMount(mount, target, lowers, directory=stack.enter_context(_cache(work.build.store, mount)))
    data = work.build.options.secrets.get(mount.id) if mount.type == SECRET else None
    return RunMount(mount, target, data=data)


def _empty(work: Work) -> str:
    """An empty directory, the only layer of a stage without layers."""
    path = os.path.join(work.build.directory(), "empty")
    os.makedirs(path, 0o755, exist_ok=True)
    return path


@contextmanager
def _cache(store: Store, mount: MountFlag) -> Iterator[str]:
    """The directory of a cache, held as its `sharing` says: shared by all, one command at a time, or one of several."""
    parent = build_records.directory(store, "mounts")
    os.makedirs(parent, 0o700, exist_ok=True)
    name = hashlib.sha256(json.dumps([mount.id, mount.from_, mount.source]).encode()).hexdigest()[:32]
    if mount.sharing == "shared":
        yield os.path.join(parent, name)
        return
    for number in range(_OWN_CACHES_MAX):
        path = os.path.join(parent, f"{name}-{number}" if number else name)
        lock = store_files.open_file(f"{path}.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if mount.sharing == "private" else 0))
        except BlockingIOError:
            os.close(lock)
            continue
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                os.close(lock)
        return
    raise ContainerError("build", "", f"more than {_OWN_CACHES_MAX} builds use the cache {mount.id}")
