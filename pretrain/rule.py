"""A row of a table of rules, and how choices are written in its message."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Rule(Generic[Subject]):
    """A row of a table."""

    name: str
    broken: Callable[[Subject], bool]
    message: Callable[[Subject], str]


def divisors(*numbers: int) -> list[int]:
    """Common divisors in ascending order."""
    return [d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)]


def listed(values: Sequence[int]) -> str:
    """A choice of numbers, at most eight of them."""
    values = values if len(values) <= 8 else [*values[:7], values[-1]]
    return str(values[0]) if len(values) == 1 else f"{', '.join(map(str, values[:-1]))} or {values[-1]}"
