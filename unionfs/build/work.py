"""The stage in work: its state, its layers, the build that it belongs to. Layers are packed while further steps run; a
step is recorded when its layer is packed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from layers import config as configs
from layers.build_records import Step, StepLayer
from layers.config import History, ImageConfig
from layers.manifest import Descriptor
from layers.store import Store
from unionfs.build import failed_step, run_layer
from unionfs.build.cache import Cache
from unionfs.build.context import Context
from unionfs.build.copy_layer import Made, compress, own_options
from unionfs.build.instructions import Instruction
from unionfs.build.jobs import Job, call, with_ids
from unionfs.build.options import CACHED, DONE, NOTE, STEP, BuildOptions, Event, EventReceiver
from unionfs.build.run_container import DIFF, Run
from unionfs.build.source import ContainerfileError
from unionfs.build.stages import Plan, Stage
from unionfs.build.state import State
from unionfs.containers.errors import ContainerError


class NotCachedError(Exception):
    """A step would have to be executed, but the caller allows cached steps only."""


class Base(NamedTuple):
    """An image that stages are based on or copy from."""

    descriptor: Descriptor  # of its manifest
    config: ImageConfig
    blobs: tuple[Descriptor, ...]  # of its layers, bottom first
    directories: tuple[str, ...]  # of its layers, bottom first


class StageLayer(NamedTuple):
    """A layer of a stage, packed and in place."""

    directory: str
    descriptor: Descriptor
    diff_id: str
    is_new: bool = False  # made by the build, now or earlier; else of the base


class StepNote(NamedTuple):
    """The result of one step, for reports."""

    text: str
    number: int
    is_cached: bool
    seconds: float
    layer: StepLayer | None
    notes: Mapping[str, Any] = {}


class StageResult(NamedTuple):
    """A stage that was built."""

    state: State
    layers: tuple[StageLayer, ...]  # bottom first
    notes: tuple[StepNote, ...]

    @property
    def directories(self) -> tuple[str, ...]:
        """Its layers in the order of a union's lowers: the topmost first."""
        return tuple(layer.directory for layer in reversed(self.layers))


class Build(NamedTuple):
    """One build; the processes of all its stages have a copy of this value."""

    store: Store
    plan: Plan
    options: BuildOptions
    context: Context
    bases: Mapping[tuple[str, str], Base]  # by name and platform
    results: Mapping[int, StageResult]  # of stages that are built, by number
    cache: Cache
    receiver: EventReceiver
    directory: Callable[[], str]  # the build's own in the store, made on demand
    numbers: Mapping[int, int]  # of the stages that are built: counted from 1


@dataclass(slots=True)
class _Slot:
    """A layer of a stage, which may not be complete yet. Changed by `put_in_place` and `Work.collect` only."""

    directory: str
    descriptor: Descriptor | None = None
    diff_id: str = ""
    is_new: bool = True
    text: str = ""  # of the step that makes it
    job: Job | None = None  # packs it; None after its end
    complete: Callable[[bytes], tuple[str, StepLayer]] | None = None
    recorded: Callable[[StepLayer], None] | None = None

    def packed(self) -> bytes:
        """Wait for the job, and return its result. Raises: ContainerError that names the step, which may be earlier
        than the current one; OSError."""
        job, self.job = self.job, None
        assert job is not None
        try:
            return job.result()
        except ContainerError as error:
            raise ContainerError("", self.text, str(error), hint=error.hint, status=error.status) from None

    def put_in_place(self, data: bytes) -> None:
        """Complete the layer with the result of its job. Raises: ContainerError, OSError."""
        assert self.complete is not None
        assert self.recorded is not None
        self.directory, layer = self.complete(data)
        self.descriptor, self.diff_id = layer.descriptor, layer.diff_id
        self.recorded(layer)


