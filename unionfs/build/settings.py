"""Instructions without a layer, which change settings, arguments or the author. Pure.

Source: Dockerfile reference, one section for each instruction.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Final

from layers import instructions as changes
from layers.config import Settings
from layers.errors import Malformed
from unionfs.build import instructions as parsing
from unionfs.build.instructions import Instruction
from unionfs.build.source import ContainerfileError
from unionfs.build.state import State
from unionfs.build.words import WordError, replace, split_words

KEYWORDS: Final = (
    *("ARG", "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "SHELL"),
    *("STOPSIGNAL", "USER", "VOLUME"),
)
"""Instructions that this module knows. WORKDIR is one of them where the directory exists (`with_workdir`)."""

_PORT: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_PORTS_MAX: Final = 65535


def apply(state: State, made: Instruction, escape: str, given: Mapping[str, str], outer: Mapping[str, str]) -> State:
    """The state after an instruction of KEYWORDS; the caller sets its `id`, `history` and `created`.

    `given` are the arguments of --build-arg, `outer` those before the first FROM. Raises: ContainerfileError.
    """
    try:
        return _APPLY[made.keyword](_Step(state, made, escape, given, outer))
    except (WordError, Malformed) as error:
        why = error.why if isinstance(error, Malformed) else str(error)
        raise ContainerfileError(made.place, why) from None


def with_workdir(state: State, made: Instruction, escape: str) -> State:
    """The state after WORKDIR. Raises: ContainerfileError."""
    try:
        text = replace(made.rest, state.variables, escape)
    except WordError as error:
        raise ContainerfileError(made.place, str(error)) from None
    if not text:
        raise ContainerfileError(made.place, "the directory of WORKDIR is empty")
    path = "/" + posixpath.normpath(posixpath.join(state.workdir, text)).strip("/")
    return state._replace(settings=state.settings._replace(working_dir=path))


class _Step:
    """An instruction, with the state and values that its arguments may depend on."""

    def __init__(
        self, state: State, made: Instruction, escape: str, given: Mapping[str, str], outer: Mapping[str, str]
    ) -> None:
        self.state: Final = state
        self.made: Final = made
        self.escape: Final = escape
        self.given: Final = given
        self.outer: Final = outer

    def replaced(self, text: str) -> str:
        return replace(text, self.state.variables, self.escape)

    def words(self) -> list[str]:
        if self.made.words is not None:
            return [self.replaced(word) for word in self.made.words]
        return split_words(self.made.rest, self.state.variables, self.escape)

    def command(self) -> tuple[str, ...]:
        """The words of the JSON form, or those of the shell form behind the shell."""
        if self.made.words is not None:
            return self.made.words
        return (*self.state.shell, self.made.rest) if self.made.rest else ()

    def with_settings(self, **new: object) -> State:
        settings: Settings = self.state.settings._replace(**new)  # type: ignore[arg-type]
        return self.state._replace(settings=settings)

    def with_other(self, name: str, value: object) -> State:
        return self.with_settings(others={**self.state.settings.others, name: value})

    def pairs(self) -> dict[str, str]:
        found = parsing.pairs(self.made, self.escape)
        return {self.replaced(name): self.replaced(value) for name, value in found}


def _arg(step: _Step) -> State:
    arguments = dict(step.state.arguments)
    for name, default in parsing.arguments(step.made, step.escape):
        if name in step.given:
            arguments[name] = step.given[name]
        elif default is not None:
            arguments[name] = replace(default, {**arguments, **step.state.env}, step.escape)
        elif name in step.outer:
            arguments[name] = step.outer[name]
    return step.state._replace(arguments=arguments)


def _env(step: _Step) -> State:
    merged = {**step.state.env, **step.pairs()}
    return step.with_settings(env=tuple(f"{name}={value}" for name, value in merged.items()))


def _label(step: _Step) -> State:
    return step.with_settings(labels={**step.state.settings.labels, **step.pairs()})


def _cmd(step: _Step) -> State:
    return step.with_settings(cmd=step.command() or None)._replace(has_own_command=True)


def _entrypoint(step: _Step) -> State:
    state = step.with_settings(entrypoint=step.command() or None)
    return state if state.has_own_command else state._replace(settings=state.settings._replace(cmd=None))


def _expose(step: _Step) -> State:
    ports: list[str] = []
    for word in step.words():
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or not first <= last <= _PORTS_MAX:
            raise ContainerfileError(step.made.place, f"{word} is no port", hint="expected PORT[-PORT][/tcp|udp|sctp]")
        ports += [f"{port}/{(match[3] or 'tcp').lower()}" for port in range(first, last + 1)]
    return step.with_settings(exposed_ports=tuple(dict.fromkeys((*step.state.settings.exposed_ports, *ports))))


def _volume(step: _Step) -> State:
    paths = step.words()
    if not paths or not all(path.strip() for path in paths):
        raise ContainerfileError(step.made.place, "VOLUME has an empty path")
    return step.with_settings(volumes=tuple(dict.fromkeys((*step.state.settings.volumes, *paths))))


def _user(step: _Step) -> State:
    user = step.replaced(step.made.rest)
    if not user:
        raise ContainerfileError(step.made.place, "the user is empty", hint="expected USER[:GROUP]")
    return step.with_settings(user=user)


def _stop_signal(step: _Step) -> State:
    return step.with_settings(stop_signal=step.replaced(step.made.rest))


def _shell(step: _Step) -> State:
    return step.with_other("Shell", list(step.made.words or ()))


def _healthcheck(step: _Step) -> State:
    flags = "".join(f"--{name}={value} " for name, value in step.made.flags.pairs)
    return step.state._replace(
        settings=changes.with_change(step.state.settings, f"HEALTHCHECK {flags}{step.made.rest}")
    )


def _onbuild(step: _Step) -> State:
    parsing.trigger(step.made, step.escape)
    heredocs = "".join(f"\n{one.text}{one.name}" for one in step.made.heredocs)
    known = step.state.settings.others.get("OnBuild")
    return step.with_other("OnBuild", [*(known if isinstance(known, list) else []), step.made.rest + heredocs])


def _maintainer(step: _Step) -> State:
    return step.state._replace(author=step.made.rest)


_APPLY: Final[Mapping[str, Callable[[_Step], State]]] = {
    "ARG": _arg,
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "ONBUILD": _onbuild,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
}
