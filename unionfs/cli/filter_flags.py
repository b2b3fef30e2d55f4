"""Select containers by docker's --filter, and print them by docker's --format.

Of Go's templates only these are supported: {{.Field}}, {{json .}}, {{json .Field}}, and `table` before them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from unionfs.cli.errors import USAGE, CommandError
from unionfs.containers.record import Container
from unionfs.printable import printable_line

_FIELD: Final = re.compile(r"\{\{\s*(json\s+)?\.(\w*)\s*\}\}")


def _has_label(container: Container, wanted: str) -> bool:
    labels = dict(container.config.labels)
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def _uses_volume(container: Container, wanted: str) -> bool:
    volumes = container.config.mounts.volumes
    return any(wanted in (volume.name, volume.source, volume.target) for volume in volumes)


def _is_made_of(container: Container, wanted: str) -> bool:
    image = container.config.image
    return image is not None and wanted in (image.name, image.name.partition(":")[0], image.digest)


def _is_abandoned(container: Container, wanted: str) -> bool:
    if wanted not in ("true", "false"):
        raise CommandError(f"ps: bad filter: abandoned={wanted}", hint="expected true or false", status=USAGE)
    return container.is_abandoned() == (wanted == "true")


_FILTERS: Final[dict[str, Callable[[Container, str], bool]]] = {
    "id": lambda one, text: one.id.startswith(text),
    "name": lambda one, text: re.search(text, one.name) is not None,
    "status": lambda one, text: one.status == text,
    "exited": lambda one, text: one.status == "exited" and str(one.state.exit_code) == text,
    "ancestor": _is_made_of,
    "label": _has_label,
    "volume": _uses_volume,
    "abandoned": _is_abandoned,
    "driver": lambda one, text: one.config.rootfs.driver == text,
}


def filter_from(text: str) -> Callable[[Container], bool]:
    """The predicate for KEY=VALUE. Raises: CommandError."""
    key, equals, value = text.partition("=")
    if not equals or key not in _FILTERS:
        hint = f"expected KEY=VALUE with one of {', '.join(_FILTERS)}"
        raise CommandError(f"ps: bad filter: {text}", hint=hint, status=USAGE)
    if key == "name":
        try:
            re.compile(value)
        except re.error as error:
            raise CommandError(f"ps: bad filter: {text}: {error}", status=USAGE) from None
    return lambda container: _FILTERS[key](container, value)


def all_of(texts: list[str]) -> Callable[[Container], bool]:
    """The predicate for all filters: of several with one key one must hold, of labels all."""
    kinds: dict[str, list[Callable[[Container], bool]]] = {}
    for text in texts:
        key = text.partition("=")[0]
        kinds.setdefault(text if key == "label" else key, []).append(filter_from(text))
    return lambda container: all(any(test(container) for test in tests) for tests in kinds.values())


def formatted(template: str, fields: Mapping[str, Any]) -> str:
    """One line by a template. Raises: CommandError for an unknown field."""

    def fill(match: re.Match[str]) -> str:
        if not match[2]:
            return json.dumps(dict(fields))
        if match[2] not in fields:
            hint = f"there are {', '.join(fields)}"
            raise CommandError(f"bad format: there is no field {match[2]}", hint=hint, status=USAGE)
        value = fields[match[2]]
        return json.dumps(value) if match[1] else printable_line(str(value))

    plain = template.removeprefix("table ").replace("\\t", "\t").replace("\\n", "\n")
    if "{{" in _FIELD.sub("", plain):
        raise CommandError(f"bad format: {template}", hint="{{.Field}} and {{json .}} are supported", status=USAGE)
    return _FIELD.sub(fill, plain)
