"""Marks that tests of several directories use."""

from __future__ import annotations

import pytest

as_ordinary_user = pytest.mark.parametrize("user", ["ordinary"], indirect=True)
"""For tests in which root is a user like any other, or that leave root's case to another test of their file."""
