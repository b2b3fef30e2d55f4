"""Values of a JSON document with their paths in it, so that errors can name the field. Pure.

As in Go's decoders, which engines write for, null is an absent value, and unknown names are ignored.
"""

from __future__ import annotations

from typing import Any, Final

from unionfs.oci.errors import OciError

_KINDS: Final[dict[type, str]] = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


class Field:
    """A value of the document, and its path in it: `linux.namespaces[1].type`. Immutable."""

    def __init__(self, value: Any, path: str = "") -> None:
        self.value: Final = value
        self.path: Final = path

    def __getitem__(self, name: str) -> Field:
        """The member `name` of an object; of an absent value an absent one."""
        members = self._of(dict, {})
        return Field(members.get(name), f"{self.path}.{name}" if self.path else name)

    def __bool__(self) -> bool:
        """Whether the value is present."""
        return self.value is not None

    def text(self, default: str | None = None) -> str:
        """A string without NUL. Raises: OciError for another value, or if it is absent without a default."""
        found: str = self._of(str, default)
        if "\0" in found:
            raise self.wrong("contains a NUL")
        return found

    def number(self, default: int | None = None, *, least: int = -(1 << 63), most: int = (1 << 64) - 1) -> int:
        """An integer within these bounds."""
        found: int = self._of(int, default)
        if self and not least <= found <= most:
            raise self.wrong(f"{found} is not between {least} and {most}")
        return found

    def flag(self, default: bool = False) -> bool:
        found: bool = self._of(bool, default)
        return found

    def items(self) -> list[Field]:
        """The items of a list; none of an absent one."""
        return [Field(item, f"{self.path}[{at}]") for at, item in enumerate(self._of(list, []))]

    def texts(self) -> tuple[str, ...]:
        """A list of strings."""
        return tuple(item.text() for item in self.items())

    def members(self) -> dict[str, Field]:
        """The present members of an object, by name."""
        return {name: self[name] for name in self._of(dict, {}) if self[name]}

    def word(self, allowed: tuple[str, ...], default: str | None = None) -> str:
        """One of some strings."""
        found = self.text(default)
        if self and found not in allowed:
            raise self.wrong(f"{found!r} is none of {', '.join(allowed)}")
        return found

    def wrong(self, why: str) -> OciError:
        """The error for this value, with the reason `why`."""
        return OciError(f"{self.path or 'the document'}: {why}")

    def _of(self, kind: type, default: Any) -> Any:
        if self.value is None:
            if default is None:
                raise self.wrong("is missing")
            return default
        if isinstance(self.value, float) and kind is int and self.value.is_integer():
            return int(self.value)
        if not isinstance(self.value, kind) or (kind is int and isinstance(self.value, bool)):
            raise self.wrong(f"is not {_KINDS[kind]}")
        return self.value
