"""The state of a stage after some of its steps: settings, arguments, history. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from layers.config import History, Settings
from layers.manifest import Platform
from unionfs.launcher.spec import SEARCH_PATH

PROXIES: Final = tuple(
    name
    for word in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (word.upper(), word)
)
"""Arguments that RUN gets without ARG; then they are in no history, and no step depends on them (Dockerfile reference,
"Predefined ARGs")."""


class State(NamedTuple):
    """A stage after some of its steps."""

    id: str  # of all steps so far, for the keys of further steps
    platform: Platform
    settings: Settings = Settings()
    author: str = ""
    arguments: Mapping[str, str] = {}  # those that ARG has declared and that have a value
    history: tuple[History, ...] = ()
    created: str = ""  # RFC 3339; of the last step
    has_own_command: bool = False  # CMD was in this stage: ENTRYPOINT does not reset it
    others: Mapping[str, object] = {}  # keys of the base's configuration that are not known here

    @property
    def env(self) -> dict[str, str]:
        """The variables of ENV, by name."""
        return dict(line.partition("=")[::2] for line in self.settings.env)

    @property
    def variables(self) -> dict[str, str]:
        """The variables that arguments may contain: ENV has priority over ARG."""
        return {**self.arguments, **self.env}

    @property
    def shell(self) -> tuple[str, ...]:
        """The words before the command of a shell form."""
        words = self.settings.others.get("Shell")
        return tuple(map(str, words)) if isinstance(words, list) and words else ("/bin/sh", "-c")

    @property
    def workdir(self) -> str:
        """The directory in which commands run, absolute."""
        return "/" + self.settings.working_dir.strip("/")


def with_path(settings: Settings) -> Settings:
    """The settings with a PATH, which docker and podman give an image that has none."""
    if any(line.startswith("PATH=") for line in settings.env):
        return settings
    return settings._replace(env=(f"PATH={SEARCH_PATH}", *settings.env))


def of_scratch(platform: Platform, identifier: str) -> State:
    """A stage without a base."""
    return State(identifier, platform, with_path(Settings()))
