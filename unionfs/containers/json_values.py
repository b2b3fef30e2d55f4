"""Convert named tuples to JSON and back, checked field by field. Fields are text, numbers, tuples or named tuples.

Fields that were added after values had been stored are named by `later_fields` of their class, and have defaults.
"""

from __future__ import annotations

import functools
import types
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Convert `value` to types that json.dumps accepts."""
    if (fields := _fields(type(value))) is not None:
        return {name: encode(getattr(value, name)) for name in fields}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], value: Any) -> T:
    """Convert the result of `encode` back to type `kind`. Raises: ValueError that names the field."""
    decoded: T = _decode(kind, value, "")
    return decoded


def _decode(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType):
        if value is None and types.NoneType in get_args(kind):
            return None
        (kind,) = (one for one in get_args(kind) if one is not types.NoneType)
    if get_origin(kind) is tuple:
        return _decode_tuple(get_args(kind), value, where)
    if (fields := _fields(kind)) is not None:
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'the record'} is not an object")
        if wrong := [*(value.keys() - fields.keys()), *(fields.keys() - value.keys() - _later_fields(kind))]:
            what = "is unknown" if wrong[0] in value else "is missing"
            raise ValueError(f"{_below(where, wrong[0])!r} {what}")
        given = {name: of for name, of in fields.items() if name in value}
        return kind(**{name: _decode(of, value[name], _below(where, name)) for name, of in given.items()})
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where!r} is not of type {kind.__name__}")
    return value


def _decode_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where!r} is not a list")
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where!r} has {len(value)} items instead of {len(kinds)}")
    return tuple(_decode(kind, item, where) for kind, item in zip(kinds, value, strict=True))


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _fields(kind: Any) -> dict[str, Any] | None:
    """The names and types of the fields; None for other types."""
    return _fields_of_class(kind) if isinstance(kind, type) else None


@functools.cache
def _fields_of_class(kind: Any) -> dict[str, Any] | None:
    if not (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return None
    hints = get_type_hints(kind)
    return {name: hints[name] for name in kind._fields}


def _later_fields(kind: Any) -> set[str]:
    """The fields that values of earlier versions do not have; each has a default."""
    return {*kind.later_fields()} if hasattr(kind, "later_fields") else set()
