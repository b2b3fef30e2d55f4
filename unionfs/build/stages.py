"""The stages of a Containerfile, their dependencies, and the target. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from unionfs.build import instructions as parsing
from unionfs.build import lines
from unionfs.build.instructions import Instruction
from unionfs.build.mount_flags import MountFlag, parse_mount
from unionfs.build.source import ContainerfileError, Place
from unionfs.build.words import WordError, replace
from unionfs.containers.errors import ContainerError

SCRATCH: Final = "scratch"


class Stage(NamedTuple):
    """One stage: a base, and the instructions upon it."""

    number: int  # counted from 0
    name: str  # empty: it has none
    base: str  # an image, `scratch`, or with `parent` the name of another stage
    parent: int | None  # the stage that it begins with
    platform: str  # of the base; empty: the build's
    instructions: tuple[Instruction, ...]  # without FROM
    place: Place
    text: str  # of its FROM

    @property
    def shown(self) -> str:
        return self.name or f"stage {self.number}"


class Plan(NamedTuple):
    """All stages of a Containerfile, and the arguments before its first FROM."""

    stages: tuple[Stage, ...]
    escape: str
    arguments: Mapping[str, str]  # of ARG before the first FROM, and of the platforms
    declared: frozenset[str]  # the names of all ARG
    warnings: tuple[str, ...]

    def find(self, name: str) -> Stage | None:
        """The stage of this name or number."""
        wanted = name.lower()
        for stage in reversed(self.stages):
            if stage.name and stage.name == wanted:
                return stage
        if re.fullmatch("[0-9]{1,6}", name) and int(name) < len(self.stages):
            return self.stages[int(name)]
        return None

    def target(self, name: str) -> Stage:
        """The stage that --target names; the last one if it names none. Raises: ContainerError."""
        if not name:
            return self.stages[-1]
        found = self.find(name)
        if found is None:
            known = ", ".join(stage.name or str(stage.number) for stage in self.stages)
            raise ContainerError("build", "", f"there is no stage {name}", hint=f"--target takes one of {known}")
        return found

    def source(self, stage: Stage, name: str, place: Place) -> Stage | None:
        """The stage that `--from=name` means within `stage`; None: an image. Raises: ContainerfileError."""
        found = self.find(name)
        if found is None:
            return None
        if found.number == stage.number:
            raise ContainerfileError(place, f"--from={name} is the stage itself")
        if found.number > stage.number:
            why = f"the stage {found.shown} comes later, at {found.place}: stages cannot need each other in a circle"
            raise ContainerfileError(place, why)
        return found

    def needed(self, target: Stage) -> list[Stage]:
        """The stages that `target` needs and itself, in the order of the file. Raises: ContainerfileError."""
        found: dict[int, Stage] = {}
        todo = [target]
        while todo:
            stage = todo.pop()
            if stage.number not in found:
                found[stage.number] = stage
                todo += [self.stages[index] for index in self.needs(stage)]
        return [found[index] for index in sorted(found)]

    def needs(self, stage: Stage) -> set[int]:
        """The stages that `stage` is based on, copies from or mounts. Raises: ContainerfileError."""
        found = set() if stage.parent is None else {stage.parent}
        for made in stage.instructions:
            for name in froms(made):
                source = self.source(stage, name, made.place)
                if source is not None:
                    found.add(source.number)
        return found


def froms(made: Instruction) -> list[str]:
    """The stages and images that an instruction names by --from or from=. Raises: ContainerfileError."""
    if made.keyword == "COPY" and made.flags.has("from"):
        return [made.flags.value("from")]
    if made.keyword == "RUN":
        return [mount.from_ for mount in run_mounts(made) if mount.from_]
    return []


def run_mounts(made: Instruction, variables: Mapping[str, str] | None = None, escape: str = "\\") -> list[MountFlag]:
    """The --mount flags of RUN; variables in them are replaced if they are given. Raises: ContainerfileError."""
    found = []
    for text in made.flags.all("mount"):
        try:
            found.append(parse_mount(text if variables is None else replace(text, variables, escape)))
        except ValueError as error:
            raise ContainerfileError(made.place, f"--mount={text}: {error}") from None
    return found


def read(text: str, file: str, given: Mapping[str, str], platforms: Mapping[str, str]) -> Plan:
    """The stages of a Containerfile. `given` are the arguments of --build-arg, `platforms` those about platforms.

    Raises: ContainerfileError.
    """
    document = lines.split(text, file)
    parsed = parsing.parse(document)
    if not any(made.keyword == "FROM" for made in parsed):
        raise ContainerfileError(parsed[0].place, "there is no FROM", hint="the first instruction is FROM IMAGE")
    arguments = dict(platforms)
    stages: list[Stage] = []
    at = 0
    while parsed[at].keyword != "FROM":
        made = parsed[at]
        if made.keyword != "ARG":
            raise ContainerfileError(
                made.place, f"{made.keyword} stands before the first FROM", hint="only ARG may stand there"
            )
        with _words_at(made.place):
            for name, value in parsing.arguments(made, document.escape):
                if name in given:
                    arguments[name] = given[name]
                elif value is not None:
                    arguments[name] = replace(value, arguments, document.escape)
        at += 1
    while at < len(parsed):
        begin, at = parsed[at], at + 1
        inside = []
        while at < len(parsed) and parsed[at].keyword != "FROM":
            inside.append(parsed[at])
            at += 1
        stages.append(_stage(begin, inside, stages, arguments, document.escape))
    declared = {
        name for made in parsed if made.keyword == "ARG" for name, _ in parsing.arguments(made, document.escape)
    }
    return Plan(tuple(stages), document.escape, arguments, frozenset(declared), document.warnings)


def _stage(
    begin: Instruction, inside: list[Instruction], before: list[Stage], arguments: Mapping[str, str], escape: str
) -> Stage:
    words = parsing.from_words(begin)
    with _words_at(begin.place):
        base = replace(words.base, arguments, escape)
        platform = replace(begin.flags.value("platform"), arguments, escape)
    if not base:
        hint = "set it with ARG before FROM, or with --build-arg"
        raise ContainerfileError(begin.place, f"the name of the base is empty: {words.base}", hint=hint)
    if words.name and any(words.name == stage.name for stage in before):
        raise ContainerfileError(begin.place, f"there is another stage {words.name}")
    parents = [stage.number for stage in before if stage.name and stage.name == base.lower()]
    name = f" AS {words.name}" if words.name else ""
    return Stage(
        len(before),
        words.name,
        base,
        parents[-1] if parents else None,
        platform,
        tuple(inside),
        begin.place,
        f"FROM {base}{name}",
    )


class _words_at:  # noqa: N801 - a context manager, used like a function
    """Name the line in errors of words."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, WordError):
            raise ContainerfileError(self._place, str(error)) from None


def images(stages: Iterable[Stage], plan: Plan) -> list[tuple[str, str, Place]]:
    """The images that stages are based on or copy from: name, platform, and place in the file. Raises:
    ContainerfileError.
    """
    found: dict[tuple[str, str], Place] = {}
    for stage in stages:
        if stage.parent is None and stage.base != SCRATCH:
            found.setdefault((stage.base, stage.platform), stage.place)
        for made in stage.instructions:
            for name in froms(made):
                if plan.source(stage, name, made.place) is None:
                    found.setdefault((name, ""), made.place)
    return [(name, platform, place) for (name, platform), place in found.items()]
