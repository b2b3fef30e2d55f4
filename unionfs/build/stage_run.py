"""Build one stage: each instruction in turn, the triggers of its base first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from layers.build_records import Step
from layers.config import Settings
from layers.manifest import Platform, own_platform
from unionfs.build import cache, copy_step, instructions, lines, run_step, settings
from unionfs.build.instructions import Instruction
from unionfs.build.options import FAILED
from unionfs.build.stages import SCRATCH, Stage
from unionfs.build.state import State, of_scratch, with_path
from unionfs.build.work import Base, Build, StageLayer, StageResult, Work
from unionfs.containers.errors import ContainerError

_EXECUTE: Final[Mapping[str, Callable[[Work, Instruction], None]]] = {
    "ADD": copy_step.copy,
    "COPY": copy_step.copy,
    "RUN": run_step.execute,
    "WORKDIR": copy_step.workdir,
}


def build_stage(build: Build, stage: Stage, *, may_execute: bool) -> StageResult:
    """Build a stage on the bases and stages that the build has. Unless `may_execute`, of cached steps only.

    Raises: NotCachedError, ContainerfileError, ContainerError, LaunchError, LayerError, OSError.
    """
    state, layers = _begin(build, stage)
    triggers = _triggers(state, stage, build.plan.escape)
    if triggers:
        others = {name: value for name, value in state.settings.others.items() if name != "OnBuild"}
        state = state._replace(settings=state.settings._replace(others=others))
    todo = [*triggers, *stage.instructions]
    work = Work(build, stage, state, may_execute, total=len(todo) + 1)
    work.begin_with(layers)
    try:
        work.begin(stage.text)
        for made in todo:
            work.begin(made.line.text)
            execute = _EXECUTE.get(made.keyword, _set)
            execute(work, made)
        work.collect(wait=True)
    except ContainerError as error:
        work.tell(FAILED, str(error))
        try:
            work.collect(wait=True)  # the steps so far need not be executed again
        finally:
            work.end()
        raise
    except BaseException:
        work.end()
        raise
    return work.result()


def _begin(build: Build, stage: Stage) -> tuple[State, tuple[StageLayer, ...]]:
    """The state and the layers that a stage begins with."""
    if stage.parent is not None:
        result = build.results[stage.parent]
        return result.state._replace(has_own_command=False), result.layers  # arguments are inherited
    if stage.base == SCRATCH:
        platform = build.options.platform or own_platform()
        return of_scratch(platform, cache.key(SCRATCH, platform)), ()
    base = build.bases[stage.base, stage.platform]
    return _of_base(base), tuple(
        StageLayer(directory, blob, diff_id)
        for directory, blob, diff_id in zip(base.directories, base.blobs, base.config.diff_ids, strict=True)
    )


def _of_base(base: Base) -> State:
    config = base.config
    platform = Platform(*config.platform)
    return State(
        cache.key("image", base.descriptor.digest),
        platform,
        with_path(config.settings),
        config.author,
        history=config.history,
        created=config.created,
        others=config.others,
    )


def _triggers(state: State, stage: Stage, escape: str) -> list[Instruction]:
    """The instructions that the base has kept with ONBUILD. Raises: ContainerfileError."""
    kept = state.settings.others.get("OnBuild")
    found: list[Instruction] = []
    for text in kept if isinstance(kept, list) else ():
        document = lines.split(str(text), f"ONBUILD of {stage.base}")
        for line in document.lines:
            instructions.check_trigger(line.keyword, line.place)
            found.append(instructions.parse_line(line, escape))
    return found


def _set(work: Work, made: Instruction) -> None:
    """An instruction without a layer. ARG itself changes no key: a RUN that may see the argument has it in its key."""
    before = work.state
    given = work.build.options.arguments
    state = settings.apply(before, made, work.build.plan.escape, given, work.build.plan.arguments)
    work.state = state
    text = f"/bin/sh -c #(nop) {made.line.text}"
    if made.keyword == "ARG":
        work.with_history(before.id, before.created or work.now(), text, is_empty=True)
        return work.ended(is_cached=not work.build.options.no_cache)
    key = cache.key(before.id, made.keyword, _facts(state.settings), state.author, work.common)
    step = work.build.cache.find(key)
    if step is None:
        work.need_execution()
        step = Step(key, work.now())
        work.build.cache.put(key, step)
        work.with_history(key, step.created, text, is_empty=True)
        return work.ended(is_cached=False)
    work.with_history(step.id, step.created, text, is_empty=True)
    return work.ended(is_cached=True)


def _facts(known: Settings) -> list[object]:
    return [dict(value) if isinstance(value, Mapping) else value for value in known]
