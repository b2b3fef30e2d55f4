"""Orders the tests of this room by subject, so that each subject is built and mounted once."""

from __future__ import annotations

import pytest

from tests.mounted.subjects import Subject, all_subjects


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Within each module, all tests of one subject before those of the next; otherwise as they stand in the file."""
    order = {subject: number for number, subject in enumerate(all_subjects())}
    module_order: dict[str, int] = {}

    def key(item: pytest.Item) -> tuple[int, int]:
        module = module_order.setdefault(item.nodeid.split("::")[0], len(module_order))
        callspec = getattr(item, "callspec", None)
        subject = callspec.params.get("subject") if callspec else None
        return module, order.get(subject, -1) if isinstance(subject, Subject) else -1

    items.sort(key=key)