@dataclass(slots=True)
class Work:
    """The stage in work. Only its own process changes it."""

    build: Build
    stage: Stage
    state: State
    may_execute: bool
    total: int = 0  # steps, FROM included
    number: int = 0  # of the current step
    notes: list[StepNote] = field(default_factory=list)
    _slots: list[_Slot] = field(default_factory=list)
    _text: str = ""  # of the current step
    _began: float = 0.0

    # -- layers --

    @property
    def lowers(self) -> tuple[str, ...]:
        """The layers so far in the order of a union's lowers: the topmost first."""
        return tuple(slot.directory for slot in reversed(self._slots))

    def begin_with(self, layers: tuple[StageLayer, ...]) -> None:
        """The layers of the base."""
        self._slots = [_Slot(one.directory, one.descriptor, one.diff_id, one.is_new) for one in layers]

    def add_known(self, layer: StepLayer) -> None:
        """Add a layer that is in place."""
        self._slots.append(_Slot(self.build.cache.directory(layer.diff_id), layer.descriptor, layer.diff_id))

    def add_run(self, directory: str, recorded: Callable[[StepLayer], None]) -> None:
        """Add DIRECTORY/diff, which a RUN has left, as a layer, and begin to pack it."""
        store, options, lowers = self.build.store, self.build.options, self.lowers

        def pack() -> bytes:
            return run_layer.to_json(run_layer.pack(store, directory, lowers, options.compression, options.epoch))

        def complete(data: bytes) -> tuple[str, StepLayer]:
            packed = run_layer.from_json(data)
            if packed.extra:
                call(lambda: run_layer.remove_extra(directory, packed.extra))
            run_layer.put_in_place(store, directory, packed)
            return self.build.cache.directory(packed.layer.diff_id), packed.layer

        where = os.path.join(directory, DIFF)
        slot = _Slot(where, text=self._text, job=with_ids(pack), complete=complete, recorded=recorded)
        self._slots.append(slot)

    def add_copied(self, made: Made, recorded: Callable[[StepLayer], None]) -> None:
        """Add a layer that is in place, and begin to compress its tar."""
        store, compression = self.build.store, self.build.options.compression
        directory = self.build.cache.directory(made.diff_id)

        def pack() -> bytes:
            return json.dumps(compress(store, made, compression, own_options())[:3]).encode("ascii")

        def complete(data: bytes) -> tuple[str, StepLayer]:
            media_type, digest, size = json.loads(data)
            return directory, StepLayer(Descriptor(media_type, digest, size), made.diff_id, made.tar_size)

        slot = _Slot(directory, text=self._text, job=with_ids(pack), complete=complete, recorded=recorded)
        self._slots.append(slot)

    def collect(self, *, wait: bool = False) -> None:
        """Put the new layers in place and record their steps, if all are packed; `wait`: wait until they are. Until
        then a process that packs a layer reads the layers beneath it at their former places.

        Preconditions: nothing of the stage is mounted. Raises: ContainerError, OSError.
        """
        pending = [slot for slot in self._slots if slot.job is not None]
        if not wait and not all(slot.job.is_ready for slot in pending if slot.job is not None):
            return
        packed: list[tuple[_Slot, bytes]] = []
        try:
            for slot in pending:
                data = slot.packed()
                packed.append((slot, data))
        finally:
            for slot, data in packed:
                slot.put_in_place(data)

    def keep(self, directory: str, wanted: Run, shell: str) -> str:
        """Make a container of the upper of a RUN that failed; see `failed_step.keep`. Returns its name.

        Raises: ContainerError, OSError.
        """
        self.collect(wait=True)
        name = self.build.options.keep_failed
        return failed_step.keep(self.build.store.root, directory, wanted, self.lowers, name, shell)

    def end(self) -> None:
        """Kill the processes that still pack layers."""
        for slot in self._slots:
            if slot.job is not None:
                slot.job.end()

    def result(self) -> StageResult:
        """Preconditions: after `collect` has waited."""
        layers = []
        for slot in self._slots:
            assert slot.descriptor is not None
            layers.append(StageLayer(slot.directory, slot.descriptor, slot.diff_id, slot.is_new))
        return StageResult(self.state, tuple(layers), tuple(self.notes))

    # -- steps --

    def now(self) -> str:
        """The time that the history gets."""
        epoch = self.build.options.epoch
        return configs.timestamp(time.time() if epoch is None else epoch.seconds)

    def with_history(self, identifier: str, created: str, text: str, *, is_empty: bool) -> None:
        """The state after a step, which `text` describes."""
        entry = History(created, text, self.state.author, "", is_empty)
        self.state = self.state._replace(id=identifier, created=created, history=(*self.state.history, entry))

    def tell(self, kind: str, text: str) -> None:
        """Report an event of the current step."""
        numbers = self.build.numbers
        self.build.receiver.event(Event(kind, text, numbers[self.stage.number], len(numbers), self.number, self.total))

    def begin(self, text: str) -> None:
        """Report that a step begins."""
        self.number += 1
        self._text, self._began = text, time.monotonic()
        self.tell(STEP, text)

    def note(self, text: str) -> None:
        self.tell(NOTE, text)

    def is_unchanged(self, content: object, look: Callable[[], object]) -> bool:
        """Whether `look` still finds `content` in the context; if not, a note says so. A step may then have
        read a mixture of the old and the new files, so no key fits its result."""
        try:
            is_same = look() == content
        except (ContainerError, OSError):  # a file is gone
            is_same = False
        if not is_same:
            self.note("warning: files of the context have changed during this step, so its result is not cached")
        return is_same

    def ended(self, *, is_cached: bool, layer: StepLayer | None = None, notes: Mapping[str, Any] | None = None) -> None:
        """Report the end of the current step, and note it. `layer` and `notes` are those of the record, if there is
        one."""
        seconds = time.monotonic() - self._began
        self.notes.append(StepNote(self._text, self.number, is_cached, seconds, layer, notes or {}))
        self.tell(CACHED if is_cached else DONE, self.state.id[:12])

    def need_execution(self) -> None:
        """Raises: NotCachedError if no step may be executed."""
        if not self.may_execute:
            raise NotCachedError

    def recorder(
        self, keys: tuple[str, ...], identifier: str, created: str, notes: Mapping[str, Any]
    ) -> Callable[[StepLayer], None]:
        """The function that records the current step when its layer is packed."""
        place = len(self.notes)

        def recorded(layer: StepLayer) -> None:
            for key in keys:
                self.build.cache.put(key, Step(identifier, created, layer, notes))
            self.notes[place] = self.notes[place]._replace(layer=layer, notes=notes)

        return recorded

    @property
    def common(self) -> list[object]:
        """Values that the layer of every step depends on."""
        options = self.build.options
        return [options.compression, options.epoch]

    def origin(self, made: Instruction, name: str) -> Origin:
        """The stage or image that --from names. Raises: ContainerfileError."""
        stage = self.build.plan.source(self.stage, name, made.place)
        if stage is not None:
            result = self.build.results.get(stage.number)
            if result is not None:
                return Origin(result.directories, result.state.id, f"the stage {stage.shown}")
        base = self.build.bases.get((name, ""))
        if base is None:  # only names in the Containerfile itself are known before the build begins
            why = f"from={name} stands in a trigger of ONBUILD or comes from a variable, which is not supported"
            raise ContainerfileError(made.place, why, hint="name the stage or image in the Containerfile itself")
        return Origin(tuple(reversed(base.directories)), base.descriptor.digest, f"the image {name}")


class Origin(NamedTuple):
    """A stage or an image that files are copied from."""

    directories: tuple[str, ...]  # of its layers, the topmost first
    id: str  # for the keys of steps that copy from it or mount it
    shown: str  # its name in messages
