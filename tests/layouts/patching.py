"""How a seeded fault takes the place of the right thing."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch


def replaced(owner: object, name: str, change: Callable[[Any], Any]) -> AbstractContextManager[Any]:
    """`owner.name` replaced by `change(original)`."""
    return patch.object(owner, name, change(getattr(owner, name)))
